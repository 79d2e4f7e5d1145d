// Decides what to fetch and when, and which module shows it.

import * as accounts from './accounts.js';
import * as api from './api.js';
import * as cards from './cards.js';
import * as dom from './dom.js';
import * as edges from './edges.js';
import * as download from './download.js';
import * as empty from './empty.js';
import * as filters from './filters.js';
import * as hours from './hours.js';
import * as keys from './keys.js';
import * as ledger from './ledger.js';
import * as picker from './picker.js';
import * as requests from './requests.js';
import * as saved from './saved.js';
import * as sentence from './sentence.js';
import * as series from './series.js';
import * as table from './table.js';
import * as talkers from './talkers.js';
import * as format from './format.js';
import * as svg from './svg.js';
import * as views from './view.js';

/** Pause between two refreshes; after a slow refresh, its duration times this factor. */
const REFRESH_MS = 10_000;
const REFRESH_PAUSE = 10;
/** The pause while the first flows are expected, and while they come. */
const FIRST_REFRESH_MS = 2_000;
/** Pauses before each retry while the service does not respond; the last one repeats. */
const RETRY_MS = [1_000, 2_000, 4_000, 8_000];
/** Pause after which a window counts as resized. */
const RESIZE_MS = 150;

const at = (id) => document.getElementById(id);
const card = (id) => at(id).closest('.card, .figures');

let view = current();
/** Aborts the current fetches when the view changes. */
let turn = new AbortController();
let timer = 0;
let failures = 0;
/** The view and the sums of its hours that the page shows. The same is not fetched again. */
let shown = '';
/** The banner's text about all that is shown. */
let bannerText = '';
/** The stored hours at the last refresh, as rows of /hours, and the ones that the view covers. */
let known = [];
let range = { from: 0, to: 1 };
/** The query that each card shows, by the id of its part; if the current query differs, the card is outdated. */
const loadedQueries = new Map();
const PARTS = ['total', 'hours-chart', 'sources', 'destinations', 'edges-chart', 'table'];

/** The view of the address, and the cursors of the previous pages, which the address does not have. */
function current() {
  return { ...views.parse(location.search), pages: history.state?.pages ?? [] };
}

/**
 * Changes the view, to its first page by default. Adds an entry to the history or, while the user types,
 * replaces the last one.
 */
function go(change, { replace = false } = {}) {
  const isTime = 'from' in change && !('last' in change);
  view = { ...view, cursor: '', pages: [], misread: '', ...(isTime && { last: null }), ...change };
  const address = location.pathname + views.format(view);
  const isSame = address === location.pathname + location.search;
  history[replace || isSame ? 'replaceState' : 'pushState']({ pages: view.pages }, '', address);
  refresh();
}

addEventListener('popstate', () => {
  view = current();
  // Also while the user types: that text belongs to the previous entry.
  at('search').value = view.search;
  refresh();
});

/** Fetches what `view` shows, unless it is shown already, and schedules the next refresh. */
async function refresh() {
  turn.abort();
  turn = new AbortController();
  const { signal } = turn;
  clearTimeout(timer);
  showControls();
  if (known.length > 0) {
    range = rangeOf(view, known);
    showControls();
    dimOthers();
  }
  const begin = performance.now();
  try {
    recovered(await load(signal));
    const pause = empty.isBeginning() ? FIRST_REFRESH_MS : REFRESH_MS;
    schedule(Math.max(pause, REFRESH_PAUSE * (performance.now() - begin)));
  } catch (error) {
    if (signal.aborted) return;
    PARTS.forEach((id) => card(id).removeAttribute('aria-busy'));
    failed(error);
  }
}

/** The current query of each part except the chart of hours. */
function currentQueries() {
  const query = String(views.query(view, range));
  const ofTotals = `${query} ${before()}`;
  return {
    total: ofTotals,
    sources: ofTotals,
    destinations: ofTotals,
    'edges-chart': query,
    table: `${tableQuery()} ${view.cursor}`,
  };
}

