// The timeline: the hours that have a place, the bar of each, and the positions of labels.

/** The longest gap that is drawn as empty hours, and the number of hours up to which gaps are drawn at all. */
const GAP_HOURS = 48;
const GAPS_HOURS_MAX = 20_000;
/** Hours per bar; from thirty days on, twice as many again and again. */
const STEPS = [1, 2, 3, 6, 12, 24, 48, 72, 168, 336, 720];
/** Hours, then months, between two labels. */
const LABEL_STEPS = [1, 2, 3, 6, 12, 24, 48, 72, 168, 336];
const LABEL_MONTHS = [1, 2, 3, 6, 12, 24, 60, 120];
/** The first Monday of 1970: weeks begin there. */
const MONDAY = 96;

/** The hours that have a place: those of `rows`, which ascend and have a `span`, and those in short gaps. */
export function places(rows) {
  const gap = rows.length > GAPS_HOURS_MAX ? 0 : GAP_HOURS;
  const all = [];
  for (const { hour, span } of rows) {
    const last = all.at(-1);
    if (last !== undefined && hour - last <= gap) for (let empty = last + 1; empty < hour; empty += 1) all.push(empty);
    for (let each = hour; each < hour + span; each += 1) all.push(each);
  }
  return all;
}

/** The index of the first place not before `hour`; the length if there is none. */
export function indexOf(places, hour) {
  let [low, high] = [0, places.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < hour) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * At most `max` + 1 bars for `places`: the hours of each (`from`, `to`), and their bytes from `sums`, a Map by the first
 * hour of a row. `step` is the number of hours in a whole bar; rows have spans of at most `least`, which divides it.
 */
export function slots(places, sums, max, least = 1) {
  let at = STEPS.findIndex((step) => places.length / step <= max && step % least === 0);
  if (at < 0) at = STEPS.length;
  for (; ; at += 1) {
    const step = STEPS[at] ?? STEPS.at(-1) * 2 ** (at - STEPS.length + 1);
    const key = keyOf(step);
    const starts = places.flatMap((hour, i) => (i === 0 || key(hour) !== key(places[i - 1]) ? [i] : []));
    // One more than `max`, since the first and the last may be partial.
    if (starts.length > max + 1 || step % least !== 0) continue;
    const bars = starts.map((start, i) => ({
      from: places[start],
      to: places[(starts[i + 1] ?? places.length) - 1] + 1,
      bytes_tx: 0n,
      bytes_rx: 0n,
    }));
    const byKey = new Map(bars.map((bar) => [key(bar.from), bar]));
    for (const [hour, row] of sums) {
      const bar = byKey.get(key(hour));
      if (!bar) continue;
      bar.bytes_tx += row.bytes_tx;
      bar.bytes_rx += row.bytes_rx;
      // A row of several hours may begin before the first place, or end after the last.
      bar.from = Math.min(bar.from, hour);
      bar.to = Math.max(bar.to, hour + (row.span ?? 1));
    }
    return { step, slots: bars };
  }
}

/** The bar that an hour belongs to, of those of `step` hours. */
function keyOf(step) {
  const shift = step % 168 === 0 ? MONDAY : 0;
  return (hour) => Math.floor((hour - shift) / step);
}

/**
 * The indices of at most `max` of `slots` to be labelled, and the hours between two labels. A label is at a
 * round hour, or at the first slot after one.
 */
export function ticks(slots, max) {
  const keys = [
    ...LABEL_STEPS.map((step) => [step, (hour) => Math.floor(hour / step)]),
    ...LABEL_MONTHS.map((months) => [months * 730, (hour) => Math.floor(month(hour) / months)]),
  ];
  for (const [step, key] of keys) {
    const isRound = ({ from }) => step >= 730 ? key(from) !== key(from - 1) : from % step === 0;
    const found = slots
      .map((slot, index) => ({ slot, index }))
      .filter(({ slot, index }) => (index === 0 ? isRound(slot) : key(slot.from) !== key(slots[index - 1].from)));
    if (found.length <= Math.max(1, max)) {
      // Where no slot is at a round hour, the first has the label.
      return { step, at: found.length > 0 ? found.map(({ index }) => index) : [0] };
    }
  }
  return { step: 24, at: [0] };
}

function month(hour) {
  const date = new Date(hour * 3.6e6);
  return date.getUTCFullYear() * 12 + date.getUTCMonth();
}
