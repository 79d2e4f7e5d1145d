// Makes elements. Names of applications are only ever set as text: senders choose them.

/** An element with these attributes; `text`, `title` and handlers (`onclick`) are set as properties. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'text') element.textContent = value;
    else if (name.startsWith('on')) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** `digits` in groups, as text that can have a line break after each comma. */
export function breakable(digits) {
  return digits.split(/(?<=,)/).flatMap((group, i) => (i === 0 ? [group] : [make('wbr'), group]));
}

/** Replaces the children of `parent`; the element with the same `data-key` keeps the focus. */
export function replace(parent, ...children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children);
  if (key === undefined) return;
  const same = [...parent.querySelectorAll('[data-key]')].find((element) => element.dataset.key === key);
  same?.focus({ preventScroll: true });
}

/** Fills `table` with rows below a head of these `titles`; columns from `numbers` on are numbers. */
export function table(table, titles, numbers, rows) {
  const heads = titles.map((text, i) => make('th', { scope: 'col', text, ...(i >= numbers && { class: 'number' }) }));
  replace(table, make('thead', {}, make('tr', {}, ...heads)), make('tbody', {}, ...rows));
}

/** Enables or disables buttons, as pairs of button and whether; a disabled one passes the focus to an enabled one. */
export function enable(...pairs) {
  const focused = document.activeElement;
  for (const [button, isOn] of pairs) button.disabled = !isOn;
  const isLost = pairs.some(([button, isOn]) => button === focused && !isOn);
  if (isLost) pairs.find(([, isOn]) => isOn)?.[0].focus({ preventScroll: true });
}

/** Sets the options of a `select`, as pairs of value and text, if they differ. */
export function options(select, pairs, chosen) {
  const same =
    select.options.length === pairs.length &&
    pairs.every(([value, text], i) => select.options[i].value === String(value) && select.options[i].text === text);
  if (!same) select.replaceChildren(...pairs.map(([value, text]) => make('option', { value, text })));
  select.value = String(chosen);
}

/** Calls `act` once after `pause` ms without another call. */
export function calm(pause, act) {
  let timer = 0;
  return (...arguments_) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...arguments_), pause);
  };
}
