// Which hours are looked at: the chart to click or drag over, and the same by keyboard.

import * as charts from './charts.js';
import * as dom from './dom.js';
import * as format from './format.js';

/** Most hours that are shown at a time: ten days. */
const SLOTS_MAX = 240;
/** Pause in typing after which an hour is chosen: 2 may become 20. */
const TYPING_MS = 300;

const at = (id) => document.getElementById(id);

/** All hours that there are, and which of them are chosen. */
let all = [];
let range = { from: 0, to: 1 };
/** Where the window of hours that are shown ends: at the newest, or before this one. */
let end = null;

export function newest() {
  return all.at(-1)?.hour;
}

export function chosen() {
  return range;
}

/** `choose` is told the hours that are chosen: from, and before which. Both null is the newest. */
export function start(choose) {
  const pick = dom.calm(TYPING_MS, (changed) => {
    const [from, last] = [Number(at('from-hour').value), Number(at('last-hour').value)];
    if (from <= last) choose({ from, to: last + 1 });
    else choose(changed === 'from' ? { from, to: from + 1 } : { from: last, to: last + 1 });
  });
  at('from-hour').onchange = () => pick('from');
  at('last-hour').onchange = () => pick('last');
  at('previous-hour').onclick = () => step(-1);
  at('next-hour').onclick = () => step(1);
  at('latest').onclick = () => choose({ from: null, to: null });
  at('all').onclick = () => choose({ from: 0, to: null });
  at('earlier').onclick = () => shift(-1);
  at('later').onclick = () => shift(1);

  /** The hours before or after those that are chosen, as many of them. */
  function step(direction) {
    const count = Math.max(1, indexOf(range.to) - indexOf(range.from));
    const first = direction < 0 ? Math.max(0, indexOf(range.from) - count) : indexOf(range.to);
    const hours = all.slice(first, direction < 0 ? indexOf(range.from) : first + count);
    if (hours.length > 0) choose({ from: hours[0].hour, to: hours.at(-1).hour + 1 });
  }

  /** Moves the window by half of its width. */
  function shift(direction) {
    const first = shown()[0];
    const next = (end ?? all.length) + direction * Math.ceil(SLOTS_MAX / 2);
    end = next >= all.length ? null : Math.max(next, Math.min(SLOTS_MAX, all.length));
    if (shown()[0] !== first) draw(choose);
  }
  show.choose = choose;
}

/** Shows `hours`, those that `chosen` names (from, to) as chosen. */
export function show(hours, chosen, view) {
  const moved = chosen.from !== range.from || chosen.to !== range.to;
  const changed = moved || JSON.stringify(hours, format.withBigInt) !== JSON.stringify(all, format.withBigInt);
  all = hours;
  range = chosen;
  const isLatest = view.from === null && view.to === null;
  at('latest').setAttribute('aria-pressed', String(isLatest));
  at('all').setAttribute('aria-pressed', String(range.from <= all[0].hour && view.to === null && !isLatest));
  if (!changed) return;
  if (moved) end = windowEnd();
  at('previous-hour').disabled = range.from <= all[0].hour;
  at('next-hour').disabled = range.to > all.at(-1).hour;
  draw(show.choose);
}

/** Of the first hour that is not before `hour`; behind the last where there is none. */
function indexOf(hour) {
  const found = all.findIndex((row) => row.hour >= hour);
  return found < 0 ? all.length : found;
}

/** The end of a window that shows what is chosen. */
function windowEnd() {
  if (all.length <= SLOTS_MAX) return null;
  const after = indexOf(range.to);
  if (all.length - after < SLOTS_MAX / 2) return null;
  return Math.max(after + Math.floor(SLOTS_MAX / 4), SLOTS_MAX);
}

/** The window itself. */
function shown() {
  const stop = Math.min(end ?? all.length, all.length);
  return all.slice(Math.max(0, stop - SLOTS_MAX), stop);
}

/** The hours to draw. Those without flows in between have a place too, unless they are too many. */
function slots(hours) {
  const [first, last] = [hours[0].hour, hours.at(-1).hour];
  if (last - first >= SLOTS_MAX) return hours;
  const known = new Map(hours.map((row) => [row.hour, row]));
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const hour = first + i;
    return known.get(hour) ?? { hour, flows: 0, bytes_tx: 0n, bytes_rx: 0n };
  });
}

function draw(choose) {
  const hours = shown();
  const pairs = hours.map(({ hour }) => [hour, format.hour(hour)]);
  // What is chosen is an option, also where it is not in the window or has no flows.
  const withHour = (hour) =>
    pairs.some(([value]) => value === hour)
      ? pairs
      : [...pairs, [hour, format.hour(hour)]].sort(([a], [b]) => a - b);
  dom.options(at('from-hour'), withHour(range.from), range.from);
  dom.options(at('last-hour'), withHour(range.to - 1), range.to - 1);

  at('earlier').hidden = at('later').hidden = all.length <= SLOTS_MAX;
  at('earlier').disabled = hours[0] === all[0];
  at('later').disabled = hours.at(-1) === all.at(-1);

  const peak = hours.reduce((a, b) => (b.bytes_tx + b.bytes_rx > a.bytes_tx + a.bytes_rx ? b : a));
  const dated = format.isDated(hours[0].hour) ? ', UTC' : '';
  at('hours-note').textContent =
    `all applications${dated}; most, ${format.bytes(peak.bytes_tx + peak.bytes_rx)}, ` +
    `in ${format.hours({ from: peak.hour, to: peak.hour + 1 })}`;
  at('hours-chart').setAttribute('aria-label', `Bytes by hour, ${format.hours({ from: hours[0].hour, to: hours.at(-1).hour + 1 })}`);
  charts.hours(at('hours-chart'), slots(hours), range, choose);
  table(hours);
}

function table(hours) {
  const cell = (value) => dom.make('td', { class: 'number', text: format.bytes(value), title: format.exactBytes(value) });
  const head = ['Hour', 'Sent', 'Received'].map((text, i) =>
    dom.make('th', { scope: 'col', text, ...(i > 0 && { class: 'number' }) }),
  );
  dom.replace(
    at('hours-table'),
    dom.make('thead', {}, dom.make('tr', {}, ...head)),
    dom.make('tbody', {}, ...hours.map(({ hour, bytes_tx, bytes_rx }) =>
      dom.make('tr', {}, dom.make('th', { scope: 'row', text: format.hour(hour) }), cell(bytes_tx), cell(bytes_rx)),
    )),
  );
}
