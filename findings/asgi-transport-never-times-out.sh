#!/usr/bin/env bash
# Guess: a test client made of httpx.AsyncClient and ASGITransport with timeout=0.5 raises ReadTimeout when an endpoint
#   takes longer, and its answer arrives before background work, as over a real connection.
# Fact: the transport does not look at the timeout: the call returns 200 after the endpoint's own time. It returns only
#   when the application's coroutine ends, so background tasks and the end of a stream are waited for as well. httpx2
#   does the same. Over a socket, both raise and both answer early.
# Why it matters: tests of slow endpoints, of cancelling, of streams and of "answer now, work later" pass or fail for the
#   wrong reason. asyncio.timeout() around the call is the clock that works.
# Versions: httpx 0.28.1, httpx2 2.16.2, starlette 1.10.0, uvicorn 0.54.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check httpx==0.28.1 httpx2==2.16.2 starlette==1.10.0 uvicorn==0.54.0
venv/bin/python - <<'PY'
import asyncio
import time

import httpx
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def slow(request):
    await asyncio.sleep(2)
    return PlainTextResponse("late")


async def later(request):
    return PlainTextResponse("now", background=BackgroundTask(asyncio.sleep, 2))


app = Starlette(routes=[Route("/slow", slow), Route("/later", later)])


async def ask(library, path, base="http://test", transport=None):
    start = time.monotonic()
    async with library.AsyncClient(transport=transport, base_url=base, timeout=1, trust_env=False) as client:
        try:
            outcome = (await client.get(path)).status_code
        except library.ReadTimeout:
            outcome = "ReadTimeout"
    print(f"{library.__name__} {library.__version__} {'in process' if transport else 'over a socket'} {path}: "
          f"{outcome} after {time.monotonic() - start:.1f} s")
    return outcome, time.monotonic() - start > 1.9


async def main():
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    socket = "http://%s:%d" % server.servers[0].sockets[0].getsockname()
    for library in (httpx, httpx2):
        assert await ask(library, "/slow", socket) == ("ReadTimeout", False)
        assert await ask(library, "/later", socket) == (200, False)
        assert await ask(library, "/slow", transport=library.ASGITransport(app)) == (200, True)
        assert await ask(library, "/later", transport=library.ASGITransport(app)) == (200, True)
    server.should_exit = True
    await serving


asyncio.run(main())
PY
