#!/usr/bin/env bash
# Guess: a Python client made from an OpenAPI document leaves out of a PATCH what its caller did not set, and a default in a
#   generated model has the type of its field.
# Fact: openapi-python-client copies the schema's default into the class and sends it: Update(name="x") also resets
#   `days` to 30, while a property without a default is left out. The server cannot tell it from a wish.
#   datamodel-code-generator writes the default of an enum as a bare string and does not validate it: Update().keep is
#   "both", not Keep.both, so comparing it with the member, which the annotation promises, is False, and `.value` raises.
# Why it matters: "default" describes what a server fills in when a property is absent. Both generators build a value of
#   their own from it. A partial update is safe only if its schema has no defaults (in pydantic: default None, and
#   model_fields_set).
# Versions: openapi-python-client 0.29.1, datamodel-code-generator 0.89.0, pydantic 2.14.4.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check openapi-python-client==0.29.1 datamodel-code-generator==0.89.0 \
  pydantic==2.14.4
cat > openapi.json <<'JSON'
{"openapi": "3.1.0", "info": {"title": "keys", "version": "1"}, "paths": {"/keys/{id}": {"patch": {
  "operationId": "update", "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}],
  "requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Update"}}}},
  "responses": {"204": {"description": "done"}}}}},
 "components": {"schemas": {"Update": {"type": "object", "properties": {
  "name": {"type": "string"}, "days": {"type": "integer", "default": 30}, "note": {"type": "string"},
  "keep": {"type": "string", "enum": ["old", "new", "both"], "default": "both"}}}}}}
JSON
PATH="$tmp/venv/bin:$PATH" venv/bin/openapi-python-client generate --path openapi.json --output-path client --meta none \
  >/dev/null 2>&1 || true # it also wants to format what it wrote, with a tool that is not here
venv/bin/datamodel-codegen --input openapi.json --output-model-type pydantic_v2.BaseModel --output models.py \
  >/dev/null 2>&1
venv/bin/python - <<'PY'
from importlib.metadata import version

from client.models.update import Update as Sent
from models import Keep, Update

print("openapi-python-client", version("openapi-python-client"))
body = Sent(name="x").to_dict()
print("  Update(name='x') sends", body)
assert body == {"name": "x", "days": 30, "keep": "both"}
print("datamodel-code-generator", version("datamodel-code-generator"))
default = Update().keep
print("  ", Update.model_fields["keep"].annotation, "default:", repr(default), "== Keep.both:", default == Keep.both)
assert default == "both" and default != Keep.both and not hasattr(default, "value")
assert Update(keep="both").keep is Keep.both
PY
