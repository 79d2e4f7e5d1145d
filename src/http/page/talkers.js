// Top talkers: the applications with most bytes, each a bar to click.

import * as dom from './dom.js';
import * as format from './format.js';

/** Longer names are shortened. */
const NAME_CHARS_MAX = 80;

let about;

/** `open` makes the page about the application that is clicked. */
export function start(open) {
  about = open;
}

/**
 * Shows `rows` (`field` and bytes, largest first) of so many `hours` in `list`, and of each its share in `totals`, or
 * how it changed if the rows are compared.
 */
export function show(list, field, rows, totals, hours) {
  const whole = totals.bytes_tx + totals.bytes_rx;
  let others = whole;
  let othersBefore = totals.bytes_tx_before === undefined ? null : totals.bytes_tx_before + totals.bytes_rx_before;
  const labels = format.labels(rows.map((row) => row[field]), NAME_CHARS_MAX);
  const items = rows.map((row, i) => {
    const name = row[field];
    const bytes = row.bytes_tx + row.bytes_rx;
    others -= bytes;
    const isCompared = row.bytes_tx_before !== undefined;
    const before = isCompared ? row.bytes_tx_before + row.bytes_rx_before : 0n;
    if (othersBefore !== null) othersBefore -= before;
    const change = isCompared ? format.change(bytes, before) : null;
    const compared = isCompared ? `; before, ${format.exactBytes(before)}` : '';
    const button = dom.make(
      'button',
      {
        type: 'button',
        'data-key': name,
        title: `All about ${format.name(name)}; ${format.exactBytes(bytes)}${compared}`,
        onclick: () => about(name),
      },
      ...line(labels[i], bytes, whole, hours, change),
    );
    return dom.make('li', {}, button);
  });
  if (items.length === 0) items.push(dom.make('li', { class: 'none', text: 'No flows here' }));
  else if (others > 0n) {
    const change = othersBefore === null ? null : format.change(others, othersBefore);
    items.push(dom.make('li', { class: 'others' }, ...line(format.OTHERS, others, whole, hours, change)));
  }
  dom.replace(list, ...items);
}

/** The content of a line: text, and a bar for its share of all bytes. `change` is shown in place of the share. */
function line(name, bytes, whole, hours, change) {
  const bar = dom.make('span', { class: 'share', 'aria-hidden': 'true' });
  bar.style.width = `${(100 * Number(bytes)) / Number(whole || 1n)}%`;
  return [
    dom.make('bdi', { class: 'name', text: name }),
    dom.make('span', { class: 'percent', text: change ?? format.percent(bytes, whole) }),
    dom.make('span', { class: 'bytes', text: format.amount(bytes, hours) }),
    dom.make('span', { class: 'track', 'aria-hidden': 'true' }, bar),
  ];
}
