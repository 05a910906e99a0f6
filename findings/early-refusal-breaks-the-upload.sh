#!/usr/bin/env bash
# Guess: an application that answers 403 before it has read a large upload gets its 403 to the client under any ASGI
#   server. The specification lets it answer at once.
# Fact: under uvicorn the client reads the 403. hypercorn, granian and gunicorn's own asgi worker close the connection
#   with the upload unread: the kernel resets it, the client is told of a broken pipe, and the answer is lost. The
#   application did the same each time. A body of a few bytes reaches the client as 403 everywhere.
# Why it matters: "no key", "too large" and "too many" look like a network fault to callers with large bodies, who retry
#   them. Reading the body before one refuses mends it, and lets strangers send as much as they like.
# Versions: uvicorn 0.54.0, hypercorn 0.18.0, granian 2.8.9, gunicorn 27.0.1; the client is Python's http.client.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 hypercorn==0.18.0 granian==2.8.9 gunicorn==27.0.1
cat > refuse.py <<'PY'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})
PY
venv/bin/pip freeze | grep -iE '^(uvicorn|hypercorn|granian|gunicorn)='
venv/bin/python - <<'PY'
import collections
import http.client
import socket
import subprocess
import time


def post(port, size):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", b"x" * size)
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        return "broken connection"
    finally:
        connection.close()


def answers(command):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(f"exec venv/bin/{command}".format(port=port), shell=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            time.sleep(0.1)
            try:
                post(port, 1)
                break
            except ConnectionRefusedError:
                pass
        small, large = (collections.Counter(post(port, size) for _ in range(5)) for size in (10, 8_000_000))
        print(f"{command.split()[0]}: ten bytes {dict(small)}, eight megabytes {dict(large)}")
        assert small == {403: 5}
        return large
    finally:
        server.terminate()
        server.wait()


assert answers("uvicorn refuse:app --port {port}") == {403: 5}
for command in ("hypercorn refuse:app --bind 127.0.0.1:{port}", "granian refuse:app --interface asgi --port {port}",
                "gunicorn refuse:app --worker-class asgi --bind 127.0.0.1:{port}"):
    assert answers(command)["broken connection"] >= 4
PY
