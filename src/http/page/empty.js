// Instructions, shown while there are no flows, and the first flows as they come.

import * as api from './api.js';
import * as copy from './copy.js';

/** Flows up to which the page counts the first ones, and for how many refreshes. */
const FIRST_FLOWS_MAX = 1_000_000;
const FIRST_REFRESHES = 30;
const DAY_MS = 8.64e7;

const at = (id) => document.getElementById(id);

/** Whether this page has seen the service without flows, and the number of refreshes with flows since then. */
let wasEmpty = false;
let refreshes = 0;

/** `refresh` looks for flows at once. */
export function start(refresh) {
  at('empty-sample').onclick = async () => {
    at('empty-sample').disabled = true;
    say('Loading…');
    try {
      await loadSample();
      say('');
      refresh();
    } catch (error) {
      if (!(error instanceof api.Problem)) console.error(error);
      say(error.asksForToken ? 'Sending needs a token with the right to write: use a command.' : `${error.message}.`);
    }
    at('empty-sample').disabled = false;
  };
}

function say(text) {
  at('empty-sample-state').textContent = text;
}

/**
 * Sends the sample day as the flows of yesterday, the last day of UTC that is over: none of its hours is ahead of the clock.
 * The key is the day's, so it counts once, however often it is sent.
 */
async function loadSample() {
  const day = Math.floor(api.now() / DAY_MS) - 1;
  const response = await fetch(new URL('sample-day.ndjson', import.meta.url));
  if (!response.ok) throw new api.Problem(response.status, 'The sample day is gone', 'the service has another version by now; reload the page');
  const lines = (await response.text()).trimEnd().split('\n');
  const flows = lines.map((line) => {
    const flow = JSON.parse(line);
    return JSON.stringify({ ...flow, hour: day * 24 + flow.hour });
  });
  await api.post(flows.join('\n'), `sample-day/${day}`);
}

/** Whether the first flows are expected, or have just come. */
export function isBeginning() {
  return wasEmpty && refreshes <= FIRST_REFRESHES;
}

/** Shows how to send a first flow if there are no `flows`, or else how many of the first ones have come. */
export function show(flows) {
  const isEmpty = flows === 0;
  if (isEmpty) wasEmpty = true;
  refreshes = isEmpty ? 0 : refreshes + 1;
  const counts = !isEmpty && isBeginning() && flows <= FIRST_FLOWS_MAX;
  at('arrivals').hidden = !counts;
  const text = counts ? `The first flows are here: ${flows.toLocaleString('en')} so far.` : '';
  if (at('arrivals').textContent !== text) at('arrivals').textContent = text;
  const is = !at('empty').hidden;
  at('empty').hidden = !isEmpty;
  if (!isEmpty || is) return;
  const base = new URL('.', location.href).href;
  const token = api.hasToken() ? ` \\\n  -H "Authorization: Bearer $FLOWTALLY_TOKEN"` : '';
  const hour = Math.floor(api.now() / 3.6e6);
  at('empty-token').hidden = !api.hasToken();
  at('empty-command').textContent = `curl '${base}flows'${token} \\
  -H 'Content-Type: application/json' \\
  --data '[{"src_app": "web", "dest_app": "api", "vpc_id": "vpc-0",
    "bytes_tx": 100, "bytes_rx": 500, "hour": ${hour}}]'`;
  at('empty-send').textContent = `flowtally send --url '${base}' ${token && '--token-file FILE '}data/sample-day.ndjson`;
}

for (const button of document.querySelectorAll('[data-copies]')) {
  const text = at(button.dataset.copies);
  button.onclick = () => copy.text(text.textContent, button, () => getSelection().selectAllChildren(text));
}
