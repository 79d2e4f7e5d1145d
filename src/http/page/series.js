// The sums of each hour for the flows that match the filters, and those of the applications with most bytes.

import * as api from './api.js';
import * as views from './view.js';

/** The filters that `known` belongs to; by hour, the sums, and the state of the hour when they were fetched. */
let filters = '';
const known = new Map();

/**
 * The sums of `hours`, rows of /hours in spans of at most `step`, for the flows that match `view`, as a Map by hour;
 * `isNone` if no flow matches. Fetches only what has changed since it was fetched last.
 */
export async function sums(view, hours, step, signal) {
  if (!views.isFiltered(view)) return new Map(hours.map((row) => [row.hour, row]));
  // Single hours serve bars of any step. Otherwise, all are requested in the step of the bars.
  const isFine = hours.every((row) => row.span === 1 && (row.finest_step ?? 1) === 1);
  const span = isFine ? 1 : step;
  const rows = isFine ? hours : grouped(hours, span);
  const now = `${views.narrow(new URLSearchParams(), view)} ${span}`;
  if (now !== filters) known.clear();
  filters = now;
  const state = ({ flows, bytes_tx, bytes_rx }) => `${flows} ${bytes_tx} ${bytes_rx}`;
  const stale = rows.filter((row) => known.get(row.hour)?.state !== state(row));
  if (stale.length > 0) {
    const [from, to] = [stale[0].hour, stale.at(-1).hour + span];
    const params = new URLSearchParams({ from, to, group_by: 'hour', ...(span > 1 && { step: span }) });
    const response = await api.flows(views.narrow(params, view), signal);
    // The filters may have changed meanwhile.
    if (now !== filters) return new Map();
    const found = new Map(response.rows.map((row) => [row.hour, row]));
    for (const row of rows) {
      if (row.hour < from || row.hour >= to) continue;
      const { bytes_tx = 0n, bytes_rx = 0n } = found.get(row.hour) ?? {};
      known.set(row.hour, { state: state(row), span, bytes_tx, bytes_rx, isNone: !found.has(row.hour) });
    }
  }
  return new Map(rows.map(({ hour }) => [hour, known.get(hour)]));
}

/** Rows of hours or of shorter spans, added up in steps of `span`. */
function grouped(rows, span) {
  const all = new Map();
  for (const { hour, flows, bytes_tx, bytes_rx } of rows) {
    const first = hour - (hour % span);
    const of = all.get(first) ?? { hour: first, flows: 0, bytes_tx: 0n, bytes_rx: 0n };
    all.set(first, { ...of, flows: of.flows + flows, bytes_tx: of.bytes_tx + bytes_tx, bytes_rx: of.bytes_rx + bytes_rx });
  }
  return [...all.values()];
}

/** Applications that a bar shows; all others are one part. */
const APPS = 6;

/**
 * The applications, sources or destinations by `field`, that have most bytes in the hours from `from` to before `to`, for
 * the flows that match `view`: their `names`, and `rows` with the hour, the first of `step`, and the bytes of one of them.
 */
export async function apps(view, field, { from, to }, step, signal) {
  const query = () => views.narrow(new URLSearchParams({ from, to }), view);
  const top = query();
  for (const [name, value] of Object.entries({ group_by: field, sort: 'bytes', limit: APPS })) top.set(name, value);
  const names = (await api.flows(top, signal)).rows.map((row) => row[field]);
  if (names.length === 0) return { names, rows: [] };
  const each = query();
  each.delete(field);
  names.forEach((name) => each.append(field, name));
  each.set('group_by', `${field},hour`);
  each.set('step', step);
  return { names, rows: (await api.flows(each, signal)).rows };
}
