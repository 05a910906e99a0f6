#!/usr/bin/env bash
# Guess: when nothing listens at the address, a Redis client raises at once, as a refused connection does, and
#   redis-py and its fork valkey-py behave alike.
# Fact: redis-py 8 retries ten times by default, with growing pauses, and raises after some seconds; its asyncio client
#   too. valkey-py 6.2 raises within milliseconds. `retry=Retry(NoBackoff(), 0)` gives redis-py the old behaviour.
#   socket_connect_timeout does not: it bounds one try.
# Why it matters: a rate limiter or cache that falls back when its server is away adds seconds to every request, and
#   in a synchronous endpoint each of them holds a worker thread meanwhile.
# Versions: redis 8.1.0, valkey 6.2.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check redis==8.1.0 valkey==6.2.0
venv/bin/python - <<'PY'
import asyncio
import socket
import time

import redis
import redis.asyncio
import valkey
from redis.backoff import NoBackoff
from redis.retry import Retry

closed = socket.socket()
closed.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
at = {"host": "127.0.0.1", "port": closed.getsockname()[1], "socket_connect_timeout": 0.1}


def seconds(name, ping, error):
    start = time.monotonic()
    try:
        ping()
    except error:
        pass
    else:
        raise AssertionError("somebody answered")
    took = time.monotonic() - start
    print(f"{name} raises after {took:.2f} s")
    return took


async def ping():
    async with redis.asyncio.Redis(**at) as client:
        await client.ping()


print("redis", redis.__version__, "valkey", valkey.__version__)
refused = redis.exceptions.ConnectionError
assert seconds("redis", redis.Redis(**at).ping, refused) > 1
assert seconds("redis.asyncio", lambda: asyncio.run(ping()), refused) > 1
assert seconds("redis without retries", redis.Redis(**at, retry=Retry(NoBackoff(), 0)).ping, refused) < 0.5
assert seconds("valkey", valkey.Valkey(**at).ping, valkey.exceptions.ConnectionError) < 0.5
PY
