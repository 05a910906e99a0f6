"""No header that a stranger can send makes authentication fail in any way but a refusal."""

import asyncio

from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.constants import MISSING_KEY_STATUS
from app.keys import new_secret
from tests.servers import HEADER, PROBE, LiveServer, status_of

header_values = st.binary(max_size=200) | st.sampled_from(
    [b"", b"\xe9", b"\x00", b" ", b"a" * 60_000, new_secret().encode() + b"\xff"]
)
several = st.lists(header_values, max_size=3)
quick = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(values=several)
def test_any_header_bytes_are_refused_in_process(service: FastAPI, values: list[bytes]) -> None:
    assert asyncio.run(status_of(service, *values)) == MISSING_KEY_STATUS


@quick
@given(values=several)
def test_any_header_bytes_are_refused_on_a_socket(live: LiveServer, values: list[bytes]) -> None:
    headers = b"".join(b"%b: %b\r\n" % (HEADER, value) for value in values)
    answer = live.send_raw(
        b"GET %b HTTP/1.1\r\nHost: service\r\nConnection: close\r\n" % PROBE.encode()
        + headers
        + b"\r\n"
    )
    # 400 and 431: the server itself does not take it for a request.
    assert int(answer.split()[1]) in (MISSING_KEY_STATUS, 400, 431)
