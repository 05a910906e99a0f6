#!/usr/bin/env bash
# Guess: `app.routes` is the flat list of routes that it always was, and a small metrics middleware that walks it works
#   with every FastAPI.
# Fact: since 0.137 `include_router` leaves one node in app.routes, and the routes are below it. The node matches a
#   request and has no `path`. starlette-prometheus, whose last release looks for that attribute, raises for every
#   included route, while routes defined on the application itself answer. Libraries that read the route from the scope
#   (starlette_exporter) are right for both.
# Why it matters: a test with a one-file application passes, the real one with routers answers 500 to everything that
#   matters. `iter_route_contexts()` walks the tree.
# Versions: fastapi 0.165.0, starlette-prometheus 0.10.0, starlette_exporter 0.24.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check fastapi==0.165.0 httpx2==2.16.2 starlette-prometheus==0.10.0 \
  starlette_exporter==0.24.0
cat > try.py <<'PY'
import importlib
import sys
from importlib.metadata import version

import prometheus_client
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

name = sys.argv[1]
middleware = importlib.import_module(name.replace("-", "_")).PrometheusMiddleware
app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
router = APIRouter(prefix="/included")
router.get("/{id}")(lambda id: id)
app.include_router(router)
app.get("/own/{id}")(lambda id: id)
app.add_middleware(middleware)
client = TestClient(app, raise_server_exceptions=False)
statuses = [client.get(path).status_code for path in ("/own/1", "/included/1")]
templated = '"/included/{id}"' in prometheus_client.generate_latest().decode()
print("fastapi", version("fastapi"), name, version(name))
print("  routes:", [getattr(route, "path", type(route).__name__) for route in app.routes])
print("  /own/1 and /included/1:", statuses, "template of the included route in the metrics:", templated)
assert not all(hasattr(route, "path") for route in app.routes)
assert (statuses, templated) == {"starlette-prometheus": ([200, 500], False),
                                 "starlette_exporter": ([200, 200], True)}[name]
PY
venv/bin/python try.py starlette-prometheus
venv/bin/python try.py starlette_exporter
