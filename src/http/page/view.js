// The view, and its encoding in a URL. Parameters have the same names as in the API, so that a URL is readable.

import { name as visible } from './format.js';

export const FILTERS = { src_app: 'source', dest_app: 'destination', peer: 'application', vpc_id: 'VPC' };

/** The meaning of a row of the table, by the value of `group_by`. */
export const GROUPINGS = {
  'src_app,dest_app,vpc_id': 'application pair and VPC',
  'src_app,dest_app': 'application pair',
  src_app: 'source',
  dest_app: 'destination',
  vpc_id: 'VPC',
  hour: 'hour',
  'src_app,dest_app,vpc_id,hour': 'no grouping (one row per hour)',
};
export const GROUPING = 'src_app,dest_app,vpc_id';

const SORTS = ['bytes', 'bytes_tx', 'bytes_rx', 'change'].flatMap((sort) => [sort, `-${sort}`]);

/** What the bars of the chart of hours consist of, by the value of `by`. */
export const SERIES = { direction: 'Sent and received', src_app: 'Sources', dest_app: 'Destinations' };
/** By name, which is key order. */
export const UNSORTED = 'name';

/** The largest hour of the API. */
const HOUR_MAX = 2 ** 32 - 2;
/** Parameters that may occur once. */
const SINGLE = ['hour', 'from', 'to', 'last', 'search', 'sort', 'group_by', 'cursor', 'exact', 'live', 'by', 'pairs', 'compare', 'unit', 'zone'];

/** The view that the query string of a URL describes. `from` (inclusive) and `to` (exclusive) are hours. Both null:
 * the newest complete hour, or the `last` hours up to it. `misread` names the invalid parameters, which are ignored.
 */
export function parse(search) {
  const wrong = [];
  // A value that is not UTF-8 would be read as another name.
  const parts = search.replace(/^\?/, '').split('&');
  wrong.push(...parts.filter((part) => !isUtf8(part)).map(visible));
  const params = new URLSearchParams(parts.filter(isUtf8).join('&'));
  const refuse = (name, value) => wrong.push(visible(`${name}=${value}`));
  for (const name of new Set(params.keys())) {
    if (!SINGLE.includes(name) && !(name in FILTERS)) refuse(name, params.get(name));
    params.getAll(name).slice(SINGLE.includes(name) ? 1 : Infinity).forEach((value) => refuse(name, value));
  }
  const hour = (name) => {
    const value = params.get(name);
    if (value === null || (/^\d{1,10}$/.test(value) && Number(value) <= HOUR_MAX + (name === 'to' ? 1 : 0))) {
      return value === null ? null : Number(value);
    }
    refuse(name, value);
    return null;
  };
  const chosen = (name, possible, otherwise) => {
    const value = params.get(name) ?? otherwise;
    if (possible.includes(value)) return value;
    refuse(name, value);
    return otherwise;
  };
  const one = hour('hour');
  const isOne = params.has('hour');
  if (isOne) ['from', 'to'].filter((name) => params.has(name)).forEach((name) => refuse(name, params.get(name)));
  let [from, to] = isOne ? [one, one === null ? null : one + 1] : [hour('from'), hour('to')];
  if (to !== null && to <= (from ?? 0)) {
    if (from !== null) refuse('from', from);
    refuse('to', to);
    [from, to] = [null, null];
  }
  const last = hour('last');
  const hasLast = last > 0 && from === null && to === null;
  if (last !== null && !hasLast) refuse('last', last);
  const compare = chosen('compare', ['on', 'off'], 'off') === 'on';
  const sort = chosen('sort', [...SORTS, UNSORTED], compare ? 'change' : 'bytes');
  const isMismatched = !compare && sort.endsWith('change');
  if (isMismatched) refuse('sort', sort);
  const view = {
    from,
    to,
    last: hasLast ? last : null,
    src_app: unique(params.getAll('src_app')),
    dest_app: unique(params.getAll('dest_app')),
    peer: unique(params.getAll('peer')),
    vpc_id: unique(params.getAll('vpc_id')),
    search: params.get('search') ?? '',
    sort: isMismatched ? 'bytes' : sort,
    compare,
    by: chosen('by', Object.keys(SERIES), 'direction'),
    pairs: chosen('pairs', ['bands', 'matrix'], 'bands'),
    unit: chosen('unit', ['bytes', 'bits'], 'bytes'),
    zone: chosen('zone', ['utc', 'local'], 'utc'),
    grouping: chosen('group_by', Object.keys(GROUPINGS), GROUPING),
    cursor: params.get('cursor') ?? '',
    exact: chosen('exact', ['on', 'off'], 'off') === 'on',
    live: chosen('live', ['on', 'off'], 'on') === 'on',
  };
  return { ...view, misread: wrong.length > 0 ? `Not understood in the address, and left out: ${wrong.join(', ')}.` : '' };
}

