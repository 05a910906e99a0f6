#!/usr/bin/env bash
# Guess: a counter with an attribute per caller grows by one series for each caller, and the trouble is a bill later on.
# Fact: the SDK keeps 2000 combinations of attributes per instrument. Whoever comes first has a series for the life of
#   the process; every later caller is added into one series named otel.metric.overflow, however busy it is, and nothing
#   is logged. Totals stay right, so a dashboard of sums does not show it. A restart deals the 2000 places anew.
# Why it matters: usage per API key is right in tests and for small services, and wrong from caller 2001 on. Billing or
#   alarms by key need their own store.
# Versions: opentelemetry-sdk 1.45.2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check opentelemetry-sdk==1.45.2
venv/bin/python - <<'PY'
import logging
import warnings
from importlib.metadata import version

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

records = []
handler = logging.Handler()
handler.emit = records.append
logging.basicConfig(level=logging.DEBUG, handlers=[handler])
reader = InMemoryMetricReader()
counter = MeterProvider([reader]).get_meter("service").create_counter("requests")


def collect():
    points = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    return {point.attributes.get("caller", "overflow"): point.value for point in points}


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for number in range(2500):
        counter.add(1, {"caller": f"c{number}"})
    first = collect()
    for _ in range(1000):
        counter.add(1, {"caller": "c2400"})
    second = collect()
print("opentelemetry-sdk", version("opentelemetry-sdk"))
print("2500 callers:", len(first), "series, overflow:", first["overflow"], "warnings:", len(told) + len(records))
print("1000 more by caller c2400: its own series:", second.get("c2400"), "overflow:", second["overflow"])
assert len(first) == 2001 and first["overflow"] == 500 and sum(first.values()) == 2500
assert "c1999" in first and "c2000" not in first
assert "c2400" not in second and second["overflow"] == 1500 and not told and not records
PY
