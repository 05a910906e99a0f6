#!/usr/bin/env bash
# Guess: BatchSpanProcessor.force_flush(1000) returns within a second, False if the spans did not leave, and a process
#   whose collector is away ends as fast as before.
# Fact: the argument is not used. With nobody listening the call takes as long as the exporter retries (about 7 s at
#   its default timeout of 10 s), then returns True although every span is lost. shutdown() takes as long for a single
#   span, and no time when there is none, so an idle service ends at once and a busy one does not.
# Why it matters: a service that flushes in its lifespan or at SIGTERM outlives the grace it was given exactly when
#   the collector is away, and a health check built on the answer says that all is well.
# Versions: opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-http 1.45.2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check opentelemetry-sdk==1.45.2 \
  opentelemetry-exporter-otlp-proto-http==1.45.2
env -u OTEL_EXPORTER_OTLP_TIMEOUT -u OTEL_EXPORTER_OTLP_TRACES_TIMEOUT venv/bin/python - <<'PY'
import logging
import socket
import time
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

logging.disable()
closed = socket.socket()
closed.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1/traces"


def timed(name, call):
    start = time.monotonic()
    answer = call()
    seconds = time.monotonic() - start
    print(f"{name}: {answer} after {seconds:.1f} s")
    return answer, seconds


def provider(spans):
    made = TracerProvider()
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    for _ in range(spans):
        made.get_tracer("service").start_span("request").end()
    return made


print("opentelemetry-sdk", version("opentelemetry-sdk"))
answer, seconds = timed("force_flush(1000), one span", lambda: provider(1).force_flush(1000))
assert answer is True and seconds > 3
assert timed("shutdown(), one span", provider(1).shutdown)[1] > 3
assert timed("shutdown(), no span", provider(0).shutdown)[1] < 1
PY
