// Views that the user has saved in this browser.

import * as dom from './dom.js';

/** Apart from those of another service behind the same proxy. */
const KEY = `flowtally views ${location.pathname}`;
const VIEWS_MAX = 50;
const NAME_CHARS_MAX = 60;
const ADDRESS_CHARS_MAX = 4_000;

const at = (id) => document.getElementById(id);

let address;
let choose;

/** `current` is the address of the shown view, a query string; `change` shows another one. */
export function start(current, change) {
  address = current;
  choose = change;
  at('saved-open').onclick = () => {
    show(read());
    say('');
    at('saved-name').value = '';
    at('saved').showModal();
  };
  at('saved-close').onclick = () => at('saved').close();
  at('saved-name').maxLength = NAME_CHARS_MAX;
  at('saved-form').addEventListener('submit', (event) => {
    event.preventDefault();
    save(at('saved-name').value.trim());
  });
}

/** Saves the shown view under `name`, in place of one of that name. */
function save(name) {
  const others = read().filter((one) => one.name !== name);
  if (name === '') say('Give it a name.');
  else if (others.length >= VIEWS_MAX) say(`${VIEWS_MAX} views are saved; remove one first.`);
  else if (address().length > ADDRESS_CHARS_MAX) say('This view has too many filters to be saved.');
  else if (write([...others, { name, address: address() }])) at('saved-name').value = '';
}

function remove(name) {
  write(read().filter((one) => one.name !== name));
}

/** The saved views. What is not one is left out: other versions and other pages of this origin write there too. */
function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? '[]');
    return found.filter(isView).slice(0, VIEWS_MAX);
  } catch {
    return [];
  }
}

function isView(one) {
  const isText = (value, max) => typeof value === 'string' && value.length <= max;
  return isText(one?.name, NAME_CHARS_MAX) && isText(one?.address, ADDRESS_CHARS_MAX);
}

/** Stores and shows `views`; returns whether that was possible. */
function write(views) {
  const sorted = [...views].sort((a, b) => a.name.localeCompare(b.name));
  try {
    localStorage.setItem(KEY, JSON.stringify(sorted));
  } catch {
    say('This browser does not store views.');
    return false;
  }
  show(sorted);
  say('');
  return true;
}

function show(views) {
  const items = views.map(({ name, address }) => {
    const open = () => {
      at('saved').close();
      choose(address);
    };
    return dom.make(
      'li',
      {},
      dom.make('button', { type: 'button', class: 'name', 'data-key': `open ${name}`, onclick: open }, dom.make('bdi', { text: name })),
      dom.make('button', { type: 'button', text: 'Remove', 'data-key': `remove ${name}`, 'aria-label': `Remove ${name}`, onclick: () => remove(name) }),
    );
  });
  if (items.length === 0) items.push(dom.make('li', { class: 'none', text: 'None yet' }));
  dom.replace(at('saved-list'), ...items);
}

function say(text) {
  at('saved-state').textContent = text;
}
