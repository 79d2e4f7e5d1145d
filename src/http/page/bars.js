// The chart of hours, and the overview below it that spans all of them.

import * as format from './format.js';
import * as svg from './svg.js';
import * as timeline from './timeline.js';

const HEIGHT = 210;
const OVERVIEW_HEIGHT = 44;
const LEFT = 58;
const RIGHT = 4;
const TOP = 8;
const BOTTOM = 42;
/** The narrowest bar that a pointer can still hit. */
const BAR_PX_MIN = 5;
/** The widest bar, so that a few hours look like bars too. */
const BAR_PX_MAX = 72;
/** The width of a label that is a date, and of one that is a short number. */
const DATE_PX = 84;
const NUMBER_PX = 40;

/** The number of bars that fit. */
export function room(element) {
  return Math.floor((svg.widthOf(element) - LEFT - RIGHT) / BAR_PX_MIN);
}

/**
 * Draws bars for `slots` (from, to, bytes_tx, bytes_rx). Those within `chosen` (from, to) are highlighted; those
 * with hours from `incomplete` on are outlined. With `names`, of applications, a bar consists of the slot's `parts`, the
 * bytes of each and of all others. `choose` is called with the hours, from and to, that are clicked or dragged over.
 */
export function hours(element, { slots, chosen, incomplete, names }, choose) {
  const width = svg.widthOf(element);
  const each = (width - LEFT - RIGHT) / Math.max(1, slots.length);
  const bar = Math.min(each > 8 ? each * 0.8 : each - 1, BAR_PX_MAX);
  const floor = HEIGHT - BOTTOM;
  const amount = (bytes, slot) => format.plotted(bytes, slot.to - slot.from);
  const most = Math.max(0, ...slots.map((slot) => amount(slot.bytes_tx + slot.bytes_rx, slot)));
  const y = (bytes, slot) => toY(amount(bytes, slot));
  const toY = (value) => floor - (value / (Math.max(1, most) * 1.04)) * (floor - TOP);
  const middle = (index) => LEFT + (index + 0.5) * each;
  const isChosen = (slot) => slot.from < chosen.to && slot.to > chosen.from;

  const back = svg.make('rect', { class: 'highlight', y: TOP, height: floor - TOP, width: 0 });
  const bars = slots.flatMap((slot, index) => {
    const kind = `${isChosen(slot) ? 'chosen' : 'other-hour'}${slot.to > incomplete ? ' incomplete' : ''}`;
    // Within the outline, which is one pixel wide. A sum above zero has at least that height.
    const part = (name, top, bottom) => svg.make('rect', {
      class: `bar ${name} ${kind}`,
      x: middle(index) - bar / 2 + 0.5,
      y: Math.min(top, bottom - 1) + 0.5,
      width: Math.max(bar - 1, 0.1),
      height: Math.max(bottom - top - 1, 0.01),
    });
    if (names) {
      let [below, edge] = [0n, floor];
      return slot.parts.flatMap((bytes, i) => {
        if (bytes === 0n) return [];
        below += bytes;
        const [top, bottom] = [y(below, slot), edge];
        edge = Math.min(top, bottom - 1) - 1;
        return [part(i < names.length ? `hue-${i}` : 'hue-none', top, bottom)];
      });
    }
    const sent = slot.bytes_tx > 0n ? [part('sent', y(slot.bytes_tx, slot), floor)] : [];
    // One pixel separates the two.
    const bottom = sent.length > 0 ? Math.min(y(slot.bytes_tx, slot), floor - 1) - 1 : floor;
    return slot.bytes_rx > 0n ? [...sent, part('received', y(slot.bytes_tx + slot.bytes_rx, slot), bottom)] : sent;
  });
  const first = slots.findIndex(isChosen);
  const last = slots.findLastIndex(isChosen);
  const bracket = first < 0 ? [] : [
    svg.make('rect', { class: 'bracket', x: middle(first) - bar / 2, y: floor + 3, width: (last - first) * each + bar, height: 3 }),
  ];
  const grid = ticksOf(most).map(({ value, text }) =>
    svg.make(
      'g',
      {},
      svg.make('line', { class: 'grid', x1: LEFT, x2: width - RIGHT, y1: toY(value), y2: toY(value) }),
      svg.make('text', { x: LEFT - 8, y: toY(value) + 4, 'text-anchor': 'end', text }),
    ),
  );
  const labels = hourTicks(slots, width, each).map(({ index, lines }) =>
    svg.make(
      'text',
      { 'text-anchor': 'middle' },
      ...lines.map((text, i) => svg.make('tspan', { x: within(middle(index), lines, width), y: floor + 19 + 15 * i, text })),
    ),
  );
  const axis = svg.make('line', { class: 'axis', x1: LEFT, x2: width - RIGHT, y1: floor + 0.5, y2: floor + 0.5 });
  svg.show(element, svg.picture(width, HEIGHT, ...grid, back, ...bars, axis, ...bracket, ...labels));

  const model = {
    count: slots.length,
    at: (event) => indexAt(element, event, width, slots.length, LEFT, RIGHT),
    text: (index) => describe(slots[index], incomplete, names),
    place: (index) => ({ x: middle(index), y: y(slots[index].bytes_tx + slots[index].bytes_rx, slots[index]) }),
    highlight: (a, b) => {
      back.setAttribute('x', LEFT + (a ?? 0) * each);
      back.setAttribute('width', a === undefined ? 0 : (b - a + 1) * each);
    },
    choose: (a, b) => choose({ from: slots[a].from, to: slots[b].to }),
  };
  svg.explore(element, model, first, true);
}

