// Drawings as files of their own, which look as on the page: a file has no stylesheet.

import * as format from './format.js';
import * as svg from './svg.js';

/** Properties that the stylesheet gives to elements of drawings. */
const PROPERTIES = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-dasharray', 'font-size', 'font-family'];
const MARGIN = 16;
const TITLE_PX = 34;
/** Sizes of a list. */
const LIST_WIDTH = 560;
const ROW_PX = 34;
const PERCENT_PX = 90;
const NAME_CHARS_MAX = 44;

/** The chart in `element` as the text of an SVG file; null if there is none. */
export function ofChart(element, title) {
  const drawn = element.querySelector('svg');
  if (!drawn) return null;
  const copy = drawn.cloneNode(true);
  const [originals, copies] = [drawn, copy].map((one) => [...one.querySelectorAll('*')]);
  originals.forEach((original, i) => {
    const style = getComputedStyle(original);
    for (const name of PROPERTIES) copies[i].setAttribute(name, style.getPropertyValue(name));
    for (const name of ['class', 'data-index']) copies[i].removeAttribute(name);
  });
  const { width, height } = drawn.viewBox.baseVal;
  return file(title, width, height, [...copy.children], getComputedStyle(element).fontFamily);
}

/** The same of a list of applications: names, shares, and bars. */
export function ofList(list, title) {
  const { fontFamily } = getComputedStyle(list);
  const items = [...list.querySelectorAll('li')].filter((item) => item.querySelector('.share'));
  if (items.length === 0) return null;
  const text = (content, x, y, anchor, fill) =>
    svg.make('text', { x, y, 'text-anchor': anchor, fill: color(fill), 'font-size': '13px', 'font-family': fontFamily, text: content });
  const rows = items.flatMap((item, i) => {
    const of = (css) => item.querySelector(css).textContent;
    const y = i * ROW_PX;
    const part = parseFloat(item.querySelector('.share').style.width) / 100 || 0;
    const bar = { y: y + 22, height: 4, rx: 2 };
    return [
      text(format.cut(of('.name'), NAME_CHARS_MAX), 0, y + 15, 'start', 'text'),
      text(of('.percent'), LIST_WIDTH - PERCENT_PX, y + 15, 'end', 'quiet'),
      text(of('.bytes'), LIST_WIDTH, y + 15, 'end', 'text'),
      svg.make('rect', { ...bar, width: LIST_WIDTH, fill: color('soft') }),
      svg.make('rect', { ...bar, width: Math.max(2, part * LIST_WIDTH), fill: color(item.matches('.others') ? 'other' : 'share') }),
    ];
  });
  return file(title, LIST_WIDTH, items.length * ROW_PX, rows, fontFamily);
}

/** A colour of the stylesheet. */
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The text of a file with this title above `children`. */
function file(title, width, height, children, fontFamily) {
  const [whole, high] = [width + 2 * MARGIN, height + TITLE_PX + 2 * MARGIN];
  const heading = { x: MARGIN, y: MARGIN + 14, fill: color('text'), 'font-size': '14px', 'font-weight': '600', 'font-family': fontFamily, text: title };
  const picture = svg.make(
    'svg',
    { viewBox: `0 0 ${whole} ${high}`, width: whole, height: high },
    svg.make('title', { text: title }),
    svg.make('rect', { width: whole, height: high, fill: color('raised') }),
    svg.make('text', heading),
    svg.make('g', { transform: `translate(${MARGIN} ${MARGIN + TITLE_PX})` }, ...children),
  );
  return new XMLSerializer().serializeToString(picture);
}
