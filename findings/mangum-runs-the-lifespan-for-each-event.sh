#!/usr/bin/env bash
# Guess: under AWS Lambda the adapter runs an application's lifespan once for each container, as a server does once
#   for each process, and hands JSON back as text.
# Fact: mangum starts and ends the lifespan around every single event, with the default "auto" and with "on". And it
#   knows only a short list of text types: `application/problem+json`, the type of RFC 9457 errors, is not on it, so a
#   refusal goes back in base64, while `application/json` goes back as text.
# Why it matters: a pool, a cache or a check at the start that belongs to the lifespan is made and thrown away per
#   request, without an error. Whoever reads the adapter's return value (a test, an ALB without decoding) meets base64
#   only when something is refused.
# Versions: mangum 0.22.0, fastapi 0.165.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check mangum==0.22.0 fastapi==0.165.0
venv/bin/python - <<'PY'
import base64
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from mangum import Mangum

log = []


@asynccontextmanager
async def lifespan(app):
    log.append("open pool")
    yield
    log.append("close pool")


app = FastAPI(lifespan=lifespan)
app.get("/report")(lambda: {"title": "fine"})
app.get("/refused")(lambda: JSONResponse({"title": "no"}, 403, media_type="application/problem+json"))


def event(path):
    http = {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"}
    return {"version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "", "isBase64Encoded": False,
            "headers": {"host": "example.org"}, "requestContext": {"http": http, "stage": "$default"}}


print("mangum", version("mangum"))
for mode in ("auto", "on"):
    log.clear()
    container = Mangum(app, lifespan=mode)
    fine, refused, _ = (container(event(path), None) for path in ("/report", "/refused", "/report"))
    print("three events,", mode, log)
    assert log == ["open pool", "close pool"] * 3
print(fine["headers"]["content-type"], fine["isBase64Encoded"], fine["body"])
print(refused["headers"]["content-type"], refused["isBase64Encoded"], refused["body"])
assert (fine["isBase64Encoded"], fine["body"]) == (False, '{"title":"fine"}')
assert refused["isBase64Encoded"] and base64.b64decode(refused["body"]) == b'{"title":"no"}'
PY
