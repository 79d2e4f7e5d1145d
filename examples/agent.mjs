#!/usr/bin/env node
// Reports the bytes of each network interface of this host. Needs Node.js 18 or later, and no packages.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

const { FLOWTALLY_URL: url = 'http://127.0.0.1:8080', FLOWTALLY_TOKEN: token, PERIOD = '60' } = process.env;
const { COUNTERS = '/proc/net/dev', APP = hostname(), VPC = '' } = process.env;

/** The bytes that each interface has sent and received since it exists. BigInts are exact beyond 2^53. */
function readCounters() {
  const lines = readFileSync(COUNTERS, 'utf8').split('\n').map((line) => line.split(':'));
  return new Map(lines.filter(([, numbers]) => numbers).map(([interface_, numbers]) => {
    const columns = numbers.trim().split(/\s+/);
    return [interface_.trim(), { tx: BigInt(columns[8]), rx: BigInt(columns[0]) }];
  }));
}

/** Sends a batch until it counts. All tries have the same key and body, so it counts once. */
async function send(body) {
  const headers = { 'Content-Type': 'application/x-ndjson', 'Idempotency-Key': randomUUID() };
  if (token) headers.Authorization = `Bearer ${token}`;
  for (let failures = 0; ; failures += 1) {
    let answer = { status: 0, text: '' };
    let pause = Math.random() * Math.min(30_000, 200 * 2 ** failures); // exponential, with full jitter
    try {
      const response = await fetch(`${url}/flows`, { method: 'POST', headers, body, signal: AbortSignal.timeout(30_000) });
      answer = { status: response.status, text: await response.text() };
      pause += 1_000 * (Number(response.headers.get('Retry-After')) || 0);
      if (answer.status === 200) return;
    } catch (error) {
      answer = { status: 0, text: `no response: ${error.cause ?? error}` };
    }
    const isTemporary = answer.status === 0 || answer.status >= 500 || [408, 425, 429].includes(answer.status);
    if (!isTemporary) throw new Error(`nothing of the batch counted: ${answer.status} ${answer.text}`);
    console.error(answer.text.trim());
    await sleep(pause);
  }
}

let before = readCounters();
console.log(`reports ${COUNTERS} to ${url} every ${PERIOD} s`);
for (;;) {
  await sleep(1_000 * Number(PERIOD));
  const [now, hour] = [readCounters(), Math.floor(Date.now() / 3_600_000)];
  // A counter that has become smaller began again at 0.
  const grown = (current, old = 0n) => (current >= old ? current - old : current);
  const flows = [...now].map(([interface_, { tx, rx }]) => {
    const old = before.get(interface_);
    return { interface_, tx: grown(tx, old?.tx), rx: grown(rx, old?.rx) };
  }).filter(({ tx, rx }) => tx > 0n || rx > 0n);
  const text = JSON.stringify;
  const lines = flows.map(({ interface_, tx, rx }) => `{"src_app":${text(APP)},"dest_app":${text(interface_)},`
    + `"vpc_id":${text(VPC)},"bytes_tx":${tx},"bytes_rx":${rx},"hour":${hour}}\n`);
  if (lines.length > 0) await send(lines.join(''));
  before = now;
}
