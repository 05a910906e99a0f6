#!/usr/bin/env bash
# Guess: a request line with a whole URL (GET http://host/items HTTP/1.1), which HTTP/1.1 has every server accept, reaches the
#   same endpoint as one with the path, at least under one server at its different settings.
# Fact: uvicorn with httptools and granian give the application the path. uvicorn with h11 (which is what `pip install uvicorn`
#   brings), hypercorn and daphne give it the whole URL as the path, so that FastAPI answers 404.
# Why it matters: that is how clients ask that take the service for their proxy, and how some proxies and probes ask. They
#   work on the laptop with uvicorn[standard], and get 404 from the image without it.
# Versions: uvicorn 0.54.0, httptools 0.9.0, h11 0.16.0, granian 2.8.9, hypercorn 0.18.0, daphne 4.2.3, fastapi 0.165.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0 granian==2.8.9 \
  hypercorn==0.18.0 daphne==4.2.3 fastapi==0.165.0
cat > service.py <<'PY'
from fastapi import FastAPI

app = FastAPI()


@app.get("/items")
async def items():
    return "items"
PY
cat > see.py <<'PY'
import http.client
import socket
import subprocess
import time

SERVERS = {
    "uvicorn, httptools": "uvicorn --http httptools --log-level critical --port {}",
    "uvicorn, h11": "uvicorn --http h11 --log-level critical --port {}",
    "granian": "granian --interface asgi --no-log --port {}",
    "hypercorn": "hypercorn --bind 127.0.0.1:{}",
    "daphne": "daphne --port {}",
}
RIGHT = {"uvicorn, httptools": 200, "uvicorn, h11": 404, "granian": 200, "hypercorn": 404, "daphne": 404}


def ask(port, target):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", target)
    status = connection.getresponse().status
    connection.close()
    return status


for name, command in SERVERS.items():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    program, *options = command.format(port).split()
    server = subprocess.Popen(
        [f"venv/bin/{program}", *options, "service:app"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                by_path = ask(port, "/items")
                break
            except OSError:
                time.sleep(0.1)
        by_url = ask(port, f"http://127.0.0.1:{port}/items")
        print(f"{name}: /items {by_path}, http://127.0.0.1:PORT/items {by_url}")
        assert (by_path, by_url) == (200, RIGHT[name])
    finally:
        server.terminate()
        server.wait()
PY
venv/bin/pip freeze | grep -iE "^(uvicorn|httptools|h11|granian|hypercorn|daphne|fastapi)="
venv/bin/python see.py
