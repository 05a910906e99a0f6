"""No bytes that a stranger can send make authentication fail in any way but a refusal."""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.auth import GuardedAPI, GuardedRouter
from app.auth.key import new_secret, with_prefix
from app.constants import MISSING_KEY_STATUS
from tests.callers import HEADER, PROBE, Keys, status_of, with_probe
from tests.thorough.servers import LiveServer

header_values = st.binary(max_size=200) | st.sampled_from(
    [
        *(b"", b"\xe9", b"\x00", b" ", b"-", b"a" * 60_000),
        new_secret().encode() + b"\xff",
        with_prefix(new_secret(), "acme").encode(),
        with_prefix(new_secret(), "acme").encode()[:-1] + b"\xb2",  # a digit to `str.isdigit`
    ]
)
several = st.lists(header_values, max_size=3)
quick = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
both_parsers = pytest.mark.parametrize("parser", ["httptools", "h11"])


@pytest.fixture(scope="module")
def without_keys() -> GuardedAPI:
    return with_probe(GuardedAPI(Keys()))


@quick
@given(values=several)
def test_any_header_bytes_are_refused_in_process(
    without_keys: GuardedAPI, values: list[bytes]
) -> None:
    assert asyncio.run(status_of(without_keys, *values)) == MISSING_KEY_STATUS


@pytest.fixture(params=["httptools", "h11"])
def live_with_each_parser(
    service: GuardedAPI, request: pytest.FixtureRequest
) -> Iterator[LiveServer]:
    with LiveServer(service, http=request.param) as live:
        yield live


@quick
@given(values=several)
def test_any_header_bytes_are_refused_on_a_socket(
    live_with_each_parser: LiveServer, values: list[bytes]
) -> None:
    headers = b"".join(b"%b: %b\r\n" % (HEADER, value) for value in values)
    answer = live_with_each_parser.send_raw(
        b"GET %b HTTP/1.1\r\nHost: service\r\nConnection: close\r\n" % PROBE.encode()
        + headers
        + b"\r\n"
    )
    # 400 and 431: the server itself does not take it for a request.
    assert int(answer.split()[1]) in (MISSING_KEY_STATUS, 400, 431)


# What comes behind a chunked body are trailers. They are no headers, so a key there is no key.


@pytest.fixture
def echo(api: GuardedAPI) -> threading.Event:
    """Adds an endpoint that tells the names of all headers once it has read the body."""
    began = threading.Event()
    router = GuardedRouter()

    async def echo(request: Request) -> Response:
        async for _ in request.stream():
            began.set()
        return JSONResponse(sorted(request.headers.keys()))

    # A route of Starlette's: nobody has looked at the headers before.
    router.add_route("/echo", echo, methods=["POST"])
    api.include_router(router)
    return began


def chunked(*headers: bytes, trailers: bytes = b"") -> bytes:
    head = [b"POST /echo HTTP/1.1", b"Host: service", b"Connection: close", *headers]
    return b"\r\n".join([*head, b"", b"4", b"body", b"0", trailers + b"\r\n"])


CHUNKED = b"Transfer-Encoding: chunked"


@both_parsers
def test_a_key_in_a_trailer_is_no_key(
    api: GuardedAPI, keys: Keys, echo: threading.Event, parser: str
) -> None:
    key = b"%b: %b\r\n" % (HEADER, keys.issue())
    with LiveServer(api, http=parser) as live:
        for trailers in (key, b"X-Other: 1\r\n" + key, key + key):
            for announced in ([], [b"Trailer: " + HEADER]):
                request = chunked(*announced, CHUNKED, trailers=trailers)
                assert str(MISSING_KEY_STATUS).encode() in live.send_raw(request)


@both_parsers
def test_a_chunked_body_takes_no_key_away(
    api: GuardedAPI, keys: Keys, echo: threading.Event, parser: str
) -> None:
    key = b"%b: %b" % (HEADER, keys.issue())
    with LiveServer(api, http=parser) as live:
        assert b"200" in live.send_raw(chunked(key, CHUNKED))
        assert b"200" in live.send_raw(chunked(key, CHUNKED, trailers=b"X-Other: 1\r\n"))
        # httptools does not tell this one from a trailer.
        behind = live.send_raw(chunked(CHUNKED, key))
        assert str(MISSING_KEY_STATUS).encode() in behind


def test_where_trailers_are_told_apart_a_key_may_be_anywhere(
    api: GuardedAPI, keys: Keys, echo: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "httptools", raising=False)  # as where it is not used
    key = b"%b: %b" % (HEADER, keys.issue())
    with LiveServer(api, http="h11") as live:
        assert b"200" in live.send_raw(chunked(CHUNKED, key))
        assert str(MISSING_KEY_STATUS).encode() in live.send_raw(
            chunked(CHUNKED, trailers=key + b"\r\n")
        )


@both_parsers
def test_a_key_in_a_trailer_that_comes_later_is_shown_to_nobody(
    api: GuardedAPI, keys: Keys, echo: threading.Event, parser: str
) -> None:
    key = b"%b: %b" % (HEADER, keys.issue())
    start, body, end = chunked(key, CHUNKED, trailers=key + b"\r\n").partition(b"body\r\n")
    with (
        LiveServer(api, http=parser) as live,
        socket.create_connection(live.address, timeout=60) as connection,
    ):
        connection.sendall(start + body)
        assert echo.wait(60)
        connection.sendall(end)
        *_, names = connection.makefile("rb").read().splitlines()
    assert json.loads(names) == ["connection", "host", "transfer-encoding"]