function tableQuery() {
  return views.tableQuery(view, range, before(), ledger.finest(known, range));
}

/** The requests of all cards but the chart of hours. */
function requestsNow() {
  return requests.of(view, range, before(), ledger.finest(known, range));
}

/** The first of the hours to compare with, as many as are shown; null without comparison, or if there are too few. */
function before() {
  const first = range.from - (range.to - range.from);
  if (!view.compare || first < known[0].hour) return null;
  const whole = ledger.aligned(known, { from: first, to: range.from });
  return whole.from === first && whole.to === range.from ? first : null;
}

/** Dims the parts that show another query. */
function dimOthers() {
  for (const [id, query] of Object.entries(currentQueries())) dim(id, query);
}

function dim(id, query) {
  const isOther = loadedQueries.has(id) && loadedQueries.get(id) !== query;
  card(id).classList.toggle('other', isOther);
  if (isOther) card(id).setAttribute('aria-busy', 'true');
}

function schedule(pause) {
  clearTimeout(timer);
  if (view.live && !document.hidden) timer = setTimeout(refresh, pause);
}

document.addEventListener('visibilitychange', () => {
  if (document.hidden) clearTimeout(timer);
  else if (view.live || failures > 0) refresh();
});

/** Resolves to the banner's text, or an empty one. */
async function load(signal) {
  known = await ledger.load(signal);
  if (!at('token').hidden) {
    at('token').hidden = true;
    document.querySelector('main').focus();
  }
  at('live').hidden = false;
  at('content').hidden = known.length === 0;
  at('updated').textContent = `Updated ${format.clock(api.now())}`;
  accounts.show(api.ledgerDifference());
  empty.show(ledger.flows(known));
  if (known.length === 0) {
    shown = '';
    return view.misread;
  }
  range = rangeOf(view, known);
  const inRange = ledger.within(known, range);
  picker.show(known, range, view);
  hours.show(known, range, incompleteFrom(), views.isFiltered(view));
  const queries = currentQueries();
  dimOthers();
  document.title = `${format.hours(range)} · flowtally`;
  const chart = drawHours(signal);
  const address = views.format({ ...view, live: true, exact: false });
  const fresh = JSON.stringify([address, range, inRange.map(Object.values)], format.withBigInt);
  if (fresh === shown) {
    report([await chart], false);
    signal.throwIfAborted();
    tell(signal);
    return bannerText || view.misread;
  }
  shown = '';

  const asked = requestsNow();
  const sumOf = (params) => api.flows(params, signal).then(({ rows }) => sum(rows));
  const isWhole = inRange.every(({ hour, span }) => hour >= range.from && hour + span <= range.to);
  const totals = views.isFiltered(view) || !isWhole ? sumOf(asked.total) : Promise.resolve(sumOfHours(inRange));
  const span = range.to - range.from;
  const list = (id, field) => {
    const whole = views.subject(view) === null ? totals : sumOf(requests.sum(asked[id]));
    const rows = api.flows(asked[id], signal);
    return [Promise.all([rows, whole]), ([{ rows }, whole]) => talkers.show(at(id), field, rows, whole, span)];
  };
  const pairs = api.flows(asked['edges-chart'], signal);
  const shows = {
    total: [totals, (totals) => showTotals(totals, inRange)],
    sources: list('sources', 'src_app'),
    destinations: list('destinations', 'dest_app'),
    'edges-chart': [Promise.all([pairs, totals]), ([{ rows }, totals]) => edges.show(rows, totals, span)],
    table: [api.flows(asked.table, signal), (response) => table.show(response, view, ledger.finest(known, range))],
  };
  const parts = Object.entries(shows).map(([id, [response, show]]) => part(id, queries[id], signal, response, show));
  const results = await Promise.allSettled([...parts, chart]);
  const thrown = results.find(({ status }) => status === 'rejected');
  if (thrown) throw thrown.reason;
  signal.throwIfAborted();
  const errors = results.map(({ value }) => value).filter((value) => value);
  // Retry overload errors at the normal interval.
  shown = errors.some(({ error }) => error.passes) ? '' : fresh;
  // Sums of whole hours come from /hours, so they cannot fail.
  const all = views.isFiltered(view) ? results.length : results.length - 2;
  const areAlike = errors.length >= all && new Set(errors.map(({ error }) => error.message)).size === 1;
  bannerText = areAlike ? `${errors[0].error.message}.` : '';
  report(errors, areAlike);
  tell(signal);
  return bannerText || view.misread;
}

