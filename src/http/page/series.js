// The sums of each hour for the flows that match the filters.

import * as api from './api.js';
import * as views from './view.js';

/** The filters that `known` belongs to; by hour, the sums, and the state of the hour when they were fetched. */
let filters = '';
const known = new Map();

/**
 * The sums of `hours`, rows of /hours, for the flows that match `view`, as a Map by hour; `isNone` if no flow matches.
 * Fetches only the hours that have changed since they were fetched last.
 */
export async function sums(view, hours, signal) {
  if (!views.isFiltered(view)) return new Map(hours.map((row) => [row.hour, row]));
  const now = String(views.narrow(new URLSearchParams(), view));
  if (now !== filters) known.clear();
  filters = now;
  const state = ({ flows, bytes_tx, bytes_rx }) => `${flows} ${bytes_tx} ${bytes_rx}`;
  const stale = hours.filter((row) => known.get(row.hour)?.state !== state(row));
  if (stale.length > 0) {
    const params = new URLSearchParams({ from: stale[0].hour, to: stale.at(-1).hour + 1, group_by: 'hour' });
    const { rows } = await api.flows(views.narrow(params, view), signal);
    // The filters may have changed meanwhile.
    if (now !== filters) return new Map();
    const found = new Map(rows.map((row) => [row.hour, row]));
    for (const row of hours) {
      if (row.hour < stale[0].hour || row.hour > stale.at(-1).hour) continue;
      const { bytes_tx = 0n, bytes_rx = 0n } = found.get(row.hour) ?? {};
      known.set(row.hour, { state: state(row), bytes_tx, bytes_rx, isNone: !found.has(row.hour) });
    }
  }
  return new Map(hours.map(({ hour }) => [hour, known.get(hour)]));
}
