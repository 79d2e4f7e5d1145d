// Traffic between applications as a matrix: a row for each source, a column for each destination.

import * as dom from './dom.js';
import * as format from './format.js';

/** Shades of cells; each stands for four times the bytes of the one before. */
const SHADES = 5;
const STEP = 4;
const NAME_CHARS_MAX = 24;

/**
 * Fills `table` with `links` (src_app, dest_app, bytes), largest first, of so many `hours`. `choose` is called with the
 * ends (field, name) that are clicked: one for a head, two for a cell.
 */
export function draw(table, links, hours, choose) {
  const names = (field) => [...new Set(links.map((link) => link[field]))];
  const [sources, destinations] = [names('src_app'), names('dest_app')];
  const bytes = new Map(links.map((link) => [`${link.src_app}\0${link.dest_app}`, link.bytes]));
  const most = Number(links[0]?.bytes ?? 1n);
  const head = (field, list) => {
    const labels = format.labels(list, NAME_CHARS_MAX);
    return list.map((name, i) => {
      const label = dom.make('bdi', { text: labels[i] });
      const button = dom.make('button', { type: 'button', 'data-key': `${field} ${name}`, onclick: () => choose([{ field, name }]) }, label);
      return dom.make('th', { scope: field === 'src_app' ? 'row' : 'col' }, button);
    });
  };
  const cell = (src, dest) => {
    const value = bytes.get(`${src}\0${dest}`);
    if (value === undefined) return dom.make('td');
    const ends = [{ field: 'src_app', name: src }, { field: 'dest_app', name: dest }];
    const title = `${format.name(src)} → ${format.name(dest)}: ${format.exactBytes(value)}`;
    const attributes = { type: 'button', title, text: format.amount(value, hours), 'data-key': title, onclick: () => choose(ends) };
    return dom.make('td', { class: `shade-${shadeOf(Number(value), most)}` }, dom.make('button', attributes));
  };
  const rows = head('src_app', sources).map((th, i) => dom.make('tr', {}, th, ...destinations.map((dest) => cell(sources[i], dest))));
  dom.replace(
    table,
    dom.make('caption', { class: 'hidden', text: 'Bytes from the source of each row to the destination of each column' }),
    dom.make('thead', {}, dom.make('tr', {}, dom.make('td'), ...head('dest_app', destinations))),
    dom.make('tbody', {}, ...rows),
  );
}

function shadeOf(value, most) {
  const below = Math.log(most / Math.max(value, 1)) / Math.log(STEP);
  return Math.max(0, SHADES - 1 - Math.floor(below));
}
