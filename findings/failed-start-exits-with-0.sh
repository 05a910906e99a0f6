#!/usr/bin/env bash
# Guess: a server whose application fails to start ends with a code other than 0, with one worker or with several.
# Fact: uvicorn ends with 3, and with 0 as soon as --workers is given. hypercorn ends with 0 either way, after a traceback.
#   gunicorn's own asgi worker ends with 3 and granian with 1, either way.
# Why it matters: systemd's Restart=on-failure, a job queue, `docker run --restart on-failure` and a script with `set -e`
#   all take 0 for "done": the service is down, and nothing restarts it or tells.
# Versions: uvicorn 0.54.0, hypercorn 0.18.0, granian 2.8.9, gunicorn 27.0.1.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0 hypercorn==0.18.0 granian==2.8.9 gunicorn==27.0.1
cat > broken.py <<'PY'
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
PY
port=$(venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/pip freeze | grep -iE '^(uvicorn|hypercorn|granian|gunicorn)='
expect() {
  code=0
  timeout 60 "venv/bin/${@:2}" >log.txt 2>&1 || code=$?
  echo "code $code: ${*:2}"
  test "$code" = "$1" || { cat log.txt; exit 1; }
}
expect 3 uvicorn broken:app --port "$port"
expect 0 uvicorn broken:app --port "$port" --workers 2
expect 0 hypercorn broken:app --bind "127.0.0.1:$port"
expect 0 hypercorn broken:app --bind "127.0.0.1:$port" --workers 2
expect 3 gunicorn broken:app --worker-class asgi --bind "127.0.0.1:$port"
expect 3 gunicorn broken:app --worker-class asgi --bind "127.0.0.1:$port" --workers 2
expect 1 granian broken:app --interface asgi --port "$port"
expect 1 granian broken:app --interface asgi --port "$port" --workers 2
