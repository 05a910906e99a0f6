#!/usr/bin/env bash
# Guess: whoever asks in HTTP/1.0 never gets an answer in chunks, since that version does not know them, and RFC 9112 forbids
#   it. At most one exotic server forgets that, and not with one of its two parsers only.
# Fact: uvicorn with httptools, the parser that uvicorn[standard] brings, answers HTTP/1.0 in chunks where the application
#   gives no length: the lines with their sizes are a part of the body for such a client. uvicorn with h11, granian, hypercorn,
#   daphne and gunicorn send the bare body and close the connection.
# Why it matters: some health checks, load testers and old devices ask in HTTP/1.0. A streamed CSV or a stream of lines has odd
#   lines in it for them, with one of two installations of the same server.
# Versions: uvicorn 0.54.0, httptools 0.9.0, h11 0.16.0, granian 2.8.9, hypercorn 0.18.0, daphne 4.2.3, gunicorn 27.0.1,
#   starlette 1.10.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0 granian==2.8.9 \
  hypercorn==0.18.0 daphne==4.2.3 gunicorn==27.0.1 starlette==1.10.0
cat > service.py <<'PY'
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def rows():
    yield b"id,name\n"
    yield b"1,Ann\n"


async def table(request):
    return StreamingResponse(rows(), media_type="text/csv")


app = Starlette(routes=[Route("/", table)])
PY
cat > see.py <<'PY'
import socket
import subprocess
import time

SERVERS = {
    "uvicorn, httptools": "uvicorn --http httptools --log-level critical --port {}",
    "uvicorn, h11": "uvicorn --http h11 --log-level critical --port {}",
    "granian": "granian --interface asgi --no-log --port {}",
    "hypercorn": "hypercorn --bind 127.0.0.1:{}",
    "daphne": "daphne --port {}",
    "gunicorn": "gunicorn -k asgi -b 127.0.0.1:{}",
}


def ask(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while got := connection.recv(65536):
            answer += got
    return answer.partition(b"\r\n\r\n")[::2]


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
                head, body = ask(port)
                break
            except OSError:
                time.sleep(0.1)
        print(f"{name}: {body}")
        in_chunks = name == "uvicorn, httptools"
        assert (b"transfer-encoding: chunked" in head.lower()) == in_chunks
        assert body == (b"8\r\nid,name\n\r\n6\r\n1,Ann\n\r\n0\r\n\r\n" if in_chunks else b"id,name\n1,Ann\n")
    finally:
        server.terminate()
        server.wait()
PY
venv/bin/pip freeze | grep -iE "^(uvicorn|httptools|h11|granian|hypercorn|daphne|gunicorn|starlette)="
venv/bin/python see.py
