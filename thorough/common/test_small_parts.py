"""Parts that both kinds of service have and that one alone would not reach."""

import logging
from typing import Any
from unittest.mock import AsyncMock, Mock
from urllib.parse import quote

import pytest

from app import auth
from app.auth.access.clients import FailedAttempts
from app.auth.access.rule import Refusal, authenticate, extract_key
from app.auth.config.sources import secrets_dir
from app.auth.key import KNOWING, digest, is_scope, masked, new_secret
from app.auth.log import RECORD, RequestRecord, configure_logging
from tests.callers import HEADER


@pytest.mark.parametrize(
    ("text", "expected"), [("reports:read", True), ("*", True), ("a b", False), ("x" * 101, False)]
)
def test_a_scope_is_spelled_in_words_and_colons(text: str, expected: bool) -> None:
    assert is_scope(text) is expected


async def test_the_reason_of_a_store_is_the_one_for_the_log() -> None:
    keys = Mock(lookup=AsyncMock(return_value=Refusal("revoked key", "1")))
    scope: dict[str, Any] = {"type": "http", "headers": [(HEADER, new_secret().encode())]}
    scope[RECORD] = RequestRecord("127.0.0.1", "GET")
    extract_key(scope)
    refusal = await authenticate(scope, keys, FailedAttempts())
    assert refusal == Refusal("revoked key", "1")


def test_a_line_of_the_server_without_arguments_stays_as_it_is() -> None:
    configure_logging("INFO")
    record = logging.makeLogRecord({"msg": "started", "args": None})
    assert logging.getLogger("uvicorn.access").filter(record)
    assert record.getMessage() == "started"


def test_without_a_folder_of_secrets_there_is_none() -> None:
    assert secrets_dir() is None


@pytest.mark.parametrize("name", ["nothing", "access_"])
def test_a_name_that_is_not_there_is_told_as_of_any_module(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"module 'app\.auth' has no attribute '{name}'"):
        getattr(auth, name)


def test_a_key_from_elsewhere_is_masked_if_a_store_knows_it() -> None:
    spelled = "acme.Sky=0123456789abcdef"  # not-a-key
    store = Mock(may_exist={digest(spelled.encode())}.__contains__)
    texts = {
        f"/x/{spelled}?y": "/x/[key]?y",
        f"{spelled}, {spelled}": "[key], [key]",
        f"/x/{quote(spelled, safe='')}": "/x/[key]",
        f"/x/{spelled}0": f"/x/{spelled}0",  # other text
        f"/{spelled[1:]}": f"/{spelled[1:]}",
        "/" * 1000 + spelled: "/" * 200 + "...",
        "too short": "too short",
    }
    KNOWING.add(store)
    try:
        assert {text: masked(text) for text in texts} == texts
    finally:
        KNOWING.discard(store)
    assert masked(f"/x/{spelled}") == f"/x/{spelled}"