/** The sentence comes last: it does not delay the cards. */
function tell(signal) {
  sentence.show(known, Math.floor(api.now() / 3.6e6), signal);
}

/** Shows one response in its card, or resolves to its error; throws an error that concerns all cards. */
async function part(id, query, signal, response, show) {
  card(id).setAttribute('aria-busy', 'true');
  try {
    const result = await response;
    if (signal.aborted) return;
    show(result);
    loadedQueries.set(id, query);
    cards.note(card(id), '');
    card(id).classList.remove('other');
    card(id).removeAttribute('aria-busy');
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof api.Problem) || error.status === 0 || error.asksForToken) throw error;
    return { id, error };
  }
}

/** Shows in each card its error, unless the banner shows one for all (`isInBanner`). */
function report(errors, isInBanner) {
  for (const { id, error } of errors.filter((one) => one)) {
    cards.note(card(id), isInBanner ? '' : error.message);
    card(id).removeAttribute('aria-busy');
  }
}

/** The state that the chart of hours was drawn from. */
let drawn = [];
/** Aborts the current fetch when the chart shows other hours. */
let chartTurn = new AbortController();

/** Draws the chart of hours, of all flows or of those that match the filters. */
function drawHours(signal) {
  const frame = hours.frameAndStep();
  const query = `${views.narrow(new URLSearchParams(), view)} ${view.by} ${Object.values(frame)}`;
  const state = [known, query, range.from, range.to, incompleteFrom(), view.unit, view.zone];
  if (state.every((one, i) => one === drawn[i])) {
    card('hours-chart').classList.remove('other');
    card('hours-chart').removeAttribute('aria-busy');
    return Promise.resolve();
  }
  dim('hours-chart', query);
  chartTurn.abort();
  const mine = new AbortController();
  chartTurn = mine;
  signal.addEventListener('abort', () => mine.abort(), { once: true });
  const rows = ledger.inSteps(known, frame, mine.signal);
  const sums = rows.then((rows) => series.sums(view, rows, frame.step, mine.signal));
  const ofApps = view.by === 'direction' ? null : series.apps(view, view.by, frame, frame.step, mine.signal);
  const both = Promise.all([sums, ofApps]);
  return part('hours-chart', query, mine.signal, both, ([sums, apps]) => {
    hours.draw(sums, apps && { ...apps, field: view.by, step: frame.step });
    drawn = state;
  });
}

/** Draws the chart again for another part of the timeline or another width. */
async function redrawHours() {
  drawn = [];
  try {
    report([await drawHours(turn.signal)], false);
  } catch (error) {
    failed(error);
  }
}

/** The first hour that has not ended; unknown for hours without a date. */
function incompleteFrom() {
  return known.findLast(({ hour }) => format.isDated(hour)) ? Math.floor(api.now() / 3.6e6) : Infinity;
}

/** The hours that `view` covers, from (inclusive) and to (exclusive): whole days where only those are kept. */
function rangeOf(view, hours) {
  return ledger.aligned(hours, chosenOf(view, hours));
}

function chosenOf({ from, to, last }, hours) {
  const [first, newest] = [hours[0].hour, hours.at(-1).hour];
  if (from === null && to === null) {
    // An incomplete hour would look like a drop in traffic.
    const complete = hours.findLast(({ hour }) => hour < incompleteFrom())?.hour ?? newest;
    return { from: last === null ? complete : Math.max(Math.min(first, complete), complete + 1 - last), to: complete + 1 };
  }
  if (to === null) return { from: Math.max(from, first), to: Math.max(newest, from) + 1 };
  // All hours before `to`, from the first stored one if that is before `to`.
  return { from: from ?? (first < to ? first : 0), to };
}

