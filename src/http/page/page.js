// The page: what is looked at, when it is fetched, and who shows it.

import * as api from './api.js';
import * as hourPicker from './hours.js';
import * as edges from './edges.js';
import * as filters from './filters.js';
import * as table from './table.js';
import * as talkers from './talkers.js';
import * as format from './format.js';
import * as views from './view.js';

/** Pause between two looks at what is new; longer where a look takes long, by this factor of its time. */
const REFRESH_MS = 10_000;
const REFRESH_PAUSE = 10;
/** Pauses before trying again, while the service does not answer; the last is kept. */
const RETRY_MS = [1_000, 2_000, 4_000, 8_000];
const TALKERS = 8;
const EDGES = 20;

const at = (id) => document.getElementById(id);

let view = current();
/** What ends the fetches under way when another view is asked for. */
let turn = new AbortController();
let timer = 0;
let failures = 0;
/** What the page shows: the view and the sums of its hours. The same again is not fetched again. */
let shown = '';

/** The view that the address says, and the cursors of the pages before this one, which it does not. */
function current() {
  return { ...views.parse(location.search), pages: history.state?.pages ?? [] };
}

/**
 * Goes to the view that has these differences, on its first page unless told otherwise: as an entry of
 * the history or, for what is typed, in place of the last.
 */
function go(change, { replace = false } = {}) {
  view = { ...view, cursor: '', pages: [], ...change };
  const address = location.pathname + views.format(view);
  history[replace ? 'replaceState' : 'pushState']({ pages: view.pages }, '', address);
  refresh();
}

addEventListener('popstate', () => {
  view = current();
  refresh();
});

/** Fetches what `view` shows, if it is not shown already, and sees to it that this is done again. */
async function refresh() {
  turn.abort();
  turn = new AbortController();
  const { signal } = turn;
  clearTimeout(timer);
  showControls();
  const begin = performance.now();
  try {
    await load(signal);
    recovered();
    schedule(Math.max(REFRESH_MS, REFRESH_PAUSE * (performance.now() - begin)));
  } catch (error) {
    if (signal.aborted) return;
    failed(error);
  }
}

function schedule(pause) {
  clearTimeout(timer);
  if (view.live && !document.hidden) timer = setTimeout(refresh, pause);
}

document.addEventListener('visibilitychange', () => {
  if (document.hidden) clearTimeout(timer);
  else if (view.live || failures > 0) refresh();
});

async function load(signal) {
  const hours = await api.hours(signal);
  if (!at('token').hidden) {
    at('token').hidden = true;
    document.querySelector('main').focus();
  }
  at('empty').hidden = hours.length > 0;
  at('content').hidden = hours.length === 0;
  at('updated').textContent = `Updated ${new Date().toLocaleTimeString()}`;
  if (hours.length === 0) {
    shown = '';
    return;
  }
  const newest = hours.at(-1).hour;
  const range = rangeOf(view, hours);
  const inRange = hours.filter(({ hour }) => hour >= range.from && hour < range.to);
  hourPicker.show(hours, range, view);
  const fresh = JSON.stringify([views.format({ ...view, live: true }), inRange.map(Object.values)], format.withBigInt);
  if (fresh === shown) return;
  shown = '';

  const question = views.question(view, newest);
  const page = { limit: table.ROWS, ...(view.cursor === '' ? {} : { cursor: view.cursor }) };
  const ask = async (params, more) => {
    const all = new URLSearchParams(params);
    for (const [name, value] of Object.entries(more)) all.set(name, value);
    return api.flows(all, signal);
  };
  const totals = views.isFiltered(view)
    ? ask(question, { group_by: '' }).then(({ rows }) => sum(rows))
    : Promise.resolve(sum(inRange));
  const top = (field, limit) => ask(question, { group_by: field, sort: 'bytes', limit });
  const parts = [
    part('total', totals, (totals) => showTotals(totals, range, inRange)),
    part('sources', Promise.all([top('src_app', TALKERS), totals]), ([{ rows }, totals]) =>
      talkers.show(at('sources'), 'src_app', rows, totals),
    ),
    part('destinations', Promise.all([top('dest_app', TALKERS), totals]), ([{ rows }, totals]) =>
      talkers.show(at('destinations'), 'dest_app', rows, totals),
    ),
    part('edges-chart', Promise.all([top('src_app,dest_app', EDGES), totals]), ([{ rows }, totals]) =>
      edges.show(rows, totals),
    ),
    part('table', ask(views.tableQuestion(view, newest), page), (answer) => table.show(answer, view)),
  ];
  const results = await Promise.allSettled(parts);
  const failure = results.find(({ status }) => status === 'rejected');
  if (failure) throw failure.reason;
  shown = results.every(({ value }) => value) ? fresh : '';

  /** Shows one answer where it belongs, or why there is none; throws where that concerns all. */
  async function part(id, answer, show) {
    const card = at(id).closest('.card, .figures');
    card.setAttribute('aria-busy', 'true');
    try {
      const result = await answer;
      if (signal.aborted) return false;
      show(result);
      note(card, '');
      return true;
    } catch (error) {
      if (!(error instanceof api.Problem) || error.status === 0 || error.asksForToken) throw error;
      note(card, error.message);
      // What was too much for the moment is asked for again, at the usual pace.
      return !error.passes;
    } finally {
      if (!signal.aborted) card.removeAttribute('aria-busy');
    }
  }
}

