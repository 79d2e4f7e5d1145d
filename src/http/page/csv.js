// CSV for spreadsheets, which evaluate cells that begin like a formula.

/** Excel reads a file as UTF-8 only if it begins with this. */
export const BYTE_ORDER_MARK = '\ufeff';

/**
 * Characters that can end a cell. Excel splits at `;` where a comma is the decimal mark, and other programs at tabs or
 * bars, as their user chose. A quote after a comma is then no quote, so these count within quotes too.
 */
const END = ',;|\\t\\r\\n';
/** Characters that a spreadsheet may drop from the beginning of a cell: quotes, blanks, and invisible ones. */
const DROPPED = `(?![${END}])["\\s\\u2800\\p{C}\\p{Default_Ignorable_Code_Point}]`;
const BEGINNING = `[${END}](?:${DROPPED})*`;
const BEFORE_FORMULA = new RegExp(`${BEGINNING}(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])`, 'gu');
const IS_OPEN = new RegExp(`${BEGINNING}$`, 'u');

/**
 * Returns a function that puts a `'` before each `=`, `+`, `-` and `@` that could begin a formula, so that it is read
 * as text. It takes the file in chunks, cut anywhere between two characters.
 */
export function guard() {
  // Whether the next character can be the first of a cell.
  let isOpen = true;
  return (part) => {
    const wasOpen = isOpen;
    const text = wasOpen ? `,${part}` : part;
    isOpen = IS_OPEN.test(text);
    return text.replace(BEFORE_FORMULA, "$&'").slice(wasOpen ? 1 : 0);
  };
}