/** The sum of `rows`, and of the bytes before if the rows are compared. */
function sum(rows) {
  const of = (field) => rows.reduce((sum, row) => sum + (row[field] ?? 0n), 0n);
  const sums = { bytes_tx: of('bytes_tx'), bytes_rx: of('bytes_rx') };
  const isCompared = rows.some((row) => row.bytes_tx_before !== undefined);
  return isCompared ? { ...sums, bytes_tx_before: of('bytes_tx_before'), bytes_rx_before: of('bytes_rx_before') } : sums;
}

/** The same for rows of /hours, whose bytes before are in other rows. */
function sumOfHours(rows) {
  const sums = sum(rows);
  if (before() === null) return sums;
  const sumsBefore = sum(ledger.within(known, { from: before(), to: range.from }));
  return { ...sums, bytes_tx_before: sumsBefore.bytes_tx, bytes_rx_before: sumsBefore.bytes_rx };
}

function showTotals(sums, inRange) {
  const { bytes_tx, bytes_rx, bytes_tx_before, bytes_rx_before } = sums;
  const total = bytes_tx + bytes_rx;
  const isCompared = bytes_tx_before !== undefined;
  const figures = [['total', total, isCompared && bytes_tx_before + bytes_rx_before], ['sent', bytes_tx, bytes_tx_before], ['received', bytes_rx, bytes_rx_before]];
  for (const [id, value, before] of figures) {
    at(id).textContent = format.amount(value, range.to - range.from);
    const change = isCompared ? format.change(value, before) : '';
    at(`${id}-exact`).replaceChildren(...dom.breakable(format.exactBytes(value)), change && `, ${change}`);
  }
  const isByHour = inRange.every(({ span }) => span === 1);
  const count = (isByHour ? inRange.length : range.to - range.from).toLocaleString('en');
  const isIncomplete = inRange.length > 0 && inRange.at(-1).hour >= incompleteFrom();
  at('span').textContent = count;
  at('span-exact').textContent = isIncomplete ? 'incomplete: the last has not ended' : '';
  const what = views.isFiltered(view) ? ', filtered' : '';
  const summary = `${format.hours(range)}${what}: ${format.amount(total, range.to - range.from)} in total${isIncomplete ? ', incomplete' : ''}`;
  // Screen readers announce each change.
  if (at('summary').textContent !== summary) at('summary').textContent = summary;
}

function failed(error) {
  if (error.asksForToken) {
    askForToken(error);
    return;
  }
  if (!(error instanceof api.Problem)) console.error(error);
  const pause = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
  failures += 1;
  say(`${error.message}. Trying again…`);
  document.body.classList.add('stale');
  showControls();
  clearTimeout(timer);
  // Also while updates are paused: the requested data has not arrived.
  if (!document.hidden) timer = setTimeout(refresh, pause);
}

function recovered(text) {
  failures = 0;
  say(text);
  document.body.classList.remove('stale');
  showControls();
}

/** Shows `text` in the banner; hides the banner if it is empty. */
function say(text) {
  const banner = at('banner');
  banner.hidden = text === '';
  if (banner.textContent !== text) banner.textContent = text;
}

function askForToken(problem) {
  recovered('');
  at('live').hidden = true;
  const isFirst = at('token').hidden && at('token-value').value === '';
  at('token').hidden = false;
  at('content').hidden = true;
  at('empty').hidden = at('arrivals').hidden = true;
  at('token-problem').textContent = isFirst ? '' : `${problem.message}.`;
  at('token-value').focus();
}

at('token').addEventListener('submit', (event) => {
  event.preventDefault();
  const token = at('token-value').value.trim();
  if (!/^[!-~]+$/.test(token)) {
    at('token-problem').textContent = 'This is not a valid token: one has visible ASCII characters only.';
    return;
  }
  api.useToken(token);
  refresh();
});