/**
 * Draws all hours, `slots`, as one shape, and a frame around those within `frame` (from, to). `choose` is called
 * with the hours, from and to, that are clicked or dragged over.
 */
export function overview(element, { slots, frame }, choose) {
  const width = svg.widthOf(element);
  const each = width / Math.max(1, slots.length);
  const most = Math.max(1, mostOf(slots));
  const floor = OVERVIEW_HEIGHT - 1;
  const steps = slots.map(({ bytes_tx, bytes_rx }, i) => {
    const top = floor - (Number(bytes_tx + bytes_rx) / most) * (floor - 5);
    return `L${(i * each).toFixed(1)} ${top.toFixed(1)}h${each.toFixed(2)}`;
  });
  const [a, b] = [slots.findIndex(({ to }) => to > frame.from), slots.findLastIndex(({ from }) => from < frame.to)];
  const back = svg.make('rect', { class: 'highlight', y: 1, height: floor, width: 0 });
  const shape = svg.make('path', { class: 'all-hours', d: `M0 ${floor}${steps.join('')}L${width} ${floor}Z` });
  const x = Math.max(1, a * each);
  const place = { x, y: 1.5, width: Math.max(4, Math.min((b - a + 1) * each, width - x - 1)), height: OVERVIEW_HEIGHT - 3, rx: 3 };
  // The frame has a rim, to separate it from the shape.
  const frames = ['rim', 'frame'].map((name) => svg.make('rect', { class: name, ...place }));
  svg.show(element, svg.picture(width, OVERVIEW_HEIGHT, back, shape, ...frames));
  const model = {
    count: slots.length,
    at: (event) => indexAt(element, event, width, slots.length, 0, 0),
    text: (index) => [format.hours(slots[index])],
    place: (index) => ({ x: (index + 0.5) * each, y: 0 }),
    highlight: (first, last) => {
      back.setAttribute('x', (first ?? 0) * each);
      back.setAttribute('width', first === undefined ? 0 : (last - first + 1) * each);
    },
    choose: (first, last) => choose({ from: slots[first].from, to: slots[last].to }),
  };
  svg.explore(element, model, a, true);
}

/** The number of slots that fit into the overview. */
export function overviewRoom(element) {
  return Math.floor(svg.widthOf(element) / 2);
}

/** The bytes of the largest of `slots`. */
function mostOf(slots) {
  return Math.max(0, ...slots.map(({ bytes_tx, bytes_rx }) => Number(bytes_tx + bytes_rx)));
}

function indexAt(element, { clientX }, width, count, left, right) {
  const { x, width: shown } = element.getBoundingClientRect();
  const at = (clientX - x) * (width / shown) - left;
  if (count === 0) return -1;
  return Math.min(Math.max(Math.floor((at / (width - left - right)) * count), 0), count - 1);
}

/** The tooltip of a bar: a heading and lines, with all digits. */
function describe(slot, incomplete, names) {
  const line = (title, bytes) => `${title} ${format.amount(bytes, slot.to - slot.from)} (${format.exactBytes(bytes)})`;
  // The order from top to bottom is that of the bar.
  const ofApps = () => [...names.map(format.name), format.OTHERS].map((name, i) => line(format.cut(name, 40), slot.parts[i])).reverse();
  return [
    format.hours(slot),
    ...(names ? ofApps() : [line('Sent', slot.bytes_tx), line('Received', slot.bytes_rx)]),
    line('Total', slot.bytes_tx + slot.bytes_rx),
    ...(slot.to > incomplete ? [`Incomplete: ${slot.to - slot.from > 1 ? 'not all of its hours have' : 'this hour has not'} ended`] : []),
  ];
}

/** Keeps a label inside the drawing. */
function within(x, lines, width) {
  const half = Math.max(...lines.map((line) => line.length)) * 3.4;
  return Math.min(Math.max(x, half), width - half);
}

function hourTicks(slots, width, each) {
  if (slots.length === 0) return [];
  const px = slots.some(({ from }) => String(from).length > 5) ? DATE_PX : NUMBER_PX;
  const { step, at } = timeline.ticks(slots, Math.floor((width - LEFT - RIGHT) / px));
  // After a gap, two labels can be too close.
  const apart = at.filter((index, i) => i === 0 || (index - at[i - 1]) * each >= px * 0.7);
  return apart.map((index, i) => ({ index, lines: format.hourLabel(slots[index].from, step, slots[apart[i - 1]]?.from) }));
}

/** Three to six round numbers up to `most`; none if that is zero. */
function ticksOf(most) {
  if (most === 0) return [];
  const power = 10 ** Math.floor(Math.log10(most));
  const steps = [0.2, 0.5, 1, 2].map((factor) => Math.max(1, factor * power));
  const step = steps.find((step) => most / step <= 6) ?? power;
  const values = Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
  const texts = format.amountsAlike(values, step);
  return values.map((value, i) => ({ value, text: texts[i] })).slice(1);
}
