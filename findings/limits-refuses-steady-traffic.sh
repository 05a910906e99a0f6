#!/usr/bin/env bash
# Guess: a moving window of 10 requests in 10 seconds lets one request a second through for ever, and a refused caller
#   that comes back at the moment it was told gets in.
# Fact: both ends of the window count, so the request that is exactly ten seconds old is still in it. Every eleventh
#   request of such steady traffic is refused, and so is the caller that returns exactly at reset_time. The window is
#   ten seconds and the smallest step of the clock.
# Why it matters: a client that paces itself at the published rate, the best kind there is, sees 9 % of 429. A test
#   with a frozen clock that jumps to the reset fails although the service is right.
# Versions: limits 5.8.0 (MovingWindowRateLimiter, MemoryStorage), time-machine 3.6.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check limits==5.8.0 time-machine==3.6.0
venv/bin/python - <<'PY'
from importlib.metadata import version

import time_machine
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

rate = parse("10 per 10 seconds")
print("limits", version("limits"), rate)


limiter = MovingWindowRateLimiter(MemoryStorage())
with time_machine.travel(1_800_000_000, tick=False) as clock:
    refused = 0
    for _ in range(220):
        refused += not limiter.hit(rate, "caller")
        clock.shift(1)
print("one request a second, 220 requests, refused:", refused)
assert refused == 20

limiter = MovingWindowRateLimiter(MemoryStorage())
with time_machine.travel(1_800_000_000, tick=False) as clock:
    assert all(limiter.hit(rate, "caller") for _ in range(10))
    told = limiter.get_window_stats(rate, "caller").reset_time
    clock.move_to(told)
    at_reset = limiter.hit(rate, "caller")
    clock.shift(0.001)
    later = limiter.hit(rate, "caller")
print(f"told to come back in {told - 1_800_000_000} s; then: {at_reset}, a millisecond later: {later}")
assert (at_reset, later) == (False, True)
PY
