"""The rule of access: exactly one key, spelled as it was issued, and one answer to all others."""

import logging

import pytest

from app.auth import GuardedAPI
from app.auth.key import digest, id_of, new_secret, parse_secrets, with_prefix
from app.constants import MISSING_KEY_STATUS
from tests.callers import PROBE, Keys, answer_of, status_of, with_probe

EXAMPLE = "1c9a5d3e-70b2-4f68-8e4d-a1b2c3d4e5f6"  # not-a-key
PREFIXED = "acme_0ryKRmPxSsHwqf3ULKlpCQ1lXPnZ"  # not-a-key
SAME = [(b"x-request-id", b"same")]  # answers are compared
HERE, THERE = ("192.0.2.7", 1), ("192.0.2.8", 1)


@pytest.fixture
def api(api: GuardedAPI) -> GuardedAPI:
    return with_probe(api)


async def test_a_key_counts_in_either_spelling_and_in_no_other(api: GuardedAPI, keys: Keys) -> None:
    secret, prefixed = (key := keys.issue()).decode(), with_prefix(key.decode(), "acme")
    assert await status_of(api, key) == await status_of(api, prefixed.encode()) == 200
    spellings = [secret.upper(), secret.replace("-", ""), "{" + secret + "}", f"Bearer {secret}"]
    spellings += [secret[:-1], f"{secret}0", f"{secret}, {secret}", f"{secret} "]
    spellings += [f"b{prefixed}", prefixed[:-1] + "?", prefixed.upper()]
    garbled = [b"", b" ", b"-" * 36, b"\xff" * 36, b"a" * 60_000, PREFIXED[:-1].encode() + b"\xb2"]
    for each in [*map(str.encode, spellings), *garbled]:
        assert await status_of(api, each) == MISSING_KEY_STATUS, each


def test_what_is_no_key_is_named_by_its_place_in_a_list_without_its_text() -> None:
    one, other = new_secret(), new_secret()
    assert parse_secrets(f"{one}, {with_prefix(other, 'acme')} ") == [one, other]
    made_up = "12341234-1234-4234-8234-123412341234"  # not-a-key
    for entry in ("swordfish", "", EXAMPLE.upper(), EXAMPLE.replace("-4", "-1"), made_up):
        with pytest.raises(ValueError, match=r"^entry 2 of 3 is not a random lower-case UUID4$"):
            parse_secrets(f"{one},{entry},{other}")


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
        "more than one key.": [valid, keys.issue()],
    }
    (answer,) = {await answer_of(api, *sent, headers=SAME) for sent in callers.values()}
    assert answer.status == MISSING_KEY_STATUS
    assert answer.header("www-authenticate") == {401: "APIKey"}.get(MISSING_KEY_STATUS)
    # Only the log tells them apart.
    refusals = [each for each in caplog.messages if each.startswith("Refused")]
    assert refusals == [f"Refused http {PROBE!r}: {reason.rstrip('.')}." for reason in callers]
