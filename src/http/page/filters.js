// The search field, and the active filters as chips.

import * as dom from './dom.js';
import * as format from './format.js';
import { FILTERS } from './view.js';

/** Pause in typing after which the search starts. */
const TYPING_MS = 250;

const at = (id) => document.getElementById(id);

let go;

/** `change` changes the view. */
export function start(change, view) {
  go = change;
  const search = dom.calm(TYPING_MS, () => {
    if (at('search').value !== view().search) go({ search: at('search').value }, { replace: true });
  });
  at('search').oninput = search;
}

/** Shows the search and the filters of `view`. */
export function show(view) {
  const input = at('search');
  const focus = [...at('filters').querySelectorAll('button')].indexOf(document.activeElement);
  if (document.activeElement !== input) input.value = view.search;
  const chips = Object.entries(FILTERS).flatMap(([field, title]) =>
    view[field].map((value) => {
      const name = format.name(value);
      const remove = dom.make('button', {
        type: 'button',
        text: '×',
        'data-key': `${field}=${value}`,
        'aria-label': `Remove the filter ${title} ${name}`,
        onclick: () => go({ [field]: view[field].filter((other) => other !== value) }),
      });
      return dom.make('li', {}, dom.make('span', { text: title }), dom.make('bdi', { text: format.cut(name, 80), title: name }), remove);
    }),
  );
  if (chips.length > 1) {
    const none = Object.fromEntries(Object.keys(FILTERS).map((field) => [field, []]));
    chips.push(dom.make('li', { class: 'clear' }, dom.make('button', { type: 'button', text: 'Clear all', 'data-key': 'all', onclick: () => go(none) })));
  }
  dom.replace(at('filters'), ...chips);
  if (focus < 0 || at('filters').contains(document.activeElement)) return;
  // After a removal by keyboard, focus the next filter.
  const left = [...at('filters').querySelectorAll('li:not(.clear) button')];
  (left[Math.min(focus, left.length - 1)] ?? input).focus();
}
