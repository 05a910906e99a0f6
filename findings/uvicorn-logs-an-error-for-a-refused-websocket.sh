#!/usr/bin/env bash
# Guess: a WebSocket that is refused with `send_denial_response` (401 and a body, as Starlette offers) is an everyday
#   event, logged like a refused request.
# Fact: uvicorn's default protocol answers 401 and then logs "ERROR: ASGI callable returned without completing handshake",
#   though the handshake was completed by the refusal. Closing with 1008 before accept (a bare 403) logs no error. Nor
#   does the wsproto implementation for the same application.
# Why it matters: each stranger who knocks makes an ERROR line, and an event in an error tracker that listens to logs.
#   A proper 401 is punished, the bare 403 is not.
# Versions: uvicorn 0.54.0, starlette 1.10.0, websockets 17.4, wsproto 1.3.2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 starlette==1.10.0 websockets==17.4 wsproto==1.3.2
venv/bin/python - <<'PY'
import logging
import threading
import time
from importlib.metadata import version

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


async def deny(websocket):
    await websocket.send_denial_response(JSONResponse({"detail": "no key"}, 401))


async def close(websocket):
    await websocket.close(1008)


app = Starlette(routes=[WebSocketRoute("/deny", deny), WebSocketRoute("/close", close)])
errors = []
handler = logging.Handler(logging.ERROR)
handler.emit = lambda record: errors.append(record.getMessage())
logging.getLogger("uvicorn.error").addHandler(handler)


def knock(implementation, path):
    errors.clear()
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws=implementation, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        connect(f"ws://127.0.0.1:{port}{path}", proxy=None)
    except InvalidStatus as refusal:
        status = refusal.response.status_code
    server.should_exit = True
    thread.join()
    print(f"--ws {implementation} {path}: {status}, errors logged: {errors}")
    return status, len(errors)


print("uvicorn", version("uvicorn"), "websockets", version("websockets"), "wsproto", version("wsproto"))
assert knock("auto", "/deny") == (401, 1)
assert knock("auto", "/close") == (403, 0)
assert knock("wsproto", "/deny") == (401, 0)
PY
