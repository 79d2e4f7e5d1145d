// Traffic by hour: the chart of a part of the timeline, the overview of all of it, and a table.

import * as bars from './bars.js';
import * as dom from './dom.js';
import * as format from './format.js';
import * as ledger from './ledger.js';
import * as timeline from './timeline.js';

/** Rows of the table. */
const ROWS_MAX = 1_000;
/** Longer names are shortened. */
const LEGEND_CHARS_MAX = 28;

const at = (id) => document.getElementById(id);

/** All rows of hours that hold flows, the places of the timeline, and the hours that are chosen. */
let all = [];
let places = [];
let range = { from: 0, to: 1 };
/** The first incomplete hour. */
let incomplete = Infinity;
/** Whether the bars have only the flows that match the filters. */
let isFiltered = false;
/** The part of the timeline that the chart shows, as from and to; null: the default for the chosen hours. */
let frame = null;
/** The sums that are drawn, by hour, and those of applications, if bars consist of them. */
let sums = new Map();
let apps = null;
/** The state that the overview was drawn from. */
let overviewDrawn = [];

let choose;
let redraw;
let about;

/**
 * `change` is called with the hours that are chosen; `fetch` fetches the sums of `frameAndStep()` and calls `draw`; `open` makes
 * the page about an application.
 */
export function start(change, fetch, open) {
  choose = change;
  redraw = fetch;
  about = open;
  at('earlier').onclick = () => shift(-1);
  at('later').onclick = () => shift(1);
}

/** Takes `hours`, rows of all that hold flows, and the `chosen` ones (from, to); those from `first` on are incomplete. */
export function show(hours, chosen, first, filtered) {
  if (hours !== all) {
    const seen = frame && placesIn(frame);
    const isAtEnd = frame && seen.stop === places.length;
    places = timeline.places(hours);
    // A chart that shows the newest hour follows it.
    if (isAtEnd) frame = seen.start === 0 ? null : between(places.length - (seen.stop - seen.start), places.length);
  }
  if (frame && placesIn(frame).start === placesIn(frame).stop) frame = null;
  all = hours;
  incomplete = first;
  isFiltered = filtered;
  if (chosen.from !== range.from || chosen.to !== range.to) {
    range = chosen;
    // The chart does not move if the chosen hours are in it and each hour has a bar of its own.
    const isSeen = frame && chosen.from >= frame.from && chosen.to <= frame.to;
    const { start, stop } = placesIn(frame ?? range);
    if (!isSeen || stop - start > room()) frame = null;
  }
  overview();
}

/** The hours of the chart, and the step in which to request their sums. */
export function frameAndStep() {
  const { start, stop } = placesIn(part());
  const { step } = timeline.slots(places.slice(start, stop), new Map(), room(), ledger.finest(all, part()));
  // Weeks begin on a Monday, so they are added up from days.
  const request = step % 720 === 0 ? 720 : step % 24 === 0 ? 24 : step;
  return { ...ledger.inWholeSteps(part(), request), step: request };
}

/**
 * Draws the chart with these sums, a Map by hour. With `ofApps` (field, names, rows, step), bars consist of the bytes of
 * applications.
 */
export function draw(given, ofApps) {
  sums = given;
  apps = ofApps;
  const { start: a, stop: b } = placesIn(part());
  // The sums may be in longer steps than the bars would be, when the width changes.
  const spans = [...sums.values()].map(({ span = 1 }) => span);
  const least = Math.max(ledger.finest(all, part()), apps?.step ?? 1, ...spans);
  const { step, slots } = timeline.slots(places.slice(a, b), sums, room(), least);
  if (apps) stack(slots);
  bars.hours(at('hours-chart'), { slots, chosen: range, incomplete, names: apps?.names }, choose);
  legend();
  dom.enable([at('earlier'), a > 0], [at('later'), b < places.length]);
  at('earlier').hidden = at('later').hidden = a === 0 && b === places.length;

  const total = ({ bytes_tx, bytes_rx }) => bytes_tx + bytes_rx;
  const most = slots.reduce((a, b) => (total(b) > total(a) ? b : a));
  const what = isFiltered ? 'flows that match the filters' : 'all applications';
  const days = step % 24 === 0 && format.isDated(slots[0].from) && format.zoneOf(slots[0].from) !== 'UTC' ? ', from 00:00 UTC' : '';
  const each = step > 1 ? `, one bar is ${format.duration(step)}${days}` : '';
  const end = slots.at(-1).to > incomplete ? '; the last bar is incomplete' : '';
  const when = `${format.hours({ from: slots[0].from, to: slots.at(-1).to })}${each}`;
  const highest = total(most) > 0n ? `most, ${format.amount(total(most), most.to - most.from)}, in ${format.hours(most)}` : 'no bytes';
  const isNone = sums.size > 0 && [...sums.values()].every(({ isNone }) => isNone);
  at('hours-note').textContent = isNone ? `no flows match, ${when}` : `${what}, ${when}; ${highest}${end}`;
  table(slots);
}

