"""The rule of access: exactly one key, spelled as it was issued; who guesses is slowed."""

import logging
import sys
from collections.abc import Callable
from unittest.mock import patch

import pytest

from app.auth import GuardedAPI
from app.auth.errors import StoreUnavailableError
from app.auth.key import canonical, digest, id_of, new_secret, parse_secrets, with_prefix
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import PROBE, Clock, Keys, answer_of, ask, status_of, with_probe

EXAMPLE = "1c9a5d3e-70b2-4f68-8e4d-a1b2c3d4e5f6"  # not-a-key
PREFIXED = "acme_0ryKRmPxSsHwqf3ULKlpCQ1lXPnZ"  # not-a-key
SAME = [(b"x-request-id", b"same")]  # answers are compared

SPELLINGS: dict[str, Callable[[str], str]] = {
    "in upper case": str.upper,
    "with a wrong checksum": lambda secret: with_prefix(secret, "acme")[:-1] + "?",
    "with another prefix": lambda secret: f"b{with_prefix(secret, 'acme')}",
    "in braces": lambda secret: "{" + secret + "}",
    "without hyphens": lambda secret: secret.replace("-", ""),
    "as a bearer": lambda secret: f"Bearer {secret}",
    "cut short": lambda secret: secret[:-1],
    "with more behind": lambda secret: f"{secret}0",
    "twice in one header": lambda secret: f"{secret}, {secret}",
}


@pytest.fixture
def api(api: GuardedAPI) -> GuardedAPI:
    return with_probe(api)


async def test_a_key_counts_in_either_spelling_and_in_no_other(api: GuardedAPI, keys: Keys) -> None:
    secret = keys.issue()
    assert await status_of(api, secret) == 200
    assert await status_of(api, with_prefix(secret.decode(), "acme").encode()) == 200
    for spelling, spell in SPELLINGS.items():
        spelled = spell(secret.decode()).encode()
        assert await status_of(api, spelled) == MISSING_KEY_STATUS, spelling


def test_a_spelling_with_a_prefix_stays_what_it_was_when_it_was_handed_out() -> None:
    assert with_prefix(EXAMPLE, "acme") == PREFIXED
    assert canonical(PREFIXED.encode()) == EXAMPLE.encode()
    for place in range(len(PREFIXED)):  # a mistake in copying gives no other key
        changed = (
            f"{PREFIXED[:place]}{'b' if PREFIXED[place] != 'b' else 'c'}{PREFIXED[place + 1 :]}"
        )
        assert canonical(changed.encode()) == changed.encode()


@pytest.mark.parametrize(
    "entry",
    [
        *("swordfish", "", "schl\u00fcssel", EXAMPLE.upper(), PREFIXED[:-1]),
        "00000000-0000-4000-8000-000000000000",  # not-a-key
        EXAMPLE.replace("-4", "-1"),  # another version
    ],
)
def test_what_is_no_key_is_named_by_its_place_in_a_list_without_its_text(entry: str) -> None:
    one, other = new_secret(), new_secret()
    assert parse_secrets(f"{one}, {with_prefix(other, 'acme')} ") == [one, other]
    with pytest.raises(ValueError, match="entry 2 of 3") as error:
        parse_secrets(f"{one},{entry},{other}")
    assert f"{error.value}" == "entry 2 of 3 is not a random lower-case UUID4"


async def test_refusals_look_alike_whatever_the_reason(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    valid, unknown = keys.issue(), new_secret().encode()
    callers: dict[str, list[bytes]] = {
        "no key": [],
        f"unknown key ({id_of(digest(unknown))})": [unknown],
        "not a key": [b"\xe9\x00"],
        "more than one key": [valid, valid],
    }
    answers = {await answer_of(api, *sent, headers=SAME) for sent in callers.values()}
    answers.add(await answer_of(api, valid, keys.issue(), headers=SAME))
    (answer,) = answers
    assert answer.status == MISSING_KEY_STATUS
    assert answer.header("www-authenticate") == {401: "APIKey"}.get(MISSING_KEY_STATUS)
    # Only the log tells them apart.
    refusals = [each for each in caplog.messages if each.startswith("Refused")]
    for message, reason in zip(refusals, callers, strict=False):
        assert message == f"Refused http {PROBE!r}: {reason}."


async def test_no_bytes_in_the_header_cause_an_error(api: GuardedAPI) -> None:
    garbled = [b"", b" ", b"-" * 36, b"\xff" * 36, b"a" * 60_000, PREFIXED[:-1].encode() + b"\xb2"]
    for each in garbled:
        assert await status_of(api, each) == await status_of(api, each, each) == MISSING_KEY_STATUS


async def test_a_key_in_a_trailer_is_no_key(
    api: GuardedAPI, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httptools", sys)  # it puts trailers behind the headers
    headers = [(b"transfer-encoding", b"chunked"), (API_KEY_HEADER.lower().encode(), keys.issue())]
    assert await status_of(api, headers=headers) == MISSING_KEY_STATUS
    assert await status_of(api, keys.issue(), headers=headers[:1]) == 200


async def test_known_and_unknown_keys_cost_the_same_work(api: GuardedAPI, keys: Keys) -> None:
    for secret in (keys.issue(), new_secret().encode()):
        keys.asked = keys.found = 0
        with patch("app.auth.access.rule.digest", side_effect=digest) as digests:
            await status_of(api, secret)
        assert (digests.call_count, keys.asked, keys.found) == (1, 1, 1)


async def test_where_the_keys_are_out_of_reach_callers_are_told_to_try_again(
    api: GuardedAPI, keys: Keys
) -> None:
    with patch.object(keys, "find", side_effect=StoreUnavailableError("no route to host")):
        answer = await answer_of(api, keys.issue())
    assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert b"no route" not in answer.body


# Who guesses.

HERE, THERE = ("192.0.2.7", 1), ("192.0.2.8", 1)


async def guess(api: GuardedAPI, times: int, client: tuple[str, int] = HERE) -> list[int]:
    return [await status_of(api, new_secret().encode(), client=client) for _ in range(times)]


async def test_who_guesses_is_slowed_and_valid_keys_of_that_address_get_in(
    api: GuardedAPI, keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.access.throttle.BURST", 5)
    valid = keys.issue()
    assert await guess(api, 6) == [MISSING_KEY_STATUS] * 6
    found = keys.found
    assert await guess(api, 3) == [429] * 3
    assert keys.found == found  # they cost no look-up
    assert await status_of(api, valid, client=HERE) == 200
    assert await guess(api, 1, THERE) == [MISSING_KEY_STATUS]
    (answer,) = {
        await answer_of(api, sent, client=HERE, headers=SAME) for sent in (b"x", EXAMPLE.encode())
    }
    assert answer.header("retry-after") == "1"
    for _ in range(20):  # who goes on is slowed all the while
        clock.pass_time(0.5)
        assert await guess(api, 1) == [429]
    clock.pass_time(7)  # and forgotten as soon as anybody else
    assert await guess(api, 1) == [MISSING_KEY_STATUS]


async def test_who_sends_no_key_does_not_guess(
    api: GuardedAPI, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.access.throttle.BURST", 5)
    for _ in range(10):
        assert await status_of(api, client=HERE) == MISSING_KEY_STATUS
    await guess(api, 10, ("2001:db8::1", 1))
    assert await guess(api, 1, ("2001:db8::2", 1)) == [429]  # of the same network
    assert await ask(api, new_secret().encode(), client=HERE) is not None
    assert await guess(api, 1) == [MISSING_KEY_STATUS]
