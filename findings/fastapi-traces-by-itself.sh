#!/usr/bin/env bash
# Guess: FastAPI is traced once one adds an instrumentation package, and not before.
# Fact: 0.165 traces by itself as soon as the process has a global TracerProvider, whoever set it, perhaps only to trace
#   a database. A request then gives four spans, and url.query is the query string in full. Adding the usual
#   opentelemetry-instrumentation-asgi takes the four away and gives three others with other attribute names; what FastAPI
#   recorded of dependencies and serialization is gone. `FastAPI(telemetry={...})` narrows the first kind.
# Why it matters: an upgrade multiplies the spans that are paid for and records query strings that nobody meant to keep,
#   without a line changed. Dashboards differ by whether a second package is there.
# Versions: fastapi 0.165.0, opentelemetry-sdk 1.45.2, opentelemetry-instrumentation-asgi 0.66b2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check fastapi==0.165.0 httpx2==2.16.2 opentelemetry-sdk==1.45.2 \
  opentelemetry-instrumentation-asgi==0.66b2
venv/bin/python - <<'PY'
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def spans_of_a_request(middleware=None, **options):
    app = FastAPI(**options)
    app.get("/reports")(lambda: [])
    if middleware:
        app.add_middleware(middleware)
    exporter.clear()
    assert TestClient(app).get("/reports?customer=acme").status_code == 200
    found = list(exporter.get_finished_spans())
    for span in found:
        print("  ", span.instrumentation_scope.name, "|", span.name, "|", span.attributes.get("url.query", ""))
    return [span.instrumentation_scope.name for span in found], found


print("fastapi", version("fastapi"), "opentelemetry-instrumentation-asgi", version("opentelemetry-instrumentation-asgi"))
exporter = InMemorySpanExporter()
print("no provider:")
assert spans_of_a_request() == ([], [])
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
print("a provider and nothing else:")
scopes, found = spans_of_a_request()
assert scopes == ["fastapi"] * 4 and found[-1].attributes["url.query"] == "customer=acme"
print("with OpenTelemetryMiddleware:")
scopes, found = spans_of_a_request(OpenTelemetryMiddleware)
assert scopes == ["opentelemetry.instrumentation.asgi"] * 3 and "url.query" not in found[-1].attributes
print("telemetry={'tracing': False}:")
assert spans_of_a_request(telemetry={"tracing": False, "operation_spans": False}) == ([], [])
PY
