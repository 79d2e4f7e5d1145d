// Who talks to whom: the largest pairs of applications as bands, and as a table.

import * as charts from './charts.js';
import * as dom from './dom.js';
import * as format from './format.js';

const at = (id) => document.getElementById(id);

/** `narrowTo` is told the application that is clicked, as a filter. */
export function start(narrowTo) {
  show.choose = (ends) => {
    const known = ends.filter(({ name }) => name !== null);
    if (known.length > 0) narrowTo(Object.fromEntries(known.map(({ field, name }) => [field, name])));
  };
}

/** Shows `rows` (src_app, dest_app and bytes, largest first), out of `totals`. */
export function show(rows, totals) {
  const edges = rows.map((row) => ({ ...row, bytes: row.bytes_tx + row.bytes_rx }));
  const whole = totals.bytes_tx + totals.bytes_rx;
  const others = edges.reduce((left, { bytes }) => left - bytes, whole);
  const rest = others > 0n ? others : 0n;
  const part = rest > 0n ? `largest pairs, ${format.percent(whole - rest, whole)} of all bytes` : 'pairs';
  at('edges-note').textContent = edges.length === 0 ? 'no flows here' : `${edges.length} ${part}`;
  const first = edges[0];
  at('edges-chart').setAttribute(
    'aria-label',
    first
      ? `Bytes between applications; most, ${format.bytes(first.bytes)}, from ${format.name(first.src_app)} to ${format.name(first.dest_app)}`
      : 'No flows',
  );
  charts.edges(at('edges-chart'), edges, rest, show.choose);

  const row = (source, destination, bytes) =>
    dom.make(
      'tr',
      {},
      dom.make('td', { text: source }),
      dom.make('td', { text: destination }),
      dom.make('td', { class: 'number', text: format.bytes(bytes), title: format.exactBytes(bytes) }),
    );
  const body = edges.map(({ src_app, dest_app, bytes }) => row(format.name(src_app), format.name(dest_app), bytes));
  if (rest > 0n) body.push(row('all others', '', rest));
  dom.replace(
    at('edges-table'),
    dom.make(
      'thead',
      {},
      dom.make(
        'tr',
        {},
        dom.make('th', { scope: 'col', text: 'Source' }),
        dom.make('th', { scope: 'col', text: 'Destination' }),
        dom.make('th', { scope: 'col', class: 'number', text: 'Bytes' }),
      ),
    ),
    dom.make('tbody', {}, ...body),
  );
}
