#!/usr/bin/env bash
# Guess: a server that listens on :: takes the forwarded headers of a proxy at 127.0.0.1, which is trusted by default.
# Fact: the proxy's address arrives as ::ffff:127.0.0.1, and uvicorn compares it with 127.0.0.1 as it stands. The headers
#   are ignored without a word, and every caller has the proxy's address. FORWARDED_ALLOW_IPS with both spellings helps.
# Why it matters: changing --host 0.0.0.0 into :: for IPv6 makes allow lists, limits per address and logs wrong.
# Versions: uvicorn 0.54.0.
set -euo pipefail
tmp=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check uvicorn==0.54.0
cat > told.py <<'PY'
async def app(scope, receive, send):
    body = scope["client"][0].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
PY
port=$(venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/pip freeze | grep -i '^uvicorn='
expect() {
  env ${2:+FORWARDED_ALLOW_IPS=$2} venv/bin/python - "$port" <<'PY' &
import socket
import sys

import uvicorn

with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
    uvicorn.Server(uvicorn.Config("told:app", lifespan="off", log_level="error")).run([listener])
PY
  server=$!
  for _ in $(seq 100); do
    sleep 0.1
    client=$(venv/bin/python - "$port" <<'PY'
import urllib.request
import sys

asked = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/", headers={"X-Forwarded-For": "192.0.2.7"})
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked).read().decode())
except OSError:
    pass
PY
    )
    test -z "$client" || break
  done
  kill "$server"
  wait "$server" 2>/dev/null || true
  server=
  echo "FORWARDED_ALLOW_IPS=${2:-}: the client is $client"
  test "$client" = "$1"
}
expect ::ffff:127.0.0.1
expect 192.0.2.7 127.0.0.1,::ffff:127.0.0.1
