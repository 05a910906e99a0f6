#!/usr/bin/env bash
# Guess: a validator of answers that reads application/json also reads application/problem+json: the suffix +json says how
#   (RFC 6839), and the document declares that very type.
# Fact: openapi-core does not parse it. It hands the bytes to the schema as they are, so each refusal, right or wrong, is
#   InvalidData, and the message speaks of the data and not of the media type. `extra_media_type_deserializers` mends it;
#   then the right one passes and the wrong one fails.
# Why it matters: contract tests of every documented error fail, which looks as if the service broke its document. The
#   usual way out, leaving the errors out of the document, hides the real faults.
# Versions: openapi-core 0.23.1.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check openapi-core==0.23.1
venv/bin/python - <<'PY'
import json
from importlib.metadata import version

from openapi_core import Config, OpenAPI
from openapi_core.testing import MockRequest, MockResponse

schema = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}}
document = {
    "openapi": "3.1.0", "info": {"title": "keys", "version": "1"}, "servers": [{"url": "http://test"}],
    "paths": {"/keys": {"get": {"responses": {
        "403": {"description": "no", "content": {"application/problem+json": {"schema": schema}}},
        "409": {"description": "no", "content": {"application/json": {"schema": schema}}}}}}}}
request = MockRequest("http://test", "get", "/keys")


def errors(status, media_type, body, **options):
    openapi = OpenAPI.from_dict(document, config=Config(**options))
    answer = MockResponse(json.dumps(body).encode(), status_code=status, content_type=media_type)
    found = [type(error).__name__ for error in openapi.unmarshal_response(request, answer).errors]
    print(f"  {media_type} {body}: {found or 'valid'}")
    return found


right, wrong, problem = {"title": "no key"}, {"titel": "no key"}, "application/problem+json"
print("openapi-core", version("openapi-core"))
assert errors(409, "application/json", right) == []
assert errors(409, "application/json", wrong) == ["InvalidData"]
assert errors(403, problem, right) == ["InvalidData"]
assert errors(403, problem, wrong) == ["InvalidData"]
print("with a deserializer for problem+json")
known = {"extra_media_type_deserializers": {problem: json.loads}}
assert errors(403, problem, right, **known) == []
assert errors(403, problem, wrong, **known) == ["InvalidData"]
PY
