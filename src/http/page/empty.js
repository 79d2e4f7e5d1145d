// Instructions, shown while there are no flows.

import * as api from './api.js';

const at = (id) => document.getElementById(id);

/** If `isEmpty`, shows how to send a first flow. */
export function show(isEmpty) {
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
  button.onclick = async () => {
    const text = at(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = 'Copied';
      setTimeout(() => (button.textContent = 'Copy'), 2_000);
    } catch {
      // Without TLS, a page has no clipboard: the text is selected instead.
      getSelection().selectAllChildren(text);
    }
  };
}
