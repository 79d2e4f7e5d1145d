// Keys for what is done often, and the sheet that lists them.

/** Whether the keys are on, in the browser's storage. */
const KEY = 'flowtally keys';
const OFF = 'off';

const at = (id) => document.getElementById(id);

/** `actions` has a function for each key. */
export function start(actions) {
  at('keys-on').checked = read() !== OFF;
  at('keys-on').onchange = ({ target }) => write(target.checked ? 'on' : OFF);
  at('keys-close').onclick = () => at('keys').close();
  at('keys-open').onclick = open;
  const all = { ...actions, '?': open };
  document.addEventListener('keydown', (event) => {
    // On some keyboards, brackets are typed with AltGr.
    const isOther = event.ctrlKey || event.altKey || event.metaKey;
    if (event.defaultPrevented || (isOther && !event.getModifierState('AltGraph'))) return;
    if (!Object.hasOwn(all, event.key) || !at('keys-on').checked || isBusy(event.target)) return;
    event.preventDefault();
    all[event.key]();
  });
}

function open() {
  at('keys').showModal();
}

/** Whether the user types into `target`, or a dialog is open. */
function isBusy(target) {
  const isField = target instanceof Element && target.matches('input:not([type="checkbox"]), select, textarea');
  return isField || document.querySelector('dialog[open]') !== null || at('content').hidden;
}

/** Browsers may forbid storage. */
function read() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function write(value) {
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // The choice lasts until the page is reloaded.
  }
}
