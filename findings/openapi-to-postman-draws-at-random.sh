#!/usr/bin/env bash
# Guess: converting one OpenAPI file twice gives the same Postman collection, apart from identifiers, and a sample of an
#   enum is its first value or its default.
# Fact: numbers and enum values in samples are drawn anew at each conversion, for requests and saved answers, and there
#   is no seed. Where a default is declared, it is used.
# Why it matters: a collection that is kept in git changes with every build, and a sample request does something else
#   each time: an enum like "keep the old key" / "end the old key at once" is decided by the dice.
# Versions: openapi-to-postmanv2 6.3.3, Node.js 20 or newer.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund openapi-to-postmanv2@6.3.3 >/dev/null
cat > try.cjs <<'JS'
const assert = require('node:assert');
const converter = require('openapi-to-postmanv2');

const plain = { keep: { type: 'string', enum: ['old', 'new', 'both', 'none'] }, days: { type: 'integer' } };
const defaulted = { keep: { ...plain.keep, default: 'both' }, days: { type: 'integer', default: 30 } };

function document(properties) {
  const content = { 'application/json': { schema: { type: 'object', properties } } };
  const post = { requestBody: { content }, responses: { 200: { description: 'done', content } } };
  return JSON.stringify({ openapi: '3.1.0', info: { title: 'keys', version: '1' }, paths: { '/rotate': { post } } });
}

function samples(properties) {
  return new Promise((resolve, reject) => {
    const input = { type: 'string', data: document(properties) };
    const options = { requestParametersResolution: 'Example', exampleParametersResolution: 'Example' };
    converter.convert(input, options, (error, result) => {
      if (error || !result.result) return reject(error ?? new Error(result.reason));
      const bodies = [];
      JSON.stringify(result.output[0].data, (key, value) => {
        if ((key === 'raw' || key === 'body') && typeof value === 'string') bodies.push(value.replace(/\s+/g, ''));
        return value;
      });
      assert(bodies.length > 0);
      resolve(bodies.join(' '));
    });
  });
}

(async () => {
  console.log('openapi-to-postmanv2', require('openapi-to-postmanv2/package.json').version);
  const drawn = new Set();
  for (let run = 0; run < 12; run += 1) drawn.add(await samples(plain));
  console.log('12 conversions of one document,', drawn.size, 'results, for instance:');
  for (const result of [...drawn].slice(0, 3)) console.log(' ', result.split(' ')[0]);
  assert(drawn.size > 6);
  assert(new Set([...drawn].map((result) => JSON.parse(result.split(' ')[0]).keep)).size > 1);
  const fixed = new Set();
  for (let run = 0; run < 12; run += 1) fixed.add(await samples(defaulted));
  console.log('with defaults:', fixed.size, 'result:', [...fixed][0].split(' ')[0]);
  assert.equal(fixed.size, 1);
})().catch((error) => { console.error(error); process.exit(1); });
JS
node --no-warnings try.cjs
