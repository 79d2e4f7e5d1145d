// What is looked at, and the address that says so. The parameters are those of the API where there
// are such, so that an address can be read.

export const FILTERS = { src_app: 'source', dest_app: 'destination', vpc_id: 'VPC' };

/** What a row of the table is, by the value of `group_by`. */
export const GROUPINGS = {
  'src_app,dest_app,vpc_id': 'application pair and VPC',
  'src_app,dest_app': 'application pair',
  src_app: 'source',
  dest_app: 'destination',
  vpc_id: 'VPC',
  hour: 'hour',
  'src_app,dest_app,vpc_id,hour': 'nothing: each hour apart',
};
export const GROUPING = 'src_app,dest_app,vpc_id';

const SORTS = ['bytes', 'bytes_tx', 'bytes_rx'].flatMap((sort) => [sort, `-${sort}`]);
/** By name, which is the order of the rows themselves. */
export const UNSORTED = 'name';

/**
 * The view that the query string of an address describes; what is not understood is left out.
 * `from` and `to` are hours, the second not included. Both null: the newest hour, whichever it is.
 */
export function parse(search) {
  const params = new URLSearchParams(search);
  const one = params.has('hour') ? params.get('hour') : null;
  const from = number(one ?? params.get('from'));
  const to = one === null ? number(params.get('to')) : from === null ? null : from + 1;
  const chosen = (name, possible, otherwise) => {
    const value = params.get(name);
    return possible.includes(value) ? value : otherwise;
  };
  return {
    ...(from !== null && to !== null && to <= from ? { from: null, to: null } : { from, to }),
    src_app: unique(params.getAll('src_app')),
    dest_app: unique(params.getAll('dest_app')),
    vpc_id: unique(params.getAll('vpc_id')),
    search: params.get('search') ?? '',
    sort: chosen('sort', [...SORTS, UNSORTED], 'bytes'),
    grouping: chosen('group_by', Object.keys(GROUPINGS), GROUPING),
    cursor: params.get('cursor') ?? '',
    live: params.get('live') !== 'off',
  };
}

/** The query string for `view`; empty for what is shown at first. */
export function format(view) {
  const params = time(view);
  for (const field of Object.keys(FILTERS)) view[field].forEach((value) => params.append(field, value));
  if (view.search !== '') params.set('search', view.search);
  if (view.sort !== 'bytes') params.set('sort', view.sort);
  if (view.grouping !== GROUPING) params.set('group_by', view.grouping);
  if (view.cursor !== '') params.set('cursor', view.cursor);
  if (!view.live) params.set('live', 'off');
  const text = params.toString();
  return text === '' ? '' : `?${text}`;
}

export function isFiltered(view) {
  return view.search !== '' || Object.keys(FILTERS).some((field) => view[field].length > 0);
}

/** The flows of `view` as parameters of the API, `newest` being the newest hour that there is. */
export function question(view, newest) {
  const params = time(view);
  if (view.from === null && view.to === null) params.set('hour', newest);
  for (const field of Object.keys(FILTERS)) view[field].forEach((value) => params.append(field, value));
  if (view.search !== '') params.set('search', view.search);
  return params;
}

/** The rows of the table as parameters of the API, without the page. */
export function tableQuestion(view, newest) {
  const params = question(view, newest);
  const fields = columns(view, newest);
  // The rows of an hour are apart as they are; grouping them would only cost.
  const apart = fields.length === 3 && params.has('hour');
  if (!apart && fields.length < 4) params.set('group_by', fields.join(','));
  if (view.sort !== UNSORTED) params.set('sort', view.sort);
  return params;
}

/** The fields that a row of the table has besides bytes. */
export function columns(view) {
  return view.grouping.split(',');
}

function time({ from, to }) {
  const params = new URLSearchParams();
  if (from !== null && to === from + 1) {
    params.set('hour', from);
    return params;
  }
  if (from !== null) params.set('from', from);
  if (to !== null) params.set('to', to);
  return params;
}

function number(text) {
  return text !== null && /^\d{1,10}$/.test(text) ? Number(text) : null;
}

function unique(values) {
  return [...new Set(values)];
}
