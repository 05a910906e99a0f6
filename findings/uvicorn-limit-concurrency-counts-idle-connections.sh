#!/usr/bin/env bash
# Guess: `uvicorn --limit-concurrency 3` answers three requests at a time, and 503 to a fourth.
# Fact: it counts open connections, also those that ask nothing, and refuses when the number is reached, not passed. With
#   3, two clients that have been answered and keep their connection open are all it takes: a third one gets 503 while
#   nothing runs. With 1, every request there is gets 503.
# Why it matters: browsers and proxies keep connections open. A bound that was meant for work refuses an idle service's
#   callers, the health check among them.
# Versions: uvicorn 0.54.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0
venv/bin/python - <<'PY'
import http.client
import threading
import time

import uvicorn


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def one_after_another(limit, clients):
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical", limit_concurrency=limit)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    connections = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(clients)]
    statuses = []
    for connection in connections:
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()  # answered in full: nothing runs from here on
        statuses.append(response.status)
    for connection in connections:
        connection.close()
    server.should_exit = True
    thread.join()
    print(f"limit {limit}, {clients} clients one after another:", statuses)
    return statuses


print("uvicorn", uvicorn.__version__)
assert one_after_another(None, 4) == [200] * 4
assert one_after_another(3, 4) == [200, 200, 503, 503]
assert one_after_another(1, 1) == [503]
PY
