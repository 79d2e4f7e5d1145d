// Requests to the service.

/** Longest wait for a response. */
const ANSWER_MS_MAX = 60_000;

/** The last responses to GET /hours by their parameters, the oldest first: tag, if there is one, text and rows. */
const lasts = new Map();
const LASTS_MAX = 8;
/** Milliseconds that the service's clock is ahead of this one. */
let ahead = 0;
/** See `ledgerDifference`. */
let difference = null;

let token = '';

/** Sets the token that all further requests carry. Only kept in memory. */
export function useToken(value) {
  token = value;
}

/** The reason why a request failed. `status` is 0 if no response arrived. */
export class Problem extends Error {
  constructor(status, title, detail, type = '') {
    super(`${title}: ${detail}`);
    Object.assign(this, { status, type });
  }

  /** Another token may help. */
  get asksForToken() {
    return /:(no-token|wrong-token|token-lacks-right)$/.test(this.type);
  }

  /** The same request may succeed later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Whether requests carry a token. */
export function hasToken() {
  return token !== '';
}

/** The flows that the ledger lacks, as text, by the last response to GET /hours; null if they have not been compared. */
export function ledgerDifference() {
  return difference;
}

/** The time by the service's clock, in milliseconds since the epoch. */
export function now() {
  return Date.now() + ahead;
}

/**
 * The response to GET `path`; throws a Problem, or the abort itself. With the `tag` of an earlier response, it may be a
 * 304.
 */
export async function get(path, { params, accept = 'application/json', signal, tag, timeout } = {}) {
  const query = params?.toString();
  const headers = { Accept: accept };
  // The browser does not do this for responses with `Cache-Control: no-store`.
  if (tag) headers['If-None-Match'] = tag;
  const response = await send(query ? `${path}?${query}` : path, { headers }, signal, timeout);
  if (response.ok || (tag && response.status === 304)) return response;
  throw await problem(response);
}

/** Sends `ndjson`, lines of flows, as one batch under `key`, so that it counts once; throws a Problem. */
export async function post(ndjson, key) {
  const headers = { 'Content-Type': 'application/x-ndjson', 'Idempotency-Key': key };
  const response = await send('flows', { method: 'POST', headers, body: ndjson });
  if (!response.ok) throw await problem(response);
}

/** The response to a request, whatever its status; throws a Problem if there is none, or the abort itself. */
async function send(target, request, signal, timeout = ANSWER_MS_MAX) {
  const headers = token === '' ? request.headers : { ...request.headers, Authorization: `Bearer ${token}` };
  // Browsers of 2023 have no AbortSignal.any.
  const end = new AbortController();
  signal?.addEventListener('abort', () => end.abort(), { once: true });
  if (signal?.aborted) end.abort();
  setTimeout(() => end.abort(new DOMException('no response in time', 'TimeoutError')), timeout);
  let response;
  try {
    response = await fetch(target, { ...request, headers, cache: 'no-store', credentials: 'same-origin', signal: end.signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, 'The service does not respond', 'it is stopped, or cannot be reached from here');
  }
  const date = Date.parse(response.headers.get('Date') ?? '');
  if (!Number.isNaN(date)) ahead = date - Date.now();
  return response;
}

/** The Problem that a response describes. */
async function problem(response) {
  const found = await response.json().catch(() => ({}));
  const { title = `Status ${response.status}`, detail = 'there is no more to it', type } = found;
  return new Problem(response.status, title, detail, type);
}

/** Strings, which are not changed, and numbers. */
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;
/** From this number of digits on, JSON.parse may round. */
const LONG = /\d{16}/;

/**
 * The rows in `text`, bytes as BigInt, since they do not fit into a Number. Long numbers are put in quotes before
 * they are parsed: only newer browsers show the source text to JSON.parse's reviver, which is slow, too.
 */
function parse(text) {
  const quote = (token) => (token[0] !== '"' && LONG.test(token) ? `"${token}"` : token);
  const rows = JSON.parse(LONG.test(text) ? text.replace(TOKENS, quote) : text);
  for (const row of rows) {
    row.bytes_tx = BigInt(row.bytes_tx);
    row.bytes_rx = BigInt(row.bytes_rx);
    if (row.bytes_tx_before === undefined) continue;
    row.bytes_tx_before = BigInt(row.bytes_tx_before);
    row.bytes_rx_before = BigInt(row.bytes_rx_before);
  }
  return rows;
}

/** The text of `response`, converted by `read`. */
async function whole(response, read) {
  try {
    return read(await response.text());
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, 'The response was truncated', 'the service may be stopping');
  }
}

/** The rows for `params`, and the cursor of the next page, if there is one. */
export async function flows(params, signal) {
  const response = await get('flows', { params, signal });
  const next = /<([^>]*)>;\s*rel="?next"?/.exec(response.headers.get('Link') ?? '');
  const cursor = next ? new URL(next[1], location.href).searchParams.get('cursor') : null;
  return { rows: await whole(response, parse), cursor };
}

/** The rows of GET /hours with these parameters: the same array as long as nothing changes. */
export async function hours(given, signal) {
  const params = new URLSearchParams(given);
  const key = String(params);
  const last = lasts.get(key) ?? { tag: null, text: null, rows: [] };
  const response = await get('hours', { params, signal, tag: last.tag });
  difference = response.headers.get('Flowtally-Ledger-Difference');
  let now = last;
  if (response.status !== 304) {
    const tag = response.headers.get('ETag');
    now = await whole(response, (text) => ({ tag, text, rows: text === last.text ? last.rows : parse(text) }));
  }
  lasts.delete(key);
  lasts.set(key, now);
  if (lasts.size > LASTS_MAX) lasts.delete(lasts.keys().next().value);
  return now.rows;
}
