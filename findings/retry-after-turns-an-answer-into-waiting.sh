#!/usr/bin/env bash
# Guess: requests with HTTPAdapter(max_retries=3), and urllib3 as it comes, hand a 429 straight to the caller: no status
#   was listed for retries, and requests says that max_retries is for connections that failed.
# Fact: one header decides. Without Retry-After the 429 comes back after one request. With it the call sleeps and asks
#   again three times, for 413, 429 and 503, though nobody asked for any status. urllib3 believes the header up to six
#   hours a try. Only a POST comes back at once.
# Why it matters: a service that starts to send Retry-After, as it should, makes the threads of its Python callers
#   sleep inside a GET with a timeout of one second, and gets four requests for one.
# Versions: urllib3 2.8.0, requests 2.34.2.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check urllib3==2.8.0 requests==2.34.2
venv/bin/python - <<'PY'
import http.server
import threading
import time

import requests
import urllib3
from requests.adapters import HTTPAdapter

count = 0


class Refuse(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        self.send_response(429)
        if self.path == "/told":
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"
session = requests.Session()
session.trust_env = False
session.mount("http://", HTTPAdapter(max_retries=3))
print("urllib3", urllib3.__version__, "requests", requests.__version__)


def requests_and_seconds(call):
    global count
    count, start = 0, time.monotonic()
    status = call()
    print(status, "after", count, "requests,", round(time.monotonic() - start, 1), "s")
    assert status == 429
    return count, time.monotonic() - start


pool = urllib3.PoolManager()
for get in (lambda path: pool.request("GET", base + path, timeout=1).status,
            lambda path: session.get(base + path, timeout=1).status_code):
    assert requests_and_seconds(lambda: get("/silent"))[0] == 1
    asked, seconds = requests_and_seconds(lambda: get("/told"))
    assert asked == 4 and seconds > 2.9
assert requests_and_seconds(lambda: session.post(base + "/told").status_code)[0] == 1
assert urllib3.Retry.DEFAULT_RETRY_AFTER_MAX == 6 * 3600
PY
