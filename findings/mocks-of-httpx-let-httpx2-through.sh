#!/usr/bin/env bash
# Guess: whoever follows Starlette's warning and installs httpx2 in the place of httpx keeps the mocks of outgoing requests, or
#   gets an error: respx and pytest-httpx exist so that a test sends nothing that was not allowed.
# Fact: both patch httpx alone. A request by httpx2 goes out to the real server, beside a mock for exactly this address. respx
#   says so at the end only if every route has to be called, and names the route and not the request; with
#   assert_all_called=False nobody says anything. respx also stays silent where no route is set at all, though it refuses any
#   such request by httpx.
# Why it matters: tests that never touched the network send mails, payments or keys to real services after one word in an
#   import has changed.
# Versions: respx 0.23.1, pytest-httpx 0.36.2, httpx 0.28.1, httpx2 2.16.2, pytest 9.2.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check respx==0.23.1 pytest-httpx==0.36.2 httpx==0.28.1 httpx2==2.16.2 \
  pytest==9.2.0
cat > real.py <<'PY'
import http.server
import threading


class Real(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"real")

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Real)
threading.Thread(target=server.serve_forever, daemon=True).start()
URL = f"http://127.0.0.1:{server.server_port}/"
PY
cat > see.py <<'PY'
import httpx
import httpx2
import respx
from real import URL


def ask(library, **options):
    with respx.mock(**options) as mock:
        if options:
            mock.get(URL).respond(text="mock")
        try:
            return library.get(URL).text
        except respx.models.AllMockedAssertionError:
            return "refused"


seen = {
    (library.__name__, what): ask(library, **options)
    for library in (httpx, httpx2)
    for what, options in (("a route", {"assert_all_called": False}), ("no route", {}))
}
for (library, what), answer in seen.items():
    print(f"respx with {what}, {library}: {answer}")
assert seen == {
    ("httpx", "a route"): "mock",
    ("httpx", "no route"): "refused",
    ("httpx2", "a route"): "real",
    ("httpx2", "no route"): "real",
}
PY
cat > test_see.py <<'PY'
import httpx
import httpx2
import pytest
from real import URL


@pytest.mark.httpx_mock(assert_all_responses_were_requested=False)
@pytest.mark.parametrize("library, expected", [(httpx, "mock"), (httpx2, "real")], ids=["httpx", "httpx2"])
def test_see(httpx_mock, library, expected):
    httpx_mock.add_response(text="mock")
    assert library.get(URL).text == expected
PY
venv/bin/pip freeze | grep -iE "^(respx|pytest-httpx|pytest|httpx2?)="
venv/bin/python see.py
venv/bin/pytest -q -p no:cacheprovider -v test_see.py | grep -E "test_see|passed"
