#!/usr/bin/env bash
# Guess: ASGI servers behind a proxy on the same host, at their defaults, tell the application the same caller, and the
#   port is a number as the specification says.
# Fact: three answers to one request with X-Forwarded-For and X-Forwarded-Proto from 127.0.0.1. uvicorn believes both.
#   gunicorn's own asgi worker believes the scheme and not the address. hypercorn and granian believe neither, and
#   granian gives ports as texts. Over a unix socket uvicorn believes nothing either, so that the client is None, and
#   no address or network in --forwarded-allow-ips changes it, not even 0.0.0.0/0.
# Why it matters: limits, address lists and logs take the proxy for the caller after a change of the server or of one
#   line in its configuration, and `port == 443` is never true under one of them.
# Versions: uvicorn 0.54.0, gunicorn 27.0.1, hypercorn 0.18.0, granian 2.8.9.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 gunicorn==27.0.1 hypercorn==0.18.0 granian==2.8.9
cat > tell.py <<'PY'
import json


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    client = scope["client"]
    told = {"scheme": scope["scheme"], "client": client and client[0], "port": client and type(client[1]).__name__}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
PY
venv/bin/pip freeze | grep -iE '^(uvicorn|hypercorn|granian|gunicorn)='
port=$(venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
expect() {
  "venv/bin/$2" tell:app "${@:3}" >log.txt 2>&1 &
  server=$!
  to=()
  case "$*" in *--uds*) to=(--unix-socket "$tmp/s.sock") ;; esac
  for _ in $(seq 100); do
    seen=$(curl -s --noproxy '*' "${to[@]}" -H 'X-Forwarded-For: 192.0.2.7' -H 'X-Forwarded-Proto: https' \
      "http://127.0.0.1:$port/") && break
    sleep 0.1
  done
  kill $server && wait $server || true
  echo "${*:2} -> $seen"
  test "$seen" = "$1"
}
proxy='"client": "127.0.0.1"'
expect '{"scheme": "https", "client": "192.0.2.7", "port": "int"}' uvicorn --port "$port"
expect "{\"scheme\": \"https\", $proxy, \"port\": \"int\"}" gunicorn --worker-class asgi --bind "127.0.0.1:$port"
expect "{\"scheme\": \"http\", $proxy, \"port\": \"int\"}" hypercorn --bind "127.0.0.1:$port"
expect "{\"scheme\": \"http\", $proxy, \"port\": \"str\"}" granian --interface asgi --port "$port"
expect '{"scheme": "http", "client": null, "port": null}' uvicorn --uds "$tmp/s.sock"
expect '{"scheme": "http", "client": null, "port": null}' uvicorn --uds "$tmp/s.sock" --forwarded-allow-ips 0.0.0.0/0
