// The table: sorted, paged and narrowed by the service; and the same rows as a CSV file.

import * as dom from './dom.js';
import * as download from './download.js';
import * as format from './format.js';
import { FILTERS, GROUPINGS, UNSORTED, columns } from './view.js';

/** Rows on a page. */
export const ROWS = 25;

const at = (id) => document.getElementById(id);
const TITLES = { src_app: 'Source', dest_app: 'Destination', vpc_id: 'VPC', hour: 'Hour' };
const SUMS = { bytes: 'Total', bytes_tx: 'Sent', bytes_rx: 'Received' };

let page;
/** The cursor of the rows that follow. */
let next = null;

/**
 * `go` goes to the view that has these differences, `narrowTo` adds a filter; `view` is the one that is
 * shown, `range` its hours, `question` its rows as parameters of the API.
 */
export function start(given) {
  page = given;
  const { go, view } = page;
  at('grouping').onchange = (event) => go({ grouping: event.target.value });
  // From the second page on, the hours are those of the first, also when newer ones come.
  at('next-page').onclick = () => {
    go({ ...page.range(), cursor: next, pages: [...view().pages, view().cursor] });
    at('rows').scrollIntoView({ block: 'start' });
  };
  at('previous-page').onclick = () => go({ cursor: view().pages.at(-1) ?? '', pages: view().pages.slice(0, -1) });
  download.start(at('download'), at('download-state'), page.question);
  dom.options(at('grouping'), Object.entries(GROUPINGS), view().grouping);
}

/** Shows a page of rows. */
export function show({ rows, cursor }, view) {
  next = cursor;
  at('grouping').value = view.grouping;
  const fields = columns(view).filter((field) => field !== 'vpc_id' && field !== 'hour');
  const more = columns(view).filter((field) => field === 'vpc_id' || field === 'hour');
  // Names, sums, the rest: on a phone, what matters is seen without scrolling sideways.
  const order = [...fields, ...(fields.length === 0 ? more : []), ...Object.keys(SUMS), ...(fields.length === 0 ? [] : more)];
  const body = rows.map((row) => dom.make('tr', {}, ...order.map((field) => cell(field, row))));
  if (body.length === 0) {
    const text = view.cursor === '' ? 'No flows match' : 'No more rows';
    body.push(dom.make('tr', {}, dom.make('td', { class: 'none', colspan: order.length, text })));
  }
  dom.replace(
    at('table'),
    dom.make('caption', { class: 'hidden', text: `Flows by ${GROUPINGS[view.grouping]}` }),
    dom.make('thead', {}, dom.make('tr', {}, ...order.map((field) => head(field, view.sort)))),
    dom.make('tbody', {}, ...body),
  );
  at('previous-page').disabled = view.cursor === '';
  at('next-page').disabled = next === null;
  const number = view.pages.length + 1;
  const known = view.cursor === '' || view.pages.length > 0;
  at('page-number').textContent = known && (number > 1 || next !== null) ? `Page ${number}` : '';
}

function cell(field, row) {
  if (field in SUMS) {
    const value = field === 'bytes' ? row.bytes_tx + row.bytes_rx : row[field];
    return dom.make('td', { class: 'number', text: format.bytes(value), title: format.exactBytes(value) });
  }
  if (field === 'hour') return dom.make('td', { text: format.hour(row.hour) });
  const name = format.name(row[field]);
  const button = dom.make('button', {
    type: 'button',
    class: row[field] === '' ? 'name none' : 'name',
    'data-key': `${field} ${row.src_app} ${row.dest_app} ${row.vpc_id} ${row.hour}`,
    title: `Only ${FILTERS[field]} ${name}`,
    onclick: () => page.narrowTo({ [field]: row[field] }),
  }, dom.make('bdi', { text: name }));
  return dom.make('td', {}, button);
}

/** A column's head. Sums sort downwards, then upwards; names only in the order of the rows themselves. */
function head(field, sort) {
  const isSum = field in SUMS;
  const sortedBy = sort.replace('-', '');
  const leads = isSum ? sortedBy === field : sort === UNSORTED && field !== 'vpc_id';
  const upwards = !isSum || sort.startsWith('-');
  const to = !isSum ? UNSORTED : sort === field ? `-${field}` : field;
  const th = dom.make('th', { scope: 'col', ...(isSum && { class: 'number' }) });
  if (leads) th.setAttribute('aria-sort', upwards ? 'ascending' : 'descending');
  th.append(
    dom.make('button', {
      type: 'button',
      'data-key': `sort ${field}`,
      text: TITLES[field] ?? SUMS[field],
      onclick: () => page.go({ sort: to }),
    }),
  );
  return th;
}
