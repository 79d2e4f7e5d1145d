// Questions to the service.

/** Longest wait for an answer. */
const ANSWER_MS_MAX = 60_000;

let token = '';

/** Takes the token that goes with every request from now on. It is nowhere else. */
export function useToken(value) {
  token = value;
}

/** Why there is no answer. `status` is 0 where there was nobody to give one. */
export class Problem extends Error {
  constructor(status, title, detail, type = '') {
    super(`${title}: ${detail}`);
    Object.assign(this, { status, type });
  }

  /** Another token may help. */
  get asksForToken() {
    return /:(no-token|wrong-token|token-lacks-right)$/.test(this.type);
  }

  /** The same request may be answered later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The answer to GET `path`; a failure is a Problem, an abort stays what it is. */
export async function get(path, { params, accept = 'application/json', signal, timeout = ANSWER_MS_MAX } = {}) {
  const query = params?.toString();
  const headers = { Accept: accept };
  if (token !== '') headers.Authorization = `Bearer ${token}`;
  const timer = AbortSignal.timeout(timeout);
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path, {
      headers,
      cache: 'no-store',
      credentials: 'same-origin',
      signal: signal ? AbortSignal.any([signal, timer]) : timer,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, 'The service does not answer', 'it is stopped, or cannot be reached from here');
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const { title = `Status ${response.status}`, detail = 'there is no more to it', type } = problem;
  throw new Problem(response.status, title, detail, type);
}

/** Reads the rows of `response`, bytes as BigInt: they do not fit into a Number. */
export async function rows(response) {
  try {
    return JSON.parse(await response.text(), (key, value, context) =>
      key === 'bytes_tx' || key === 'bytes_rx' ? BigInt(context?.source ?? value) : value,
    );
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, 'The answer broke off', 'the service may be stopping');
  }
}

/** The rows that `params` ask for, and the cursor of those that follow, if there are any. */
export async function flows(params, signal) {
  const response = await get('flows', { params, signal });
  const next = /<([^>]*)>;\s*rel="?next"?/.exec(response.headers.get('Link') ?? '');
  const cursor = next ? new URL(next[1], location.href).searchParams.get('cursor') : null;
  return { rows: await rows(response), cursor };
}

/** Every hour that holds flows, and its sums. */
export async function hours(signal) {
  return rows(await get('hours', { signal }));
}
