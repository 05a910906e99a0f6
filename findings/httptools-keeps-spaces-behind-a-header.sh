#!/usr/bin/env bash
# Guess: spaces around the value of a header are no part of it, as HTTP says, so no application ever sees them.
# Fact: uvicorn with httptools removes those before the value and keeps those behind it. uvicorn with h11, granian, hypercorn
#   and daphne remove both. With such a space FastAPI takes `X-Count: 7 ` for 7, and a token compared with the right one is
#   wrong.
# Why it matters: a key pasted or read from a file with a space at its end works with one of uvicorn's two parsers and is refused
#   by the other, though the requests are the same for every other server.
# Versions: uvicorn 0.54.0, httptools 0.9.0, h11 0.16.0, granian 2.8.9, hypercorn 0.18.0, daphne 4.2.3, fastapi 0.165.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0 granian==2.8.9 \
  hypercorn==0.18.0 daphne==4.2.3 fastapi==0.165.0
cat > service.py <<'PY'
from secrets import compare_digest
from typing import Annotated

from fastapi import FastAPI, Header

app = FastAPI()


@app.get("/")
async def see(x_token: Annotated[str, Header()], x_count: Annotated[int, Header()]):
    return [x_token, compare_digest(x_token, "example"), x_count]
PY
cat > see.py <<'PY'
import http.client
import json
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


def ask(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"X-Token": "  example  ", "X-Count": " 7 "})
    told = json.loads(connection.getresponse().read())
    connection.close()
    return told


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
                told = ask(port)
                break
            except OSError:
                time.sleep(0.1)
        print(f"{name}: sent '  example  ' and ' 7 ', got {told[0]!r}, equal: {told[1]}, count: {told[2]}")
        kept = name == "uvicorn, httptools"
        assert told == ["example  " if kept else "example", not kept, 7]
    finally:
        server.terminate()
        server.wait()
PY
venv/bin/pip freeze | grep -iE "^(uvicorn|httptools|h11|granian|hypercorn|daphne|fastapi)="
venv/bin/python see.py
