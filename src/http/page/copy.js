// Copies text to the clipboard.

/** How long a button says that it has copied. */
const TOLD_MS = 2_000;

/** Copies `text` at a click on `button`. Without TLS, a page has no clipboard: then, it calls `show`. */
export async function text(text, button, show) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    show();
    return;
  }
  button.dataset.text ??= button.textContent;
  button.textContent = 'Copied';
  setTimeout(() => (button.textContent = button.dataset.text), TOLD_MS);
}