/** The hours that `view` means: from, and before which. */
function rangeOf({ from, to }, hours) {
  const [first, newest] = [hours[0].hour, hours.at(-1).hour];
  if (from === null && to === null) return { from: newest, to: newest + 1 };
  const begin = from === null || (to === null && from < first) ? first : from;
  return { from: begin, to: Math.max(to ?? newest + 1, begin + 1) };
}

function sum(rows) {
  return {
    bytes_tx: rows.reduce((sum, row) => sum + row.bytes_tx, 0n),
    bytes_rx: rows.reduce((sum, row) => sum + row.bytes_rx, 0n),
  };
}

/** A line below the head of a card that says why it does not show what it should. */
function note(card, text) {
  let line = card.querySelector('.problem');
  if (text === '') {
    line?.remove();
    return;
  }
  if (!line) {
    line = document.createElement('p');
    line.className = 'problem wrong';
    line.setAttribute('role', 'alert');
    (card.querySelector('.head') ?? card.lastElementChild).after(line);
  }
  if (line.textContent !== text) line.textContent = text;
}

function showTotals({ bytes_tx, bytes_rx }, range, inRange) {
  const total = bytes_tx + bytes_rx;
  for (const [id, value] of Object.entries({ total, sent: bytes_tx, received: bytes_rx })) {
    at(id).textContent = format.bytes(value);
    at(id).title = format.exactBytes(value);
  }
  at('span').textContent = inRange.length.toLocaleString('en');
  at('span').title = format.hours(range);
  const what = views.isFiltered(view) ? ', filtered' : '';
  const summary = `${format.hours(range)}${what}: ${format.bytes(total)} in total`;
  // It is read out when it changes.
  if (at('summary').textContent !== summary) at('summary').textContent = summary;
  document.title = `${format.hours(range)} · flowtally`;
}

function failed(error) {
  if (error.asksForToken) {
    askForToken(error);
    return;
  }
  if (!(error instanceof api.Problem)) console.error(error);
  const pause = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
  failures += 1;
  const text = `${error.message}. Trying again…`;
  const banner = at('banner');
  banner.hidden = false;
  if (banner.textContent !== text) banner.textContent = text;
  document.body.classList.add('stale');
  clearTimeout(timer);
  // Also when updates are paused: what was asked for has not come.
  if (!document.hidden) timer = setTimeout(refresh, pause);
}

function recovered() {
  failures = 0;
  at('banner').hidden = true;
  at('banner').textContent = '';
  document.body.classList.remove('stale');
}

function askForToken(problem) {
  recovered();
  const isFirst = at('token').hidden && at('token-value').value === '';
  at('token').hidden = false;
  at('content').hidden = true;
  at('empty').hidden = true;
  at('token-problem').textContent = isFirst ? '' : `${problem.message}.`;
  at('token-value').focus();
}

at('token').addEventListener('submit', (event) => {
  event.preventDefault();
  api.useToken(at('token-value').value.trim());
  refresh();
});

function showControls() {
  at('live').setAttribute('aria-pressed', String(view.live));
  filters.show(view);
}

at('live').addEventListener('click', () => {
  go({ live: !view.live, cursor: view.cursor, pages: view.pages }, { replace: true });
});
at('empty-command').textContent = `curl -X POST '${new URL('flows', location.href)}' \\
  -H 'Content-Type: application/json' -d '[
  {"src_app": "web", "dest_app": "api", "vpc_id": "vpc-0", "bytes_tx": 100, "bytes_rx": 500, "hour": 1}]'`;

/** Adds what `change` names to the filters. */
function narrowTo(change) {
  const merged = Object.entries(change).map(([field, value]) => [field, [...new Set([...view[field], value])]]);
  go(Object.fromEntries(merged));
}

hourPicker.start((range) => go(range));
filters.start(go, () => view);
talkers.start(narrowTo);
edges.start(narrowTo);
table.start({
  go,
  narrowTo,
  view: () => view,
  range: hourPicker.chosen,
  question: () => views.tableQuestion(view, hourPicker.newest()),
});
refresh();
