// The hours that hold flows, with their sums: finely where that matters, otherwise in days or in thirty days, so that years
// of hours are a few thousand rows.

import * as api from './api.js';

/** Hours of the longest spans; hours up to which all rows are single hours, or days. */
const BLOCK = 720;
const FINE_HOURS_MAX = 2_500;
const DAYS_HOURS_MAX = 60_000;

/** The responses that `load` was made from, and its result. */
let parts = [];
let last = [];

/**
 * The rows of all hours that hold flows, ascending: `hour`, the first of `span` hours, and their sums. Those of the newest
 * thirty to sixty days are single hours. The same array as long as nothing changes.
 */
export async function load(signal) {
  const blocks = await api.hours({ step: BLOCK }, signal);
  if (blocks === parts[0]) return last;
  if (blocks.length === 0) return keep([blocks], []);
  const step = stepOf(blocks.length * BLOCK);
  const tailFrom = step === 1 ? blocks[0].hour : newestOf(blocks);
  const [coarse, tail] = await Promise.all([
    step === 1 ? [] : step === BLOCK ? blocks : api.hours({ step }, signal),
    api.hours(step === 1 ? {} : { from: tailFrom }, signal),
  ]);
  const before = coarse.filter(({ hour }) => hour < tailFrom);
  return keep([blocks, coarse, tail], [...spans(before, step), ...spans(tail, 1)]);
}

/** The first hour of the last two blocks that are not in the future: later hours are mistakes. */
function newestOf(blocks) {
  const now = Math.floor(api.now() / 3.6e6);
  const found = blocks.findLastIndex(({ hour }) => hour <= now);
  return blocks[Math.max(0, (found < 0 ? blocks.length - 1 : found) - 1)].hour;
}

function keep(now, rows) {
  const isSame = now.length === parts.length && now.every((part, i) => part === parts[i] || part.length + parts[i].length === 0);
  parts = now;
  if (!isSame) last = rows;
  return last;
}

function stepOf(hours) {
  if (hours <= FINE_HOURS_MAX) return 1;
  return hours <= DAYS_HOURS_MAX ? 24 : BLOCK;
}

function spans(rows, span) {
  return rows.map((row) => ({ ...row, span }));
}

/** The number of flows in all hours. */
export function flows(rows) {
  return rows.reduce((sum, { flows }) => sum + flows, 0);
}

/** The rows that have some of the hours from `from` to before `to`. */
export function within(rows, { from, to }) {
  return rows.filter(({ hour, span }) => hour + span > from && hour < to);
}

/** The smallest step in which flows of these hours can be requested: more than 1 where only longer sums are kept. */
export function finest(rows, range) {
  return Math.max(1, ...within(rows, range).map(({ finest_step = 1 }) => finest_step));
}

/** The hours from `from` to before `to`, extended to whole spans where only those are kept. */
export function aligned(rows, { from, to }) {
  for (const step of [24, BLOCK]) {
    const gone = rows.findLast(({ finest_step = 1 }) => finest_step >= step);
    if (!gone || from >= gone.hour + gone.span) continue;
    const behind = roundUp(gone.hour + gone.span, step);
    from -= from % step;
    if (to < behind) to = roundUp(to, step);
  }
  return { from, to };
}

function roundUp(hour, step) {
  return hour + ((step - (hour % step)) % step);
}

/** The hours from `from` to before `to`, extended to whole steps. */
export function inWholeSteps({ from, to }, step) {
  return { from: from - (from % step), to: roundUp(to, step) };
}

/** The same as `within`, in spans that bars of `step` hours can be made of: out of `rows`, or from the service. */
export async function inSteps(rows, { from, to, step }, signal) {
  const some = within(rows, { from, to });
  if (some.every(({ span }) => step % span === 0)) return some;
  return spans(await api.hours({ from, to, step }, signal), step);
}
