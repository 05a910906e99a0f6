#!/usr/bin/env bash
# Guess: a client that honours Retry-After waits longer, the larger the number is.
# Fact: beyond 2,147,483 seconds (24.8 days) got and axios-retry do not wait at all. They pass the delay to setTimeout,
#   which takes 31 bits of milliseconds and makes 1 ms of anything larger. All tries are spent within a second. With
#   a small number both wait. axios-retry does this with its defaults: it retries 429 whenever Retry-After is there.
# Why it matters: a monthly quota that tells the truth ("in 30 days") is hammered by the very clients that obey it. A
#   server does well to send a day at most.
# Versions: got 14.6.6, axios-retry 4.5.0 with axios 1.21.1, Node.js 20 or newer.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund got@14.6.6 axios@1.21.1 axios-retry@4.5.0 >/dev/null
cat > try.mjs <<'JS'
import assert from 'node:assert';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import axios from 'axios';
import axiosRetry from 'axios-retry';
import got from 'got';

for (const name of ['got', 'axios', 'axios-retry'])
  console.log(name, JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version);
console.log('node', process.versions.node);

let requests = 0;
let retryAfter = '0';
const server = http.createServer((request, response) => {
  requests += 1;
  response.writeHead(429, { 'Retry-After': retryAfter });
  response.end();
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const url = `http://127.0.0.1:${server.address().port}/`;

async function requestsWithin(milliseconds, seconds, call) {
  requests = 0;
  retryAfter = String(seconds);
  const cancel = new AbortController();
  const done = call(cancel.signal).catch(() => 'gave up');
  await Promise.race([done, new Promise((resolve) => setTimeout(resolve, milliseconds))]);
  cancel.abort();
  return requests;
}

const client = axios.create();
axiosRetry(client, { retries: 3 });
const calls = { got: (signal) => got(url, { signal }), 'axios-retry': (signal) => client.get(url, { signal }) };
for (const [name, call] of Object.entries(calls)) {
  const short = await requestsWithin(2000, 60, call);
  const month = await requestsWithin(2000, 30 * 24 * 3600, call);
  console.log(`${name}: requests within 2 s, Retry-After 60: ${short}, Retry-After of 30 days: ${month}`);
  assert.equal(short, 1);
  assert.equal(month, name === 'got' ? 3 : 4);
}
process.exit(0);
JS
node --no-warnings try.mjs
