// Whether the ledger agrees with the accepted flows.

const at = (id) => document.getElementById(id);

/** Shows the `difference` in flows; null if they have not been compared. */
export function show(difference) {
  const isGood = difference === '0';
  at('accounts').hidden = difference === null;
  at('accounts').classList.toggle('wrong', !isGood);
  const state = isGood ? 'Accounts balance ✓' : `Accounts differ by ${difference?.replace('-', '')} flows`;
  const meaning = isGood
    ? 'The two agree.'
    : 'The two differ, which is a fault: stop the service, run flowtally verify, and keep the directory.';
  for (const [id, text] of [['accounts-state', state], ['accounts-result', meaning]]) {
    if (at(id).textContent !== text) at(id).textContent = text;
  }
}
