// The table: sorted, paged and narrowed by the service; and the same rows as a CSV file.

import * as dom from './dom.js';
import * as download from './download.js';
import * as format from './format.js';
import { ROWS } from './requests.js';
import { FILTERS, GROUPINGS, UNSORTED, columns, comparesTable } from './view.js';

const at = (id) => document.getElementById(id);
const TITLES = { src_app: 'Source', dest_app: 'Destination', vpc_id: 'VPC', hour: 'Hour', change: 'Change' };
/** Longer names are shortened. */
const NAME_CHARS_MAX = 80;
const SUMS = { bytes: 'Total', bytes_tx: 'Sent', bytes_rx: 'Received' };
const CHANGE = 'change';

let page;
/** The shown page, and the cursor of the next one. */
let current = { rows: [], cursor: null };
/** Hours of a row that has an hour. */
let stepShown = 1;
let next = null;

/**
 * `go` changes the view, `narrowTo` adds a filter, `about` makes the page about an application; `view` is the current view, `range` its hours, `query` the
 * parameters of the API for its rows.
 */
export function start(given) {
  page = given;
  const { go, view } = page;
  at('grouping').onchange = (event) => go({ grouping: event.target.value });
  at('exact').onchange = (event) => {
    go({ exact: event.target.checked, cursor: view().cursor, pages: view().pages }, { replace: true });
    show(current, view(), stepShown);
  };
  // From the second page on, keep the hours of the first page, even if newer ones arrive.
  at('next-page').onclick = () => {
    // The page after one that has not arrived is unknown.
    if (at('rows').getAttribute('aria-busy') === 'true') return;
    go({ ...page.range(), cursor: next, pages: [...view().pages, view().cursor] });
    at('rows').scrollIntoView({ block: 'start' });
  };
  at('previous-page').onclick = () => go({ cursor: view().pages.at(-1) ?? '', pages: view().pages.slice(0, -1) });
  download.start(at('download'), at('download-state'), page.query);
  dom.options(at('grouping'), Object.entries(GROUPINGS), view().grouping);
}

/** Shows a page of rows; those by hour have sums of `step` hours. */
export function show(given, view, step) {
  current = given;
  stepShown = step;
  const { rows, cursor } = current;
  next = cursor;
  at('grouping').value = view.grouping;
  at('exact').checked = view.exact;
  const fields = columns(view).filter((field) => field !== 'vpc_id' && field !== 'hour');
  const more = columns(view).filter((field) => field === 'vpc_id' || field === 'hour');
  // Names, sums, the rest: on a phone, the important columns are visible without scrolling sideways.
  const change = comparesTable(view) && rows.some((row) => row.bytes_tx_before !== undefined) ? [CHANGE] : [];
  // Without a change to sort by, rows are sorted by bytes.
  const sort = change.length === 0 && view.sort.endsWith(CHANGE) ? 'bytes' : view.sort;
  const sums = [...Object.keys(SUMS), ...change];
  const order = [...fields, ...(fields.length === 0 ? more : []), ...sums, ...(fields.length === 0 ? [] : more)];
  const named = Object.keys(FILTERS).filter((field) => order.includes(field));
  const labels = named.map((field) => [field, format.labels(rows.map((row) => row[field]), NAME_CHARS_MAX)]);
  const body = rows.map((row, i) => {
    const names = Object.fromEntries(labels.map(([field, texts]) => [field, texts[i]]));
    return dom.make('tr', {}, ...order.map((field) => cell(field, row, names, { ...view, sort })));
  });
  if (body.length === 0) {
    const text = view.cursor === '' ? 'No flows match' : 'No more rows';
    body.push(dom.make('tr', {}, dom.make('td', { class: 'none', colspan: order.length, text })));
  }
  dom.replace(
    at('table'),
    dom.make('caption', { class: 'hidden', text: `Flows by ${GROUPINGS[view.grouping]}` }),
    dom.make('thead', {}, dom.make('tr', {}, ...order.map((field) => head(field, sort, rows)))),
    dom.make('tbody', {}, ...body),
  );
  dom.enable([at('previous-page'), view.cursor !== ''], [at('next-page'), next !== null]);
  const number = view.pages.length + 1;
  const known = view.cursor === '' || view.pages.length > 0;
  const last = (known ? (number - 1) * ROWS : 0) + rows.length;
  const which = known ? `Rows ${last - rows.length + 1} to ${last}` : `${rows.length} more rows`;
  at('row-numbers').textContent = rows.length === 0 ? '' : `${which}${next !== null ? '; more follow' : known ? ` of ${last}` : ', the last'}`;
  at('page-number').textContent = known && (number > 1 || next !== null) ? `Page ${number}` : '';
}