/** Draws again at a new width: as many hours as fit, or the same ones (`isFixed`). */
export function resize(isFixed) {
  overview();
  if (isFixed) {
    draw(sums, apps);
    return;
  }
  frame = null;
  redraw();
}

/** Adds to each slot its `parts`: the bytes of each application, and those of all others. */
function stack(slots) {
  const { field, names, rows, step } = apps;
  const begins = slots.map(({ from }) => from - (from % step));
  slots.forEach((slot) => (slot.parts = [...names.map(() => 0n), slot.bytes_tx + slot.bytes_rx]));
  for (const row of rows) {
    const index = timeline.indexOf(begins, row.hour + 1) - 1;
    if (index < 0) continue;
    const { parts } = slots[index];
    const bytes = row.bytes_tx + row.bytes_rx;
    parts[names.indexOf(row[field])] += bytes;
    // The two responses may be of different moments.
    parts[names.length] = parts[names.length] > bytes ? parts[names.length] - bytes : 0n;
  }
}

/** The names of the parts of a bar; a click makes the page about an application. */
function legend() {
  const key = (hue) => dom.make('span', { class: `key ${hue}`, 'aria-hidden': 'true' });
  const labels = apps ? format.labels(apps.names, LEGEND_CHARS_MAX) : [];
  const items = labels.map((label, i) => {
    const name = apps.names[i];
    const button = dom.make('button', { type: 'button', 'data-key': name, title: `All about ${format.name(name)}`, onclick: () => about(name) });
    button.append(key(`hue-${i}`), dom.make('bdi', { text: label }));
    return dom.make('li', {}, button);
  });
  if (apps) items.push(dom.make('li', { class: 'others' }, key('hue-none'), format.OTHERS));
  at('hours-legend').hidden = !apps;
  dom.replace(at('hours-legend'), ...items);
}

function room() {
  return bars.room(at('hours-chart'));
}

/** The places from `from` (inclusive) to `to` (exclusive). */
function placesIn({ from, to }) {
  return { start: timeline.indexOf(places, from), stop: timeline.indexOf(places, to) };
}

/** The places from `start` to before `stop`, as hours. */
function between(start, stop) {
  return { from: places[start], to: places[stop - 1] + 1 };
}

/** `count` places around those from `start` to before `stop`, centred as far as possible. */
function around(start, stop, count) {
  const first = Math.max(0, Math.min(Math.round((start + stop - count) / 2), places.length - count));
  return between(first, Math.min(first + count, places.length));
}

/** The part of the timeline that the chart shows. */
function part() {
  if (frame) return frame;
  const { start, stop } = placesIn(range);
  frame = stop - start >= room() ? between(start, stop) : around(start, stop, room());
  return frame;
}

/** Shows another part. */
function move(other) {
  frame = other;
  overview();
  redraw();
}

/** Moves by half of the width. */
function shift(direction) {
  const { start, stop } = placesIn(part());
  const by = direction * Math.max(1, Math.round((stop - start) / 2));
  move(around(start + by, stop + by, stop - start));
}

/** Draws the overview, if the chart has no room for all hours; a click or drag in it moves the chart there. */
function overview() {
  const chart = at('hours-overview');
  chart.hidden = at('overview-note').hidden = places.length <= room();
  if (chart.hidden) return;
  const state = [all, part().from, part().to, chart.clientWidth];
  if (state.every((one, i) => one === overviewDrawn[i])) return;
  overviewDrawn = state;
  const totals = new Map(all.map((row) => [row.hour, row]));
  const least = Math.max(...all.map(({ span }) => span));
  const { slots } = timeline.slots(places, totals, bars.overviewRoom(chart), least);
  bars.overview(chart, { slots, frame: part() }, (picked) => {
    const { start, stop } = placesIn(picked);
    // A click shows the hours around it, one bar each; a drag shows the hours that it covers.
    move(stop - start > Math.max(room() / 2, slots[0].to - slots[0].from) ? between(start, stop) : around(start, stop, room()));
  });
}

function table(slots) {
  const cell = (value) => dom.make('td', { class: 'number', text: format.digits(value) });
  const rows = slots.slice(-ROWS_MAX).map(({ from, to, bytes_tx, bytes_rx }) => {
    const text = format.hours({ from, to });
    const button = dom.make('button', { type: 'button', text, 'data-key': String(from), onclick: () => choose({ from, to }) });
    return dom.make('tr', {}, dom.make('th', { scope: 'row' }, button), cell(bytes_tx), cell(bytes_rx));
  });
  dom.table(at('hours-table'), ['Hours', 'Sent, bytes', 'Received, bytes'], 1, rows);
}
