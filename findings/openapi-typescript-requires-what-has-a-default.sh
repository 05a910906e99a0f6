#!/usr/bin/env bash
# Guess: in generated TypeScript a property is optional unless the schema lists it in `required`.
# Fact: openapi-typescript drops the question mark as soon as a property has a default, in request bodies too. A call that
#   sends the one required property does not compile. `--default-non-nullable=false` gives it back. Right for answers,
#   wrong for requests, and FastAPI writes a default into the schema of every optional field.
#   openapi-zod-client sees the same property as optional, but turns an error of type application/problem+json, schema
#   and all, into `z.void()`, so that the body of every refusal counts as a mismatch; application/json is understood.
# Why it matters: one document, two generators, two contrary contracts. Adding a default to a schema, which breaks no
#   caller on the wire, breaks the build of TypeScript callers.
# Versions: openapi-typescript 7.13.0, openapi-zod-client 1.18.3, typescript 5.9.3, Node.js 20 or newer.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund openapi-typescript@7.13.0 openapi-zod-client@1.18.3 typescript@5.9.3 >/dev/null
cat > openapi.json <<'JSON'
{"openapi": "3.1.0", "info": {"title": "keys", "version": "1"}, "paths": {"/keys": {"post": {"operationId": "create",
 "requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/New"}}}},
 "responses": {"200": {"description": "made"},
  "403": {"description": "no", "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}},
  "409": {"description": "no", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}}}}},
 "components": {"schemas": {
  "New": {"type": "object", "required": ["name"],
          "properties": {"name": {"type": "string"}, "days": {"type": "integer", "default": 30}, "note": {"type": "string"}}},
  "Problem": {"type": "object", "properties": {"title": {"type": "string"}}}}}}
JSON
cat > use.ts <<'TS'
import type { components } from './types';
const body: components['schemas']['New'] = { name: 'reports' };
TS
for package in openapi-typescript openapi-zod-client typescript; do
  echo "$package $(node -p "require('./node_modules/$package/package.json').version")"
done
npx openapi-typescript openapi.json -o types.ts >/dev/null 2>&1
grep -E '^ +(name|days|note)' types.ts
grep -q ' days: number' types.ts && grep -q ' note?: string' types.ts
code=0
npx tsc --noEmit --strict use.ts || code=$?
test $code != 0
npx openapi-typescript openapi.json -o types.ts --default-non-nullable=false >/dev/null 2>&1
grep -q ' days?: number' types.ts
npx tsc --noEmit --strict use.ts && echo "compiles with --default-non-nullable=false"
npx openapi-zod-client openapi.json -o zod.ts >/dev/null
grep -E -A2 'days|status:' zod.ts
grep -q 'days: z.number().int().optional()' zod.ts
test "$(grep -A2 'status: 403' zod.ts | grep -c 'z.void()')" = 1
test "$(grep -A2 'status: 409' zod.ts | grep -c 'z.void()')" = 0
