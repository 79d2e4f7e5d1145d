// Top talkers: the applications with most bytes, each a bar to click.

import * as dom from './dom.js';
import * as format from './format.js';
import { FILTERS } from './view.js';

/** Longer names are shortened. */
const NAME_CHARS_MAX = 80;

let narrowTo;

/** `choose` is called with the application that is clicked, as a filter. */
export function start(choose) {
  narrowTo = choose;
}

/** Shows `rows` (`field` and bytes, largest first) in `list`, and the share of each in `totals`. */
export function show(list, field, rows, totals) {
  const whole = totals.bytes_tx + totals.bytes_rx;
  let others = whole;
  const labels = format.labels(rows.map((row) => row[field]), NAME_CHARS_MAX);
  const items = rows.map((row, i) => {
    const name = row[field];
    const bytes = row.bytes_tx + row.bytes_rx;
    others -= bytes;
    const button = dom.make(
      'button',
      {
        type: 'button',
        'data-key': name,
        title: `Only ${FILTERS[field]} ${format.name(name)}; ${format.exactBytes(bytes)}`,
        onclick: () => narrowTo({ [field]: name }),
      },
      ...line(labels[i], bytes, whole),
    );
    return dom.make('li', {}, button);
  });
  if (items.length === 0) items.push(dom.make('li', { class: 'none', text: 'No flows here' }));
  else if (others > 0n) items.push(dom.make('li', { class: 'others' }, ...line(format.OTHERS, others, whole)));
  dom.replace(list, ...items);
}

/** The content of a line: text, and a bar for its share of all bytes. */
function line(name, bytes, whole) {
  const bar = dom.make('span', { class: 'share', 'aria-hidden': 'true' });
  bar.style.width = `${(100 * Number(bytes)) / Number(whole || 1n)}%`;
  return [
    dom.make('bdi', { class: 'name', text: name }),
    dom.make('span', { class: 'percent', text: format.percent(bytes, whole) }),
    dom.make('span', { class: 'bytes', text: format.bytes(bytes) }),
    dom.make('span', { class: 'track', 'aria-hidden': 'true' }, bar),
  ];
}
