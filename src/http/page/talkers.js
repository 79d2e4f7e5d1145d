// Top talkers: the applications with most bytes, each a bar to click.

import * as dom from './dom.js';
import * as format from './format.js';
import { FILTERS } from './view.js';

let narrowTo;

/** `choose` is told the application that is clicked, as a filter. */
export function start(choose) {
  narrowTo = choose;
}

/** Shows `rows` (`field` and bytes, largest first) in `list`, and how much of `totals` each is. */
export function show(list, field, rows, totals) {
  const whole = totals.bytes_tx + totals.bytes_rx;
  const sums = rows.map((row) => row.bytes_tx + row.bytes_rx);
  const items = rows.map((row, i) => {
    const name = row[field];
    const bar = dom.make('span', { class: 'share', 'aria-hidden': 'true' });
    bar.style.width = `${(100 * Number(sums[i])) / Number(sums[0] || 1n)}%`;
    const button = dom.make(
      'button',
      {
        type: 'button',
        'data-key': name,
        title: `Only ${FILTERS[field]} ${format.name(name)}; ${format.exactBytes(sums[i])}`,
        onclick: () => narrowTo({ [field]: name }),
      },
      bar,
      dom.make('bdi', { class: 'name', text: format.name(name) }),
      dom.make('span', { class: 'percent', text: format.percent(sums[i], whole) }),
      dom.make('span', { class: 'bytes', text: format.bytes(sums[i]) }),
    );
    return dom.make('li', {}, button);
  });
  if (items.length === 0) items.push(dom.make('li', { class: 'none', text: 'No flows here' }));
  dom.replace(list, ...items);
}
