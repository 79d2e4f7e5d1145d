// The text of numbers, hours and names.

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB', 'ZB', 'YB'];

/** `value` in the largest unit in which it is at least one, and the index of that unit. */
function scaled(value) {
  let number = Number(value);
  let unit = 0;
  while (number >= 999.5 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return { number, unit };
}

/** 2832994977 is "2.83 GB". Takes a Number or a BigInt. */
export function bytes(value) {
  const { number, unit } = scaled(value);
  const digits = unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)}\u00a0${UNITS[unit]}`;
}

/** Whether amounts are shown as bits a second. */
let isRate = false;

/** Shows amounts as `bytes`, or as `bits` a second. */
export function useUnit(name) {
  isRate = name === 'bits';
}

/** The number that is drawn for `value` bytes in so many hours: bytes, or bits a second. */
export function plotted(value, hours) {
  return isRate ? (Number(value) * 8) / (Math.max(1, hours) * 3600) : Number(value);
}

/** `value` bytes in so many hours, as text in the chosen unit. */
export function amount(value, hours) {
  if (!isRate) return bytes(value);
  const { number, unit } = scaled(plotted(value, hours));
  const digits = number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)}\u00a0${rateUnit(unit)}`;
}

function rateUnit(unit) {
  return `${UNITS[unit].slice(0, -1)}bit/s`;
}

/** Marks for an axis of amounts, `step` apart: all in the unit of the last, with the same number of decimals. */
export function amountsAlike(values, step) {
  const { unit } = scaled(values.at(-1));
  const digits = step < 1000 ** unit ? 1 : 0;
  const name = isRate ? rateUnit(unit) : UNITS[unit];
  return values.map((value) => `${(value / 1000 ** unit).toFixed(digits)}\u00a0${name}`);
}

/** How much `after` is more than `before`: "+12%", "−3.0%", "×15", "new", "gone". */
export function change(after, before) {
  if (before === 0n) return after === 0n ? '' : 'new';
  if (after === 0n) return 'gone';
  const times = Number(after) / Number(before);
  if (times >= 10) return `×${Math.round(times).toLocaleString('en')}`;
  const share = 100 * (times - 1);
  const digits = Math.abs(share) < 9.95 ? 1 : 0;
  return `${share < 0 ? '\u2212' : '+'}${Math.abs(share).toFixed(digits)}%`;
}

/** The same in words, to be followed by what it is compared with: "12% more than", "as much as", "15 times as much as". */
export function more(after, before) {
  const times = Number(after) / Number(before);
  if (times >= 10) return `${Math.round(times).toLocaleString('en')} times as much as`;
  const share = 100 * Math.abs(times - 1);
  if (share < 0.5) return 'as much as';
  return `${share.toFixed(share < 9.95 ? 1 : 0)}% ${times > 1 ? 'more' : 'less'} than`;
}

/** A difference of bytes with its sign, in all digits. */
export function signed(value) {
  return `${value < 0n ? '\u2212' : '+'}${digits(value < 0n ? -value : value)}`;
}

/** All digits, in groups: "2,832,994,977". */
export function digits(value) {
  return value.toLocaleString('en');
}

/** "2,832,994,977 bytes". */
export function exactBytes(value) {
  return `${digits(value)} bytes`;
}

export function percent(part, whole) {
  const share = Number(whole) === 0 ? 0 : (100 * Number(part)) / Number(whole);
  return share > 0 && share < 0.1 ? '<0.1%' : `${share.toFixed(share < 9.95 ? 1 : 0)}%`;
}

/** From here on (the year 1981), an hour is shown as a date; below, as a plain number. */
const EPOCH_HOURS_MIN = 100_000;
/** The last hour of the year 9999. A larger number is not an hour since the epoch, but perhaps a second. */
const EPOCH_HOURS_MAX = Date.UTC(10_000, 0) / 3.6e6 - 1;

/** Whether this hour is shown as a date. */
export function isDated(number) {
  return number >= EPOCH_HOURS_MIN && number <= EPOCH_HOURS_MAX;
}

/** Whether times are shown in the browser's zone. */
let isLocal = false;

/** Shows times in `utc`, or in the `local` zone. */
export function useZone(name) {
  isLocal = name === 'local';
}

/** Milliseconds to add to a time in UTC so that its ISO form shows the chosen zone. */
function shiftOf(ms) {
  return isLocal ? -new Date(ms).getTimezoneOffset() * 60_000 : 0;
}

/** "UTC", or "UTC+5:30", the chosen zone at the time of an hour. */
export function zoneOf(number) {
  return zoneAt(number * 3.6e6);
}

function zoneAt(ms) {
  const minutes = shiftOf(ms) / 60_000;
  if (minutes === 0) return 'UTC';
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `UTC${minutes < 0 ? '\u2212' : '+'}${hours}${rest === 0 ? '' : `:${String(rest).padStart(2, '0')}`}`;
}

/** "2026-11-25 07:00", in the chosen zone, or "7". */
export function hour(number) {
  if (!isDated(number)) return String(number);
  const ms = number * 3.6e6;
  return new Date(ms + shiftOf(ms)).toISOString().slice(0, 16).replace('T', ' ');
}

