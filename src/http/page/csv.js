// CSV for spreadsheets, which take some texts for formulas.

/** Excel takes a file for UTF-8 only where this comes first. */
export const BYTE_ORDER_MARK = '\ufeff';

/** How the text of a cell begins that may be a formula, or become one. */
const FORMULA = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;

/**
 * What puts a quote before each cell that may be a formula, so that it is text. It takes a file in parts, and
 * returns what each becomes; the state between two parts is its own.
 */
export function guard() {
  let isStart = true;
  let isQuoted = false;
  return (text) => {
    let safe = '';
    let done = 0;
    for (let at = 0; at < text.length; at += 1) {
      const char = text[at];
      if (isStart && char === '"' && !isQuoted) {
        isQuoted = true;
        continue;
      }
      // An empty line, or the end of one, is no cell.
      if (isStart && FORMULA.test(char) && (isQuoted || !/[\r\n]/.test(char))) {
        safe += `${text.slice(done, at)}'`;
        done = at;
      }
      isStart = false;
      if (char === '"') isQuoted = !isQuoted;
      else if (!isQuoted) isStart = char === ',' || char === '\n';
    }
    return safe + text.slice(done);
  };
}
