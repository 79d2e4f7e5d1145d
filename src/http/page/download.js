// The rows of the table as a CSV file for spreadsheets: all of them, up to a bound, since the browser holds them.

import * as api from './api.js';
import * as csv from './csv.js';
import * as format from './format.js';

const BYTES_MAX = 256e6;
/** Longest wait for the whole file. */
const ANSWER_MS_MAX = 600_000;

/** A click on `button` downloads the rows for `query()`; another click stops it. `state` shows the progress. */
export function start(button, state, query) {
  const title = button.textContent;
  let under;
  button.onclick = async () => {
    if (under) {
      under.abort();
      return;
    }
    under = new AbortController();
    button.textContent = 'Stop';
    state.textContent = 'Downloading…';
    try {
      const params = query();
      const blob = await fetchAll(params, under.signal, (bytes) => {
        state.textContent = `Downloading… ${format.bytes(bytes)}`;
      });
      save(blob, `flowtally-${fileName(params)}.csv`);
      state.textContent = `Downloaded ${format.bytes(blob.size)}`;
    } catch (error) {
      state.textContent = under.signal.aborted
        ? 'Stopped'
        : error instanceof api.Problem
          ? error.message
          : 'The download was truncated; try again';
    }
    button.textContent = title;
    under = undefined;
  };
}

async function fetchAll(params, signal, progress) {
  const response = await api.get('flows', { params, accept: 'text/csv', signal, timeout: ANSWER_MS_MAX });
  const decoder = new TextDecoder();
  const guard = csv.guard();
  const parts = [csv.BYTE_ORDER_MARK];
  let bytes = 0;
  let told = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    parts.push(guard(decoder.decode(value, { stream: !done })));
    if (done) break;
    bytes += value.length;
    if (bytes > BYTES_MAX) {
      reader.cancel();
      throw new api.Problem(413, 'Too much for a browser', `curl -H 'Accept: text/csv' '${response.url}' has no bound`);
    }
    if (bytes - told > 1e6) progress((told = bytes));
  }
  return new Blob(parts, { type: 'text/csv' });
}

/** The hours that `params` name, the last included: "20", "2026-11-29T15Z" or "2026-11-29T15Z-2026-11-29T17Z". */
export function fileName(params) {
  const part = (hour) => (format.isDated(hour) ? `${new Date(hour * 3.6e6).toISOString().slice(0, 13)}Z` : String(hour));
  if (params.has('hour')) return part(Number(params.get('hour')));
  return `${part(Number(params.get('from')))}-${part(Number(params.get('to')) - 1)}`;
}

/** Has the browser save `blob` under `name`. */
export function save(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
