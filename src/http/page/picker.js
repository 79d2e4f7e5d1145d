// The hours that are shown: buttons, and fields for the first and the last hour.

import * as dom from './dom.js';
import * as format from './format.js';
import { indexOf } from './timeline.js';

/** Pause in typing after which an hour is chosen: 2 may become 20. */
const TYPING_MS = 700;

const at = (id) => document.getElementById(id);
const FIELDS = ['from-hour', 'last-hour'];
/** An hour that is shown as a date, before all others. */
const FIRST_DATED = 100_024;
const TITLES = { 'from-hour': 'From', 'last-hour': 'To' };

/** The hours that hold flows, and the ones that are chosen. */
let all = [];
/** The rows that they are from, some of which stand for several hours. */
let rows = [];
let range = { from: 0, to: 1 };
let choose;

/** `change` is called with the hours that are chosen, from and to (not included). Both null: the latest. */
export function start(change) {
  choose = change;
  const pick = dom.calm(TYPING_MS, take);
  for (const id of FIELDS) {
    at(id).oninput = () => {
      complain();
      pick(id);
    };
    at(id).onchange = () => pick(id);
    at(id).onkeydown = ({ key }) => {
      if (key !== 'Enter') return;
      take(id);
      if (hourIn(id) === null) complain(id);
    };
    at(id).onblur = () => {
      // Text that is not an hour is replaced; its error stays.
      if (hourIn(id) !== null) return;
      complain(id);
      fill(id);
    };
  }
  at('previous-hour').onclick = () => step(-1);
  at('next-hour').onclick = () => step(1);
  at('latest').onclick = () => choose({ from: null, to: null });
  at('all').onclick = () => choose({ from: 0, to: null });
  for (const button of document.querySelectorAll('[data-last]')) {
    button.onclick = () => choose({ from: null, to: null, last: Number(button.dataset.last) });
  }
}

/** Shows `chosen` (from, to), out of `hours`. */
export function show(hours, chosen, view) {
  all = hours.map(({ hour }) => hour);
  rows = hours;
  const isOther = chosen.from !== range.from || chosen.to !== range.to;
  range = chosen;
  const isLatest = view.from === null && view.to === null && view.last === null;
  for (const button of document.querySelectorAll('[data-last]')) {
    button.setAttribute('aria-pressed', String(view.last === Number(button.dataset.last)));
  }
  at('latest').setAttribute('aria-pressed', String(isLatest));
  at('all').setAttribute('aria-pressed', String(view.from !== null && range.from <= all[0] && view.to === null));
  dom.enable([at('previous-hour'), range.from > all[0]], [at('next-hour'), range.to <= all.at(-1)]);
  at('zone').hidden = !format.isDated(range.to - 1);
  at('zone').textContent = format.zoneOf(range.to - 1);
  if (isOther) complain();
  // Do not interrupt typing, unless other hours have been chosen.
  for (const id of FIELDS) if (isOther || document.activeElement !== at(id)) fill(id);
}

/** Sets a field to its hour, as a date or as a plain number. */
function fill(id) {
  const field = at(id);
  const hour = id === 'from-hour' ? range.from : range.to - 1;
  const isDated = format.isDated(hour);
  const text = (number) => (isDated ? format.hour(number).replace(' ', 'T') : String(number));
  // A date cannot be bounded by a plain number, nor a number by a date.
  const bound = (end, of) => (format.isDated(end) === isDated ? text(of(end, hour)) : '');
  field.type = isDated ? 'datetime-local' : 'number';
  field.step = isDated ? '3600' : '1';
  // The steps of a date begin with it: some zones are half an hour off.
  field.min = bound(all[0], Math.min) || (isDated ? text(FIRST_DATED) : '');
  field.max = bound(all.at(-1), Math.max);
  if (field.value !== text(hour)) field.value = text(hour);
  field.filled = field.value;
}

/** The hour in a field; null if there is none, or if it is outside the stored hours. */
function hourIn(id) {
  const field = at(id);
  // Where clocks are set back, two hours have the same text.
  if (field.value === field.filled) return id === 'from-hour' ? range.from : range.to - 1;
  if (field.value === '' || !field.checkValidity()) return null;
  return field.type === 'number' ? Number(field.value) : format.parseHour(field.value);
}

/** Shows beside the fields the error of one of them; without an `id`, removes it. */
function complain(id) {
  for (const field of FIELDS) at(field).setAttribute('aria-invalid', String(field === id));
  at('range-problem').textContent = id ? `${TITLES[id]} ${at(id).value.replace('T', ' ')}: ${reason(at(id))}`.replace(' :', ':') : '';
}

function reason({ validity, type }) {
  if (validity.rangeOverflow) return `the newest hour is ${format.hour(all.at(-1))}`;
  if (validity.rangeUnderflow) return `the first hour is ${format.hour(all[0])}`;
  if (validity.stepMismatch) return type === 'number' ? 'hours are whole numbers' : `hours begin at minute ${format.hour(range.from).slice(-2)}`;
  return 'not an hour';
}

function take(id) {
  const [from, last] = FIELDS.map(hourIn);
  // An incomplete date has no value.
  const wrong = FIELDS.find((field) => at(field).value !== '' && !at(field).checkValidity());
  if (wrong) complain(wrong);
  if (from === null || last === null || (from === range.from && last === range.to - 1)) return;
  if (from <= last) choose({ from, to: last + 1 });
  else choose(id === 'from-hour' ? { from, to: from + 1 } : { from: last, to: last + 1 });
}

/** Chooses as many hours before or after the chosen ones. */
function step(direction) {
  const isNear = ({ hour, span }) => span > 1 && hour + span > range.from - (range.to - range.from) && hour < range.to + (range.to - range.from);
  if (rows.some(isNear)) {
    const by = direction * (range.to - range.from);
    choose({ from: Math.max(all[0], range.from + by), to: Math.max(all[0] + 1, Math.min(range.to + by, all.at(-1) + 1)) });
    return;
  }
  const [start, stop] = [indexOf(all, range.from), indexOf(all, range.to)];
  const count = Math.max(1, stop - start);
  const first = direction < 0 ? Math.max(0, start - count) : stop;
  const hours = all.slice(first, direction < 0 ? start : first + count);
  if (hours.length > 0) choose({ from: hours[0], to: hours.at(-1) + 1 });
}
