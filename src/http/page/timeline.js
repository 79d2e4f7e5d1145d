// Hours side by side: which have a place, which bar they are in, and where the labels are.

/** Longest stretch of hours without flows that has places, and most hours for which there are such. */
const GAP_HOURS = 48;
const GAPS_HOURS_MAX = 20_000;
/** How many hours a bar may have. */
const STEPS = [1, 2, 3, 6, 12, 24, 48, 72, 168, 336, 672];
/** Hours between two labels. From a month on, it is months. */
const LABEL_STEPS = [1, 2, 3, 6, 12, 24, 48, 72, 168, 336];
const LABEL_MONTHS = [1, 2, 3, 6, 12, 24, 60, 120];
/** Weeks begin on Monday: that of the first week of 1970. */
const MONDAY = 96;

/** The hours that have a place: those in `hours`, ascending, and those of short gaps between them. */
export function places(hours) {
  const gap = hours.length > GAPS_HOURS_MAX ? 0 : GAP_HOURS;
  const all = [];
  for (const { hour } of hours) {
    const last = all.at(-1);
    if (last !== undefined && hour - last <= gap) for (let empty = last + 1; empty < hour; empty += 1) all.push(empty);
    all.push(hour);
  }
  return all;
}

/** Of the first place that is not before `hour`; behind the last where there is none. */
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
 * The bars for `places`, at most about `max` of them: the hours that each has (`from`, `to`), and the `sums` of
 * these, a Map by hour. `step` is how many hours a whole bar has.
 */
export function slots(places, sums, max) {
  let at = STEPS.findIndex((step) => places.length / step <= max);
  if (at < 0) at = STEPS.length;
  for (; ; at += 1) {
    const step = STEPS[at] ?? STEPS.at(-1) * 2 ** (at - STEPS.length + 1);
    const starts = firsts(places, step);
    // One more than there is room for where neither end is a whole bar.
    if (starts.length > max + 1) continue;
    const bars = starts.map((start, i) => add(places.slice(start, starts[i + 1]), sums));
    return { step, slots: bars };
  }
}

/** Where a new bar of `step` hours begins. */
function firsts(places, step) {
  const shift = step % 168 === 0 ? MONDAY : 0;
  const key = (hour) => Math.floor((hour - shift) / step);
  const starts = [];
  places.forEach((hour, i) => {
    if (i === 0 || key(hour) !== key(places[i - 1])) starts.push(i);
  });
  return starts;
}

function add(hours, sums) {
  let [bytes_tx, bytes_rx] = [0n, 0n];
  for (const hour of hours) {
    const row = sums.get(hour);
    if (!row) continue;
    bytes_tx += row.bytes_tx;
    bytes_rx += row.bytes_rx;
  }
  return { from: hours[0], to: hours.at(-1) + 1, bytes_tx, bytes_rx };
}

/**
 * At most `max` of `slots` that have a label, by index, and the hours between two labels. A label is where
 * a round hour is, or the first after it.
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
      // A single bar that is at no round hour has a label too.
      return { step, at: found.length > 0 ? found.map(({ index }) => index) : [0] };
    }
  }
  return { step: 24, at: [0] };
}

function month(hour) {
  const date = new Date(hour * 3.6e6);
  return date.getUTCFullYear() * 12 + date.getUTCMonth();
}
