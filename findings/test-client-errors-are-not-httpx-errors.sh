#!/usr/bin/env bash
# Guess: FastAPI's TestClient is an httpx.Client, as it has been for years, so a test may catch httpx.HTTPStatusError and
#   pass the client to code that is typed for httpx.Client.
# Fact: since Starlette moved to httpx2 it depends on what is installed. With httpx2 in the environment, perhaps as some
#   other package's dependency, the client, its responses and its exceptions are httpx2's. `except httpx.HTTPStatusError`
#   catches nothing. Without httpx2 the same file works, with a warning. Nothing warns about the mixture.
#   `httpx2.alias_httpx()` before the first import makes one library of the two.
# Why it matters: adding an unrelated dependency changes which `except` clauses and isinstance checks in tests hold.
# Versions: starlette 1.10.0, httpx 0.28.1, httpx2 2.16.2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check starlette==1.10.0 httpx==0.28.1
cat > try.py <<'PY'
import importlib.util
import sys
import warnings

if "alias" in sys.argv:
    import httpx2

    httpx2.alias_httpx()
import httpx

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

client = TestClient(Starlette())
response = client.get("/missing")
try:
    response.raise_for_status()
except httpx.HTTPStatusError:
    caught = True
except Exception as error:
    caught = type(error).__module__
print("httpx2 installed:", importlib.util.find_spec("httpx2") is not None, "|", *sys.argv[1:], "|",
      "client and response are httpx's:", isinstance(client, httpx.Client), isinstance(response, httpx.Response),
      "| except httpx.HTTPStatusError catches:", caught, "| warnings:", len(told))
expected = {"alone": (True, True, 1), "beside": (False, "httpx2", 0), "alias": (True, True, 0)}[sys.argv[1]]
assert (isinstance(client, httpx.Client), caught, len(told)) == expected
PY
venv/bin/pip freeze | grep -E '^(starlette|httpx)='
venv/bin/python try.py alone
venv/bin/pip install -qq --disable-pip-version-check httpx2==2.16.2
venv/bin/pip freeze | grep -E '^httpx2='
venv/bin/python try.py beside
venv/bin/python try.py alias