/** The class of a column of sums. On a phone, only the total and the sorted column fit. */
function sumClass(field, sort) {
  return field === 'bytes' || sort.endsWith(field) ? 'number' : 'number part';
}

function cell(field, row, names, { sort, exact }) {
  if (field in SUMS) {
    const value = field === 'bytes' ? row.bytes_tx + row.bytes_rx : row[field];
    const hours = row.hour === undefined ? page.range().to - page.range().from : stepShown;
    const text = exact ? format.digits(value) : format.amount(value, hours);
    return dom.make('td', { class: sumClass(field, sort), title: format.exactBytes(value) }, ...dom.breakable(text));
  }
  if (field === CHANGE) {
    const [after, before] = [row.bytes_tx + row.bytes_rx, row.bytes_tx_before + row.bytes_rx_before];
    const text = exact ? format.signed(after - before) : format.change(after, before);
    return dom.make('td', { class: 'number', title: `before, ${format.exactBytes(before)}` }, ...dom.breakable(text));
  }
  if (field === 'hour') {
    const text = stepShown > 1 ? format.hours({ from: row.hour, to: row.hour + stepShown }) : format.hour(row.hour);
    return dom.make('td', { class: 'hour', text });
  }
  const name = format.name(row[field]);
  const button = dom.make('button', {
    type: 'button',
    class: row[field] === '' ? 'name none' : 'name',
    'data-key': `${field} ${row.src_app} ${row.dest_app} ${row.vpc_id} ${row.hour}`,
    title: field === 'vpc_id' ? `Only ${FILTERS[field]} ${name}` : `All about ${name}`,
    onclick: () => (field === 'vpc_id' ? page.narrowTo({ [field]: row[field] }) : page.about(row[field])),
  }, dom.make('bdi', { text: names[field] }));
  return dom.make('td', {}, button);
}

/** Times in a column of hours are labelled with their zone. */
function zoneIn(field, rows) {
  const dated = field === 'hour' ? rows.find(({ hour }) => format.isDated(hour)) : undefined;
  return dated ? `, ${format.zoneOf(dated.hour)}` : '';
}

/** A column's head. Sums sort descending, then ascending; names only in key order. */
function head(field, sort, rows) {
  const isSum = field in SUMS || field === CHANGE;
  const sortedBy = sort.replace('-', '');
  const leads = isSum ? sortedBy === field : sort === UNSORTED && field !== 'vpc_id';
  const upwards = !isSum || sort.startsWith('-');
  const to = !isSum ? UNSORTED : sort === field ? `-${field}` : field;
  const kind = field === CHANGE ? 'number' : sumClass(field, sort);
  const th = dom.make('th', { scope: 'col', ...(isSum && { class: kind }) });
  if (leads) th.setAttribute('aria-sort', upwards ? 'ascending' : 'descending');
  th.append(
    dom.make('button', {
      type: 'button',
      'data-key': `sort ${field}`,
      text: (TITLES[field] ?? SUMS[field]) + zoneIn(field, rows),
      onclick: () => page.go({ sort: to }),
    }),
  );
  return th;
}
