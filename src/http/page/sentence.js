// One sentence above everything: how much the newest day that is over had, and between which applications.

import * as api from './api.js';
import * as dom from './dom.js';
import * as format from './format.js';
import * as ledger from './ledger.js';

const DAY = 24;
/** From this share on, a pair has most of the bytes. */
const MOSTLY = 0.5;
const NAME_CHARS_MAX = 40;

const at = (id) => document.getElementById(id);

/** What the sentence was made of. */
let told = '';

/** Tells about `rows`, all hours that hold flows, at the hour `now`. Requests the largest pair if something has changed. */
export async function show(rows, now, signal) {
  const about = aboutOf(rows, now);
  // With an amount, since the unit is a choice.
  const key = JSON.stringify([about, format.amount(0n, 1)], format.withBigInt);
  if (key === told) return;
  told = key;
  if (about === null) {
    at('sentence').replaceChildren();
    return;
  }
  const { from, to } = about;
  const params = new URLSearchParams({ from, to, group_by: 'src_app,dest_app', sort: 'bytes', limit: 1 });
  let pair;
  try {
    [pair] = (await api.flows(params, signal)).rows;
  } catch (error) {
    if (signal.aborted) {
      told = '';
      return;
    }
    if (!(error instanceof api.Problem)) console.error(error);
  }
  at('sentence').replaceChildren(...parts(about, pair));
}

/**
 * The hours to tell about, from and to, their bytes, those of the hours before if they can be compared, and a text for when:
 * the newest day that is over, or else today so far, or else, without dates, the newest 24 hours. Null if there is none.
 */
function aboutOf(rows, now) {
  const today = Math.floor(now / DAY);
  const dated = rows.filter(({ hour }) => format.isDated(hour) && hour <= now);
  const over = dated.findLast(({ hour }) => hour < today * DAY);
  if (over) {
    // Of what is older than two months, the page knows only sums of longer spans.
    if (over.span > DAY) return null;
    const day = Math.floor(over.hour / DAY);
    const when = day === today - 1 ? 'Yesterday' : `On ${format.date(day * DAY)},`;
    return { when, ...ofDay(rows, day), before: ofDay(rows, day - 1).bytes };
  }
  if (dated.length > 0) return { when: 'Today', ...ofDay(rows, today), isSoFar: true };
  const last = rows.findLast(({ hour }) => !format.isDated(hour));
  if (!last || last.span > 1) return null;
  const [from, to] = [Math.max(0, last.hour + 1 - DAY), last.hour + 1];
  const hours = ledger.within(rows, { from, to }).length;
  return { when: hours === 1 ? `Hour ${last.hour}:` : `${hours} hours:`, from, to, bytes: bytesOf(rows, from, to) };
}

/** The hours of a day of UTC, and their bytes. */
function ofDay(rows, day) {
  const [from, to] = [day * DAY, (day + 1) * DAY];
  return { from, to, bytes: bytesOf(rows, from, to) };
}

function bytesOf(rows, from, to) {
  const all = ledger.within(rows, { from, to });
  // Sums of longer spans are not the day's.
  if (all.some(({ span }) => span > DAY)) return 0n;
  return all.reduce((sum, { bytes_tx, bytes_rx }) => sum + bytes_tx + bytes_rx, 0n);
}

/** The sentence, as text and names. */
function parts({ when, from, to, bytes, before = 0n, isSoFar = false }, pair) {
  const amount = `${when} ${format.amount(bytes, to - from)}${isSoFar ? ' so far' : ''}`;
  const change = before > 0n ? `, ${format.more(bytes, before)} the day before` : '';
  const ofPair = pair ? pair.bytes_tx + pair.bytes_rx : 0n;
  if (ofPair === 0n) return [`${amount}${change}.`];
  const word = Number(ofPair) >= MOSTLY * Number(bytes) ? 'mostly' : 'most of all';
  const name = (text) => dom.make('bdi', { text: format.cut(format.name(text), NAME_CHARS_MAX) });
  return [`${amount}${change}; ${word} `, name(pair.src_app), ' → ', name(pair.dest_app), '.'];
}
