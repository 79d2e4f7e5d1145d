// How numbers, hours and names look.

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB', 'ZB', 'YB'];

/** 2832994977 is "2.83 GB". Takes a Number or a BigInt. */
export function bytes(value) {
  let number = Number(value);
  let unit = 0;
  while (number >= 999.5 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)}\u00a0${UNITS[unit]}`;
}

/** All digits, in groups: "2,832,994,977 bytes". */
export function exactBytes(value) {
  return `${value.toLocaleString('en')} bytes`;
}

export function percent(part, whole) {
  const share = Number(whole) === 0 ? 0 : (100 * Number(part)) / Number(whole);
  return share > 0 && share < 0.1 ? '<0.1%' : `${share.toFixed(share < 9.95 ? 1 : 0)}%`;
}

/** From here on an hour is taken for one since the epoch (the year 1981); below, for a plain number. */
const EPOCH_HOURS_MIN = 100_000;
/** The last that a Date can hold. */
const EPOCH_HOURS_MAX = 8.64e15 / 3.6e6;

/** "2026-11-25 07:00", in UTC, or "7". */
export function hour(number) {
  if (number < EPOCH_HOURS_MIN || number > EPOCH_HOURS_MAX) return String(number);
  // From the year 10000 on, there is a sign before it.
  const [date, time] = new Date(number * 3.6e6).toISOString().split('T');
  return `${date} ${time.slice(0, 5)}`;
}

/** Whether hours of these numbers are shown as dates. */
export function isDated(number) {
  return hour(number) !== String(number);
}

/** `hour` for an axis with a label every `step` hours: the date only where it is another than `before`. */
export function hourLabel(number, step, before) {
  if (!isDated(number)) return String(number);
  const [date, time] = hour(number).split(' ');
  if (step % 24 === 0) return date;
  return before !== undefined && hour(before).startsWith(date) ? time : `${time}<br>${date}`;
}

/** The hours from `from` to before `to`, in words. */
export function hours({ from, to }) {
  const unit = isDated(from) ? '' : 'hour ';
  if (to === from + 1) return unit + hour(from);
  return `${unit && 'hours '}${hour(from)} to ${hour(to - 1)}${isDated(from) ? ' UTC' : ''}`;
}

/** For JSON.stringify, which knows no BigInt. */
export function withBigInt(_key, value) {
  return typeof value === 'bigint' ? String(value) : value;
}

/** A name as text that can be seen: nothing that is empty, moves the cursor or turns the line around. */
export function name(text) {
  if (text === '') return '(empty)';
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (unseen) => `\\u{${unseen.charCodeAt(0).toString(16)}}`,
  );
}

/** The same, cut, for a label of Plotly's, which takes `<b>` and `&lt;` for markup. */
export function label(text, charsMax) {
  const chars = Array.from(name(text));
  const cut = chars.length > charsMax ? `${chars.slice(0, charsMax - 1).join('')}…` : chars.join('');
  return cut.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}
