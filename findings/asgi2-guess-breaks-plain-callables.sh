#!/usr/bin/env bash
# Guess: ASGI middleware takes every application that servers take. A callable with three parameters that returns an
#   awaitable is one, whether it is written `async def` or `def`.
# Fact: three widely used middleware classes look for a coroutine function. A plain `def __call__` that returns a
#   coroutine is taken for the ASGI 2 protocol of 2018, called with the scope alone, and every request raises TypeError.
#   They do not even agree on one test: functools.partial of a coroutine function passes OpenTelemetry's and fails the
#   other two.
# Why it matters: a wrapper that saves one coroutine by `def __call__(...): return self.app(...)` works under every
#   server and breaks on the day somebody adds error tracking in front of it.
# Versions: sentry-sdk 2.75.0, honeybadger 1.3.0, opentelemetry-instrumentation-asgi 0.66b2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check sentry-sdk==2.75.0 honeybadger==1.3.0 \
  opentelemetry-instrumentation-asgi==0.66b2 httpx==0.28.1 uvicorn==0.54.0
venv/bin/python - <<'PY'
import asyncio
import functools
from importlib.metadata import version

import httpx
from honeybadger.contrib import ASGIHoneybadger
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def named(name, scope, receive, send):
    await answer(scope, receive, send)


class Plain:
    def __call__(self, scope, receive, send):
        return answer(scope, receive, send)


async def call(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        try:
            return (await client.get("/")).status_code
        except TypeError:
            return "TypeError"


def row(wrap):
    return [asyncio.run(call(wrap(app))) for app in (answer, Plain(), functools.partial(named, "x"))]


for package in ("sentry-sdk", "honeybadger", "opentelemetry-instrumentation-asgi", "uvicorn"):
    print(package, version(package))
print("columns: async def, plain def, functools.partial")
rows = {wrap.__name__: row(wrap) for wrap in
        (ProxyHeadersMiddleware, OpenTelemetryMiddleware, SentryAsgiMiddleware, ASGIHoneybadger)}
for name, cells in rows.items():
    print(name, cells)
assert rows["ProxyHeadersMiddleware"] == [200, 200, 200]
assert rows["OpenTelemetryMiddleware"] == [200, "TypeError", 200]
assert rows["SentryAsgiMiddleware"] == rows["ASGIHoneybadger"] == [200, "TypeError", "TypeError"]
PY
