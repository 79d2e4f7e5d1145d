// Common code of the charts: makes SVG elements, measures text, and handles pointer, finger and keyboard.
// Names are set as text only.

import * as dom from './dom.js';

const NAMESPACE = 'http://www.w3.org/2000/svg';
/** Pixels that a pointer may move in a click. */
const CLICK_PX = 4;

/** An element of SVG with these attributes. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'text') element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A drawing of this size that shrinks with its container, as on paper. */
export function picture(width, height, ...children) {
  return make('svg', { viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true' }, ...children);
}

/** Replaces the drawing in `element`, but not its tooltip. */
export function show(element, picture) {
  const old = element.querySelector('svg');
  if (old) old.replaceWith(picture);
  else element.replaceChildren(picture);
}

/** The width of drawings on A4 within the margins. */
const PAPER_PX = 677;
let isPaper = false;

/** Switches drawings to paper, or to the screen. */
export function usePaper(is) {
  isPaper = is;
}

/** The width of a drawing in `element`. */
export function widthOf(element) {
  return isPaper ? PAPER_PX : Math.max(240, Math.round(element.clientWidth));
}

const pen = document.createElement('canvas').getContext('2d');

/** The width of the longest of `texts` in the font of `element`, at `px`. */
export function textWidth(element, texts, px) {
  pen.font = `${px}px ${getComputedStyle(element).fontFamily}`;
  return Math.max(0, ...texts.map((text) => pen.measureText(text).width));
}

/**
 * Makes the chart in `element` usable by pointer, finger and keyboard: it shows a tooltip for the item under the
 * pointer, or for the one that the arrow keys have reached. `model` describes what is drawn: the `count` of
 * items, `at(event)`, the index of the item under the pointer or -1, `text(index)`, a heading and lines for the
 * tooltip, `place(index)`, its position, `highlight(first, last)`, which marks these items (none without
 * arguments), and `choose(first, last)`. The keyboard starts at the item `index`. With `isRange`, several neighbours
 * can be chosen. To be called after each drawing.
 */
export function explore(element, model, index, isRange) {
  const chart = charts.get(element) ?? {};
  chart.model = model;
  chart.update ??= listen(element, () => chart.model, isRange);
  charts.set(element, chart);
  chart.update(index);
}

/** The model of each element, and the function to call after each drawing. */
const charts = new WeakMap();

function listen(element, model, isRange) {
  const tip = dom.make('div', { class: 'tip', hidden: '' });
  let current = 0;
  let anchor = null;
  let press = null;
  let hasChosen = false;

  const selection = () => [Math.min(anchor ?? current, current), Math.max(anchor ?? current, current)];
  const show = (index) => {
    const { count, text, place, highlight } = model();
    if (count === 0) return;
    current = Math.min(Math.max(index, 0), count - 1);
    const [heading, ...lines] = text(current);
    tip.replaceChildren(dom.make('strong', { text: heading }), ...lines.map((line) => dom.make('span', { text: line })));
    if (tip.parentNode !== element) element.append(tip);
    tip.hidden = false;
    const { x, y } = place(current);
    const room = element.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(x - tip.offsetWidth / 2, room))}px`;
    tip.style.top = `${Math.max(-tip.offsetHeight, y - tip.offsetHeight - 10)}px`;
    highlight(...selection());
    element.setAttribute('aria-valuenow', current);
    element.setAttribute('aria-valuetext', [heading, ...lines].join(', '));
  };
  const hide = () => {
    tip.hidden = true;
    anchor = press = null;
    model().highlight();
  };
  const choose = () => {
    const { count, choose } = model();
    if (count > 0) choose(...selection());
  };

  element.tabIndex = 0;
  element.addEventListener('pointermove', (event) => {
    const index = model().at(event);
    // A mouse selects a range by dragging. A finger hides the item below it, so it slides to the item instead.
    const isDrag = press !== null && event.pointerType === 'mouse' && isRange;
    if (isDrag && anchor === null && Math.abs(event.clientX - press.x) > CLICK_PX) anchor = press.index;
    if (index >= 0) show(index);
    else if (press === null) hide();
  });
  element.addEventListener('pointerdown', (event) => {
    const index = model().at(event);
    if (event.button !== 0 || index < 0) return;
    anchor = null;
    press = { x: event.clientX, index };
    // So that a drag that leaves the chart still ends here.
    element.setPointerCapture(event.pointerId);
    show(index);
  });
  element.addEventListener('pointerup', () => {
    if (press === null) return;
    choose();
    hide();
  });
  element.addEventListener('pointercancel', hide);
  element.addEventListener('pointerleave', () => press === null && hide());
  element.addEventListener('focus', () => element.matches(':focus-visible') && show(current));
  element.addEventListener('blur', hide);
  element.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const ends = { Home: 0, End: model().count - 1 };
    if (event.key in steps || event.key in ends) {
      if (!event.shiftKey || !isRange) anchor = null;
      else anchor ??= current;
      show(ends[event.key] ?? current + steps[event.key]);
    } else if (event.key === 'Enter' || event.key === ' ') {
      choose();
      anchor = null;
      hasChosen = true;
    } else return;
    event.preventDefault();
  });
  // Also closes the tooltip of the mouse, wherever the focus is (WCAG 2, 1.4.13).
  document.addEventListener('keydown', (event) => event.key === 'Escape' && !tip.hidden && hide());

  /** To be called after each drawing. `index` is the item to start at: after a choice, the chosen one. */
  return (index) => {
    const { count, text } = model();
    const isShown = !tip.hidden;
    if (!isShown || hasChosen) current = Math.min(Math.max(index, 0), Math.max(count - 1, 0));
    hasChosen = false;
    element.setAttribute('aria-valuemin', 0);
    element.setAttribute('aria-valuemax', Math.max(count - 1, 0));
    element.setAttribute('aria-valuenow', current);
    element.setAttribute('aria-valuetext', count > 0 ? text(Math.min(current, count - 1)).join(', ') : 'nothing');
    if (isShown && count > 0) show(current);
  };
}
