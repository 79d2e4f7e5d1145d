// The requests whose responses the cards show, as parameters of GET /flows.

import * as views from './view.js';

/** Rows of a list of applications, pairs of the drawing, and rows on a page of the table. */
const TALKERS = 8;
const EDGES = 20;
export const ROWS = 25;

/**
 * The parameters of each card but the chart of hours, by the id of its part: of `view` in the hours of `range`. `before` is
 * the first hour to compare with, or null, and rows by hour are added up in steps of `step`.
 */
export function of(view, range, before, step) {
  const query = views.query(view, range);
  const compare = before === null ? {} : { compare: before };
  const list = (field, other) => more(talkers(view, range, other), { group_by: field, sort: 'bytes', limit: TALKERS, ...compare });
  const page = { limit: ROWS, ...(view.cursor === '' ? {} : { cursor: view.cursor }) };
  return {
    total: more(query, { group_by: '', ...compare }),
    sources: list('src_app', 'dest_app'),
    destinations: list('dest_app', 'src_app'),
    'edges-chart': more(query, { group_by: 'src_app,dest_app', sort: 'bytes', limit: EDGES }),
    table: more(views.tableQuery(view, range, before, step), page),
  };
}

/** The request for the sum of all rows of which `params` selects some. */
export function sum(params) {
  const all = more(params, { group_by: '' });
  all.delete('sort');
  all.delete('limit');
  return all;
}

/** The request for the sums of the bars of the chart, as a path of the API with its query. */
export function bars(view, { from, to, step }) {
  const isOfAll = view.by === 'direction' && !views.isFiltered(view);
  if (isOfAll) return `hours?${new URLSearchParams({ from, to, ...(step > 1 && { step }) })}`;
  const group = view.by === 'direction' ? 'hour' : `${view.by},hour`;
  const params = new URLSearchParams({ from, to, group_by: group, ...(step > 1 && { step }) });
  return `flows?${views.narrow(params, view)}`;
}

/**
 * The query of one list, of which `other` is the opposite side. If the page is about an application,
 * the sources are those that send to it, and the destinations those that it sends to.
 */
function talkers(view, range, other) {
  const query = views.query(view, range);
  const subject = views.subject(view);
  if (subject === null) return query;
  query.delete('peer');
  query.append(other, subject);
  return query;
}

function more(params, changes) {
  const all = new URLSearchParams(params);
  for (const [name, value] of Object.entries(changes)) all.set(name, value);
  return all;
}
