// CSV for spreadsheets, which interpret some texts as formulas.

/** Excel reads a file as UTF-8 only if it begins with this. */
export const BYTE_ORDER_MARK = '\ufeff';

/** The first character of a text that a spreadsheet may evaluate. */
const FORMULA = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;

/**
 * Returns a function that puts a quote before each cell that could be a formula, so that it is read as text. It
 * takes the file in parts, cut anywhere.
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
