// What all cards have: an error, and buttons for what the card shows as a curl command and as a picture.

import * as api from './api.js';
import * as copy from './copy.js';
import * as dom from './dom.js';
import * as download from './download.js';
import * as picture from './picture.js';

const at = (id) => document.getElementById(id);

/**
 * `target` is the request that the card with a part shows, as a path of the API with its query, by the part's id; `name`
 * names the shown hours, for a file.
 */
export function start({ target, name }) {
  for (const button of document.querySelectorAll('[data-curl]')) {
    const id = button.dataset.curl;
    button.onclick = () => {
      const text = command(target(id));
      copy.text(text, button, () => show(button.closest('.card, .figures'), text));
    };
  }
  for (const button of document.querySelectorAll('[data-svg]')) {
    const id = button.dataset.svg;
    const title = button.closest('.card').querySelector('h2');
    button.onclick = () => {
      const text = at(id).matches('ol') ? picture.ofList(at(id), title.textContent) : picture.ofChart(at(id), title.textContent);
      if (text !== null) download.save(new Blob([text], { type: 'image/svg+xml' }), `flowtally-${id.replace('-chart', '')}-${name()}.svg`);
    };
  }
}

/** The command for a shell. Names in a query are encoded, so that no quote is in it. */
function command(target) {
  const url = new URL(target, new URL('.', location.href)).href.replaceAll("'", '%27');
  const token = api.hasToken() ? ` -H "Authorization: Bearer $FLOWTALLY_TOKEN"` : '';
  return `curl -s '${url}'${token}`;
}

/** Shows `text` in `card`, selected, so that it can be copied by hand. */
function show(card, text) {
  let shown = card.querySelector('.command');
  if (!shown) {
    shown = dom.make('pre', { class: 'command', tabindex: '0', role: 'group', 'aria-label': 'The request as a curl command' });
    (card.querySelector('.head') ?? card.lastElementChild).after(shown);
  }
  shown.textContent = text;
  getSelection().selectAllChildren(shown);
}

/** Shows an error below the head of a card; with an empty `text`, removes it. */
export function note(card, text) {
  let line = card.querySelector('.problem');
  if (text === '') {
    line?.remove();
    return;
  }
  if (!line) {
    line = dom.make('p', { class: 'problem wrong', role: 'alert' });
    (card.querySelector('.head') ?? card.lastElementChild).after(line);
  }
  if (line.textContent !== text) line.textContent = text;
}