/** The day of UTC that an hour is in: "2026-11-25". */
export function date(number) {
  return new Date(number * 3.6e6).toISOString().slice(0, 10);
}

/** The hour that `hour` wrote as a date with a time. */
export function parseHour(text) {
  const ms = isLocal ? Date.parse(text) : Date.parse(`${text}Z`);
  return Math.floor(ms / 3.6e6);
}

/** The hours from `from` to before `to`, in words. Dates are labelled with their zone. */
export function hours({ from, to }) {
  const last = to - 1;
  const zone = isDated(last) ? ` ${zoneOf(last)}` : '';
  const [begin, end] = [from, last].map(hour);
  if (from === last) return `${zone === '' ? 'hour ' : ''}${begin}${zone}`;
  const unit = isDated(from) ? '' : zone === '' ? 'hours ' : 'hour ';
  // If both have the same date, it is shown once.
  const isSameDay = isDated(from) && zone !== '' && zoneOf(from) === zoneOf(last) && begin.slice(0, 10) === end.slice(0, 10);
  // The clocks may change in between.
  const first = isDated(from) && zone !== '' && zoneOf(from) !== zoneOf(last) ? ` ${zoneOf(from)}` : '';
  return `${unit}${begin}${first} to ${isSameDay ? end.slice(11) : end}${zone}`;
}

/** How long a bar of the chart is: "hour", "6 hours", "day", "7 days". */
export function duration(hours) {
  const [count, unit] = hours % 24 === 0 ? [hours / 24, 'day'] : [hours, 'hour'];
  return count === 1 ? unit : `${count} ${unit}s`;
}

/** The time of day of `ms`, labelled with its zone. */
export function clock(ms) {
  return `${new Date(ms + shiftOf(ms)).toISOString().slice(11, 19)} ${zoneAt(ms)}`;
}

/**
 * `hour` for an axis with a label every `step` hours, in lines: the date only if it differs from that of the
 * previous label, `before`.
 */
export function hourLabel(number, step, before) {
  if (!isDated(number)) return [String(number)];
  // Days and months are those of UTC in any zone.
  const utc = new Date(number * 3.6e6).toISOString();
  if (step >= 730) return [utc.slice(0, 7)];
  if (step % 24 === 0) return [utc.slice(0, 10)];
  const [date, time] = hour(number).split(' ');
  return before !== undefined && hour(before).startsWith(date) ? [time] : [time, date];
}

/** For JSON.stringify, which does not support BigInt. */
export function withBigInt(_key, value) {
  return typeof value === 'bigint' ? String(value) : value;
}

/**
 * Characters of a name that are invisible, move the cursor or change the direction of text, and a backslash that would
 * look like one of our marks. Pictographs (the first group) may contain such characters.
 */
const UNSEEN =
  /(\p{Extended_Pictographic}[\ufe0f\p{Emoji_Modifier}]?(?:\u200d\p{Extended_Pictographic}[\ufe0f\p{Emoji_Modifier}]?)*)|[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]|\\(?=u\{)/gu;
/** Blanks at an end, next to each other, or other than the plain space. */
const BLANKS = /^ | $|(?<= ) |(?! )\p{Zs}/gu;

/** The text for the empty name, and for all applications that are not listed. */
const EMPTY = '(empty)';
export const OTHERS = 'all others';

/** A name as visible text. It is different for each name, and never that of `OTHERS`. */
export function name(text) {
  if (text === '') return EMPTY;
  const mark = (unseen) => `\\u{${unseen.codePointAt(0).toString(16)}}`;
  if (text === EMPTY || text === OTHERS) return mark(text) + text.slice(1);
  return text.replace(UNSEEN, (unseen, pictograph) => pictograph ?? mark(unseen)).replace(BLANKS, mark);
}

/** `text` in at most `max` characters: the middle is cut out, since names often differ at their ends. */
export function cut(text, max) {
  const chars = Array.from(text);
  if (chars.length <= max) return text;
  const head = Math.ceil((max - 1) / 2);
  return `${chars.slice(0, head).join('')}…${chars.slice(head + 1 - max).join('')}`;
}

/**
 * Labels of at most `max` characters for `names`. Where two would look alike, they show the part around the first
 * character that differs.
 */
export function labels(names, max) {
  const full = names.map(name);
  const short = full.map((text) => cut(text, max));
  return short.map((label, i) => {
    const alike = full.filter((text, j) => short[j] === label && text !== full[i]);
    if (alike.length === 0) return label;
    const chars = Array.from(full[i]);
    const differs = Math.min(...alike.map((other) => firstDifference(chars, Array.from(other))));
    const from = Math.max(1, Math.min(differs - 1, chars.length - max + 4));
    const head = chars.slice(0, Math.min(3, from)).join('');
    const rest = chars.slice(from, from + max - 5).join('');
    return `${head}…${rest}${from + max - 5 < chars.length ? '…' : ''}`;
  });
}

function firstDifference(a, b) {
  const found = a.findIndex((char, i) => char !== b[i]);
  return found < 0 ? a.length : found;
}