/** Whether the bytes that `part` of a query string stands for are UTF-8. A `%` alone stands for itself. */
function isUtf8(part) {
  try {
    decodeURIComponent(part.replace(/%(?![\da-f]{2})/gi, '%25'));
    return true;
  } catch {
    return false;
  }
}

/** The query string for `view`; empty for the initial view. */
export function format(view) {
  const params = narrow(time(view), view);
  if (view.compare) params.set('compare', 'on');
  if (view.sort !== (view.compare ? 'change' : 'bytes')) params.set('sort', view.sort);
  if (view.by !== 'direction') params.set('by', view.by);
  if (view.pairs !== 'bands') params.set('pairs', view.pairs);
  if (view.unit !== 'bytes') params.set('unit', view.unit);
  if (view.zone !== 'utc') params.set('zone', view.zone);
  if (view.grouping !== GROUPING) params.set('group_by', view.grouping);
  if (view.cursor !== '') params.set('cursor', view.cursor);
  if (view.exact) params.set('exact', 'on');
  if (!view.live) params.set('live', 'off');
  const text = params.toString();
  return text === '' ? '' : `?${text}`;
}

export function isFiltered(view) {
  return view.search !== '' || Object.keys(FILTERS).some((field) => view[field].length > 0);
}

/** `params` with the filters and the search of `view`. */
export function narrow(params, view) {
  for (const field of Object.keys(FILTERS)) view[field].forEach((value) => params.append(field, value));
  if (view.search !== '') params.set('search', view.search);
  return params;
}

/** The flows of `view` as parameters of the API: those of all its filters, in the hours of `range`. */
export function query(view, range) {
  return narrow(time(range), view);
}

/** The application that the page is about; null if there is none. With an end of its flows too, these are a part of them. */
export function subject(view) {
  const isPart = view.src_app.length + view.dest_app.length > 0;
  return view.peer.length === 1 && !isPart ? view.peer[0] : null;
}

/** Whether the rows of the table can be compared with those of other hours. */
export function comparesTable(view) {
  return view.compare && !columns(view).includes('hour');
}

/**
 * The rows of the table as parameters of the API, without the page; `before` is the first hour to compare with, and
 * hours are added up in steps of `step`.
 */
export function tableQuery(view, range, before, step) {
  const params = query(view, range);
  const fields = columns(view);
  const compares = comparesTable(view) && before !== null;
  // The rows of one hour are already distinct, so grouping them would only cost time.
  const apart = fields.length === 3 && params.has('hour') && !compares;
  const inSteps = step > 1 && fields.includes('hour');
  if (inSteps) params.set('step', step);
  if (inSteps || (!apart && fields.length < 4)) params.set('group_by', fields.join(','));
  if (compares) params.set('compare', before);
  const sort = compares || !view.sort.endsWith('change') ? view.sort : 'bytes';
  if (sort !== UNSORTED) params.set('sort', sort);
  return params;
}

/** The fields that a row of the table has besides bytes. */
export function columns(view) {
  return view.grouping.split(',');
}

function time({ from, to, last }) {
  const params = new URLSearchParams();
  if (last) params.set('last', last);
  if (from !== null && to === from + 1) {
    params.set('hour', from);
    return params;
  }
  if (from !== null) params.set('from', from);
  if (to !== null) params.set('to', to);
  return params;
}

function unique(values) {
  return [...new Set(values)];
}
