// Traffic by hour: the chart of a part of the time, the overview of all of it, and the same as a table.

import * as bars from './bars.js';
import * as dom from './dom.js';
import * as format from './format.js';
import * as timeline from './timeline.js';

/** Rows of the table. */
const ROWS_MAX = 1_000;

const at = (id) => document.getElementById(id);

/** All hours that hold flows, the places of all hours that are drawn, and which hours are chosen. */
let all = [];
let places = [];
let range = { from: 0, to: 1 };
/** The first hour that is not over. */
let open = Infinity;
/** What the bars are of: all flows, or those that the page is narrowed to. */
let narrowed = false;
/** The part of the time that is to be seen, as from and to; null: the one that suits what is chosen. */
let frame = null;
/** The sums that are drawn, by hour. */
let sums = new Map();

let choose;
let redraw;

/**
 * `change` is told which hours are chosen; `fetch` sees to it that `draw` is called with the sums of the hours
 * that are to be seen.
 */
export function start(change, fetch) {
  choose = change;
  redraw = fetch;
  at('earlier').onclick = () => shift(-1);
  at('later').onclick = () => shift(1);
}

/** Shows `hours`, all that there are, those in `chosen` (from, to) as chosen; from `first` on they are not over. */
export function show(hours, chosen, first, isNarrowed) {
  if (hours !== all) {
    const seen = frame && placesIn(frame);
    const isAtEnd = frame && seen.stop === places.length;
    places = timeline.places(hours);
    // What shows the newest hour follows it.
    if (isAtEnd) frame = seen.start === 0 ? null : between(places.length - (seen.stop - seen.start), places.length);
  }
  if (frame && placesIn(frame).start === placesIn(frame).stop) frame = null;
  all = hours;
  open = first;
  narrowed = isNarrowed;
  if (chosen.from !== range.from || chosen.to !== range.to) {
    range = chosen;
    // The chart stays where it is as long as each hour has a bar there, and what is chosen is among them.
    const isSeen = frame && chosen.from >= frame.from && chosen.to <= frame.to;
    const { start, stop } = placesIn(frame ?? range);
    if (!isSeen || stop - start > room()) frame = null;
  }
  overview();
}

/** The hours to be seen, as rows of /hours. */
export function seen() {
  const { from, to } = part();
  return all.filter(({ hour }) => hour >= from && hour < to);
}

/** Draws the hours that are to be seen with these sums, a Map by hour. */
export function draw(given) {
  sums = given;
  const { start: a, stop: b } = placesIn(part());
  const { step, slots } = timeline.slots(places.slice(a, b), sums, room());
  bars.hours(at('hours-chart'), { slots, chosen: range, open }, choose);
  dom.enable([at('earlier'), a > 0], [at('later'), b < places.length]);
  at('earlier').hidden = at('later').hidden = a === 0 && b === places.length;

  const total = ({ bytes_tx, bytes_rx }) => bytes_tx + bytes_rx;
  const most = slots.reduce((a, b) => (total(b) > total(a) ? b : a));
  const what = narrowed ? 'flows that match the filters' : 'all applications';
  const each = step > 1 ? `, one bar is ${format.duration(step)}` : '';
  const isOpen = slots.at(-1).to > open ? '; the last bar is incomplete' : '';
  at('hours-note').textContent =
    `${what}, ${format.hours({ from: slots[0].from, to: slots.at(-1).to })}${each}; ` +
    `most, ${format.bytes(total(most))}, in ${format.hours(most)}${isOpen}`;
  table(slots);
}

/** Draws again, as wide as there is room. */
export function resize() {
  if (all.length === 0) return;
  frame = null;
  overview();
  redraw();
}

function room() {
  return bars.room(at('hours-chart'));
}

/** Which places are from `from` on and before `to`. */
function placesIn({ from, to }) {
  return { start: timeline.indexOf(places, from), stop: timeline.indexOf(places, to) };
}

/** The places from `start` to before `stop`, as hours. */
function between(start, stop) {
  return { from: places[start], to: places[stop - 1] + 1 };
}

/** `count` places with those from `start` to before `stop` in the middle, or as near to it as the ends allow. */
function around(start, stop, count) {
  const first = Math.max(0, Math.min(Math.round((start + stop - count) / 2), places.length - count));
  return between(first, Math.min(first + count, places.length));
}

/** The part of the time to be seen. */
function part() {
  if (frame) return frame;
  const { start, stop } = placesIn(range);
  frame = stop - start >= room() ? between(start, stop) : around(start, stop, room());
  return frame;
}

/** Has another part seen. */
function move(other) {
  frame = other;
  overview();
  redraw();
}

/** Moves the part that is seen by half of its width. */
function shift(direction) {
  const { start, stop } = placesIn(part());
  const by = direction * Math.max(1, Math.round((stop - start) / 2));
  move(around(start + by, stop + by, stop - start));
}

/** All of the time, where it is more than there is room for; what is clicked or dragged over there is seen. */
function overview() {
  const chart = at('hours-overview');
  chart.hidden = places.length <= room();
  if (chart.hidden) return;
  const totals = new Map(all.map((row) => [row.hour, row]));
  const { slots } = timeline.slots(places, totals, bars.overviewRoom(chart));
  bars.overview(chart, { slots, frame: part() }, (meant) => {
    const { start, stop } = placesIn(meant);
    // A click is about a place, and shows as many hours around it as have a bar each.
    move(stop - start > Math.max(room() / 2, slots[0].to - slots[0].from) ? between(start, stop) : around(start, stop, room()));
  });
}

function table(slots) {
  const cell = (value) => dom.make('td', { class: 'number', text: format.digits(value) });
  const rows = slots.slice(-ROWS_MAX).map((slot) =>
    dom.make('tr', {}, dom.make('th', { scope: 'row', text: format.hours(slot) }), cell(slot.bytes_tx), cell(slot.bytes_rx)),
  );
  dom.table(at('hours-table'), ['Hours', 'Sent, bytes', 'Received, bytes'], 1, rows);
}
