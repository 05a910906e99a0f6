#!/usr/bin/env bash
# Guess: a test that freezes the time and moves it on by an hour sees a TTLCache of sixty seconds forget its entry.
# Fact: the entry stays under both popular tools, for two different reasons. time-machine does not move
#   time.monotonic(), which the cache reads. freezegun does, but it replaces names in modules, and cachetools has bound
#   the function as a default argument long before. With `timer=lambda: time.monotonic()` freezegun expires it.
# Why it matters: a test that a revoked key leaves the cache after its time passes or fails for the wrong reason, and
#   a test that it stays proves nothing.
# Versions: cachetools 8.0.2, time-machine 3.6.0, freezegun 1.5.5.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check cachetools==8.0.2 time-machine==3.6.0 freezegun==1.5.5
venv/bin/python - <<'PY'
import time
from importlib.metadata import version

import cachetools
import freezegun
import time_machine


def kept_after_an_hour(travel, **timer):
    with travel as clock:
        cache = cachetools.TTLCache(10, ttl=60, **timer)
        cache["key"] = "caller"
        wall, monotonic = time.time(), time.monotonic()
        getattr(clock, "tick" if hasattr(clock, "tick") else "shift")(3600)
        print(f"  wall clock +{time.time() - wall:.0f} s, monotonic +{time.monotonic() - monotonic:.0f} s, "
              f"still cached: {'key' in cache}")
        return "key" in cache


for package in ("cachetools", "time-machine", "freezegun"):
    print(package, version(package))
print("time-machine")
assert kept_after_an_hour(time_machine.travel("2030-01-01", tick=False))
assert kept_after_an_hour(time_machine.travel("2030-01-01", tick=False), timer=lambda: time.monotonic())
print("freezegun")
assert kept_after_an_hour(freezegun.freeze_time("2030-01-01"))
assert not kept_after_an_hour(freezegun.freeze_time("2030-01-01"), timer=lambda: time.monotonic())
PY