function showControls() {
  const isOffline = failures > 0;
  at('live-state').textContent = isOffline ? 'Offline' : view.live ? 'Live' : 'Paused';
  at('live').classList.toggle('paused', !view.live);
  at('live').title = view.live ? 'Looks for what is new every ten seconds; click to pause' : 'Shows nothing new; click to resume';
  filters.show(view);
  format.useUnit(view.unit);
  format.useZone(view.zone);
  at('unit').value = view.unit;
  at('zone-choice').value = view.zone;
  at('series').value = view.by;
  at('compare').checked = view.compare;
  at('compare-problem').hidden = !view.compare || known.length === 0 || before() !== null;
  at('edges-as').value = view.pairs;
  const subject = views.subject(view);
  at('sources-title').textContent = subject === null ? 'Top sources' : `Sources of ${format.cut(format.name(subject), 40)}`;
  // In flows of an application on either side, the sources are not always it.
  at('sent-title').textContent = subject === null ? 'Sent (tx)' : 'Sent by sources (tx)';
  at('received-title').textContent = subject === null ? 'Received (rx)' : 'Received by sources (rx)';
  at('destinations-title').textContent = subject === null ? 'Top destinations' : `Destinations of ${format.cut(format.name(subject), 40)}`;
}

at('live').addEventListener('click', () => {
  go({ live: !view.live, cursor: view.cursor, pages: view.pages }, { replace: true });
});

/** Adds the names in `change` to the filters. */
function narrowTo(change) {
  const merged = Object.entries(change).map(([field, value]) => [field, [...new Set([...view[field], value])]]);
  go(Object.fromEntries(merged));
}

/** Makes the page about an application: its sources, its destinations, and its traffic by hour. */
function about(name) {
  go({ peer: [name], src_app: [], dest_app: [] });
}

/** Changes how the same flows are shown. */
function showAs(change) {
  go({ cursor: view.cursor, pages: view.pages, ...change }, { replace: true });
}

at('unit').onchange = ({ target }) => showAs({ unit: target.value });
at('zone-choice').onchange = ({ target }) => showAs({ zone: target.value });
at('edges-as').onchange = ({ target }) => showAs({ pairs: target.value });
at('series').onchange = ({ target }) => showAs({ by: target.value });
at('compare').onchange = ({ target }) => go({ compare: target.checked, sort: target.checked ? 'change' : 'bytes' });
dom.options(at('series'), Object.entries(views.SERIES), view.by);

/** Chooses as many hours before or after, as the buttons do. */
const step = (id) => at(id).disabled || at(id).click();
keys.start({ '/': () => at('search').focus(), '[': () => step('previous-hour'), ']': () => step('next-hour') });
cards.start({
  target: (id) => (id === 'hours-chart' ? requests.bars(view, hours.frameAndStep()) : `flows?${requestsNow()[id]}`),
  name: () => download.fileName(views.query(view, range)),
});
saved.start(
  () => views.format({ ...view, cursor: '' }),
  (address) => go({ ...views.parse(address), live: view.live }),
);
empty.start(refresh);
picker.start(go);
hours.start(go, redrawHours, about);
filters.start(go, () => view);
talkers.start(about);
edges.start(about, narrowTo);
table.start({
  go,
  narrowTo,
  about,
  view: () => view,
  range: () => range,
  query: () => tableQuery(),
});

let width = innerWidth;
const resize = (isPrint) => {
  if (known.length === 0) return;
  hours.resize(isPrint);
  edges.draw();
};
addEventListener('resize', dom.calm(RESIZE_MS, () => {
  // On a phone, scrolling changes the height of the browser's bars.
  if (innerWidth !== width) resize(false);
  width = innerWidth;
}));
// Draw the charts at the width of the paper before the browser counts the pages; there is no time to fetch.
const print = (isPaper) => {
  svg.usePaper(isPaper);
  resize(true);
};
addEventListener('beforeprint', () => print(true));
addEventListener('afterprint', () => print(false));

refresh();
