#!/usr/bin/env bash
# Guess: a document that FastAPI writes is valid for the version of OpenAPI that it names, whatever the endpoints are.
# Fact: an endpoint that yields items (JSON lines) is described by `itemSchema`, a word of OpenAPI 3.2, in a document that says
#   3.1.0. openapi-spec-validator and redocly refuse the whole document. After `app.openapi_version = "3.2.0"`, for which there is
#   no argument, the same document is valid.
# Why it matters: the first stream turns every linter in CI red, with an error that names neither the version nor FastAPI.
# Versions: fastapi 0.165.0, openapi-spec-validator 0.9.0, @redocly/cli 2.77.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check fastapi==0.165.0 openapi-spec-validator==0.9.0
npm install --silent --no-audit --no-fund --ignore-scripts @redocly/cli@2.77.0
cat > see.py <<'PY'
import json
from collections.abc import AsyncIterable
from pathlib import Path

from fastapi import FastAPI
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from pydantic import BaseModel


class Row(BaseModel):
    id: int


for version in ("3.1.0", "3.2.0"):
    app = FastAPI(title="Rows", version="1")
    if version != app.openapi_version:
        app.openapi_version = version

    @app.get("/rows")
    async def rows() -> AsyncIterable[Row]:
        yield Row(id=1)

    document = app.openapi()
    assert document["openapi"] == version
    ((kind, described),) = document["paths"]["/rows"]["get"]["responses"]["200"]["content"].items()
    try:
        validate(document)
        found = "valid"
    except OpenAPIValidationError as error:
        found = f"{error}".splitlines()[0]
    print(version, kind, list(described), "openapi-spec-validator:", found)
    assert list(described) == ["itemSchema"]
    assert ("itemSchema" in found) == (version == "3.1.0")
    Path(f"{version}.json").write_text(json.dumps(document))
PY
venv/bin/pip freeze | grep -iE "^(fastapi|openapi-spec)"
venv/bin/python see.py
for version in 3.1.0 3.2.0; do
  REDOCLY_TELEMETRY=off npx redocly lint --extends=spec --format=stylish "$version.json" > said 2>&1 && rc=0 || rc=$?
  echo "$version redocly: $rc $(grep -m1 -o 'Property `itemSchema` is not expected here' said || true)"
  case $version in 3.1.0) test $rc != 0 ;; *) test $rc = 0 ;; esac
done
