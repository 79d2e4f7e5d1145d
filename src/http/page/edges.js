// Traffic between applications: the largest pairs as bands, as a matrix, and as a table.

import * as bands from './bands.js';
import * as dom from './dom.js';
import * as format from './format.js';
import * as matrix from './matrix.js';

/** Height of the drawing: this much for each pair, within these bounds. */
const PAIR_PX = 26;
const HEIGHT_MIN = 90;
const HEIGHT_MAX = 440;
/** Pairs on a phone. */
const PAIRS_NARROW = 10;

const at = (id) => document.getElementById(id);
const narrow = matchMedia('(max-width: 640px)');

let choose;
/** The data that is drawn, so that it can be drawn again at another width. */
let drawn = { edges: [], rest: 0n, hours: 1 };

/** `open` makes the page about an application; `change` is called with both ends of a pair, as filters. */
export function start(open, change) {
  choose = (ends) => {
    const known = ends.filter(({ name }) => name !== null);
    if (known.length === 1) open(known[0].name);
    else if (known.length > 1) change(Object.fromEntries(known.map(({ field, name }) => [field, name])));
  };
}

/** Shows `rows` (src_app, dest_app and bytes, largest first) of so many `hours`, out of `totals`. */
export function show(rows, totals, hours) {
  const edges = rows.map((row) => ({ ...row, bytes: row.bytes_tx + row.bytes_rx }));
  const whole = totals.bytes_tx + totals.bytes_rx;
  const others = edges.reduce((left, { bytes }) => left - bytes, whole);
  const rest = others > 0n ? others : 0n;
  const part = rest > 0n ? `largest pairs, ${format.percent(whole - rest, whole)} of all bytes` : edges.length === 1 ? 'pair' : 'pairs';
  at('edges-note').textContent = edges.length === 0 ? 'no flows here' : `${edges.length} ${part}`;
  drawn = { edges, rest, hours };
  draw();
  table(edges, rest);
}

/** Draws the shown data at the available width. */
export function draw() {
  const { edges, rest, hours } = drawn;
  const chart = at('edges-chart');
  const asMatrix = at('edges-as').value === 'matrix';
  const isEmpty = rest === 0n && edges.every(({ bytes }) => bytes === 0n);
  chart.hidden = isEmpty || asMatrix;
  // A matrix is a table, not a picture.
  document.querySelector('[data-svg="edges-chart"]').hidden = chart.hidden;
  at('edges-matrix').parentElement.hidden = isEmpty || !asMatrix;
  at('edges-none').hidden = !isEmpty;
  if (isEmpty) return;
  if (asMatrix) {
    matrix.draw(at('edges-matrix'), edges, hours, choose);
    return;
  }
  const some = narrow.matches ? edges.slice(0, PAIRS_NARROW) : edges;
  const others = edges.slice(some.length).reduce((sum, { bytes }) => sum + bytes, rest);
  const height = Math.min(Math.max(HEIGHT_MIN, (some.length + 1) * PAIR_PX), HEIGHT_MAX);
  bands.draw(chart, { links: some, others, hours }, height, choose);
}

function table(edges, rest) {
  const cell = (field, name) =>
    dom.make('td', {}, dom.make('button', {
      type: 'button',
      class: 'name',
      'data-key': `${field} ${name}`,
      onclick: () => choose([{ field, name }]),
    }, dom.make('bdi', { text: format.name(name) })));
  const bytes = (value) => dom.make('td', { class: 'number', text: format.digits(value) });
  const body = edges.map((edge) =>
    dom.make('tr', {}, cell('src_app', edge.src_app), cell('dest_app', edge.dest_app), bytes(edge.bytes)),
  );
  if (rest > 0n) body.push(dom.make('tr', {}, dom.make('td', { text: format.OTHERS }), dom.make('td'), bytes(rest)));
  dom.table(at('edges-table'), ['Source', 'Destination', 'Bytes'], 2, body);
}
