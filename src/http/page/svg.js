// What the charts have in common: elements of SVG, text that fits, and how people find their way in them
// by pointer, finger and keyboard. Names are set as text only.

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

/** A drawing of this size that shrinks with what it is in, as on paper. */
export function picture(width, height, ...children) {
  return make('svg', { viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true' }, ...children);
}

/** How wide a drawing in `element` is to be. */
export function widthOf(element) {
  return Math.max(240, Math.round(element.clientWidth));
}

const pen = document.createElement('canvas').getContext('2d');

/** How wide the longest of `texts` is, in the font of `element`, at `px`. */
export function textWidth(element, texts, px) {
  pen.font = `${px}px ${getComputedStyle(element).fontFamily}`;
  return Math.max(0, ...texts.map((text) => pen.measureText(text).width));
}

/**
 * Lets people step through the things of the chart in `element`, which is one stop of the Tab key. `read` says
 * what there is at the time: the `count` of things, `at(event)`, the index of what is under the pointer or -1,
 * `text(index)`, a heading and lines about it, `place(index)`, where that is shown, `mark(first, last)`, which
 * shows that these are meant (none without arguments), and `choose(first, last)`. With `isRange`, several
 * side by side may be chosen.
 */
export function explore(element, read, isRange) {
  const tip = dom.make('div', { class: 'tip', hidden: '' });
  let now = 0;
  let anchor = null;
  let begin = null;
  let hasChosen = false;

  const between = () => [Math.min(anchor ?? now, now), Math.max(anchor ?? now, now)];
  const show = (index) => {
    const { count, text, place, mark } = read();
    if (count === 0) return;
    now = Math.min(Math.max(index, 0), count - 1);
    const [first, last] = between();
    const [heading, ...lines] = text(now);
    tip.replaceChildren(dom.make('strong', { text: heading }), ...lines.map((line) => dom.make('span', { text: line })));
    if (tip.parentNode !== element) element.append(tip);
    tip.hidden = false;
    const { x, y } = place(now);
    const room = element.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(x - tip.offsetWidth / 2, room))}px`;
    tip.style.top = `${Math.max(-tip.offsetHeight, y - tip.offsetHeight - 10)}px`;
    mark(first, last);
    element.setAttribute('aria-valuenow', now);
    element.setAttribute('aria-valuetext', [heading, ...lines].join(', '));
  };
  const hide = () => {
    tip.hidden = true;
    anchor = begin = null;
    read().mark();
  };
  const choose = () => {
    const { count, choose } = read();
    if (count > 0) choose(...between());
  };

  element.tabIndex = 0;
  element.addEventListener('pointermove', (event) => {
    const index = read().at(event);
    // A finger slides to what it means, since it covers it; a mouse drags over several.
    const isDrag = begin !== null && event.pointerType === 'mouse' && isRange;
    if (isDrag && anchor === null && Math.abs(event.clientX - begin.x) > CLICK_PX) anchor = begin.index;
    if (index >= 0) show(index);
    else if (begin === null) hide();
  });
  element.addEventListener('pointerdown', (event) => {
    const index = read().at(event);
    if (event.button !== 0 || index < 0) return;
    anchor = null;
    begin = { x: event.clientX, index };
    // It may leave the chart while it is down.
    element.setPointerCapture(event.pointerId);
    show(index);
  });
  element.addEventListener('pointerup', () => {
    if (begin === null) return;
    choose();
    hide();
  });
  element.addEventListener('pointercancel', hide);
  element.addEventListener('pointerleave', () => begin === null && hide());
  element.addEventListener('focus', () => element.matches(':focus-visible') && show(now));
  element.addEventListener('blur', hide);
  element.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { count } = read();
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const to = { Home: 0, End: count - 1 }[event.key] ?? (moves[event.key] && now + moves[event.key]);
    if (event.key === 'Escape') hide();
    else if (event.key === 'Enter' || event.key === ' ') {
      choose();
      anchor = null;
      hasChosen = true;
    }
    else if (to === undefined) return;
    else {
      if (!event.shiftKey || !isRange) anchor = null;
      else anchor ??= now;
      show(to);
    }
    event.preventDefault();
  });

  /** Says anew what is there, once it has been drawn; `index` is where to begin. */
  return (index) => {
    const { count, text } = read();
    // What a key is at stays, also where the chart is drawn anew; after a choice, it is what was chosen.
    const isMeant = !tip.hidden;
    if (!isMeant || hasChosen) now = Math.min(Math.max(index, 0), Math.max(count - 1, 0));
    hasChosen = false;
    element.setAttribute('aria-valuemin', 0);
    element.setAttribute('aria-valuemax', Math.max(count - 1, 0));
    element.setAttribute('aria-valuenow', now);
    element.setAttribute('aria-valuetext', count > 0 ? text(Math.min(now, count - 1)).join(', ') : 'nothing');
    if (isMeant && count > 0) show(now);
  };
}
