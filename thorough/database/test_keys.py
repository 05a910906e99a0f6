"""How a key is spelled, what its scopes cover, and what it may be called."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock
from zlib import crc32

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.auth.errors import InvalidError
from app.auth.key import (
    Key,
    _to_base62,
    canonical,
    digest,
    id_of,
    is_canonical,
    new_secret,
    parse_secrets,
    with_prefix,
)
from app.auth.keys.change import Change, Fields

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECRETS = st.uuids(version=4).map(str)
PREFIXES = st.from_regex("[a-z][a-z0-9]{0,15}", fullmatch=True)
EXAMPLE = "1c9a5d3e-70b2-4f68-8e4d-a1b2c3d4e5f6"  # not-a-key
PREFIXED = "acme_0ryKRmPxSsHwqf3ULKlpCQ1lXPnZ"  # not-a-key


@given(SECRETS, PREFIXES)
def test_both_spellings_are_the_same_secret(secret: str, prefix: str) -> None:
    prefixed = with_prefix(secret, prefix)
    assert re.fullmatch(prefix + "_[0-9A-Za-z]{22}[0-9A-Za-z]{6}", prefixed)
    assert canonical(prefixed.encode()) == canonical(secret.encode()) == secret.encode()
    assert with_prefix(secret, "") == secret


def test_a_spelling_stays_what_it_was_when_it_was_handed_out() -> None:
    assert with_prefix(EXAMPLE, "acme") == PREFIXED
    assert canonical(PREFIXED.encode()) == EXAMPLE.encode()


@given(SECRETS, PREFIXES, st.data())
def test_a_single_changed_character_never_gives_another_secret(
    secret: str, prefix: str, data: st.DataObject
) -> None:
    spelled = with_prefix(secret, prefix).encode()
    place = data.draw(st.integers(0, len(spelled)))
    instead = data.draw(st.sampled_from([b"", *(bytes([byte]) for byte in b"09AZaz_- \n\x00\xff")]))
    changed = spelled[:place] + instead + spelled[place + 1 :]
    assume(changed != spelled)
    assert canonical(changed) == changed


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_left_as_they_are(spelled: bytes) -> None:
    assert canonical(spelled) == spelled


@pytest.mark.parametrize("number", [1 << 128, 62**22 - 1])
def test_a_body_of_more_than_128_bits_is_left_as_it_is(number: int) -> None:
    text = f"acme_{_to_base62(number, 22)}"
    spelled = (text + _to_base62(crc32(text.encode()), 6)).encode()
    assert canonical(spelled) == spelled


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.upper(),
        EXAMPLE.replace("-", ""),
        "{" + EXAMPLE + "}",
        f"{EXAMPLE}\n",
        EXAMPLE.replace("-4", "-1"),  # another version
        EXAMPLE.replace("-8e", "-7e"),  # another variant
        "00000000-0000-4000-8000-000000000000",  # not-a-key
        "12341234-1234-4234-8234-123412341234",  # not-a-key
        "",
    ],
)
def test_what_is_no_random_lower_case_uuid4_is_no_secret(text: str) -> None:
    assert not is_canonical(text)


def test_a_list_holds_secrets_in_both_spellings() -> None:
    one, other = new_secret(), new_secret()
    assert is_canonical(one)
    assert parse_secrets(f"{one}, {with_prefix(other, 'acme')} ") == [one, other]
    assert parse_secrets("") == parse_secrets(" \t") == []


@pytest.mark.parametrize(
    "entry",
    [
        *("swordfish", "", EXAMPLE.upper(), with_prefix(EXAMPLE, "acme")[:-1]),
        with_prefix("00000000-0000-4000-8000-000000000000", "acme"),  # not-a-key
        *("schl\u00fcssel", "\udcff"),
    ],
)
def test_a_bad_entry_is_named_by_its_place_without_its_text(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 2 of 3") as error:
        parse_secrets(f"{new_secret()},{entry},{new_secret()}")
    assert str(error.value) == "entry 2 of 3 is not a random lower-case UUID4"


def stored(**fields: Any) -> Any:
    """What becomes of a field; no key is known."""
    [value] = Change(Mock(), NOW).checked(Fields(**fields), ()).values()
    return value


def test_scopes_are_kept_once_each_and_in_order() -> None:
    scopes = ["reports:read:own", "*", "a.b_c-1", "reports:*", "reports", "*"]
    assert stored(scopes=scopes) == ["*", "a.b_c-1", "reports", "reports:*", "reports:read:own"]
    assert stored(scopes=[]) == []


@pytest.mark.parametrize(
    "scope",
    [
        *("", " ", "a b", "a,b", "Reports", "reports:", ":read", "a::b", "*:read", "a:*:b", "a*"),
        *("**", "a\n", "\u00e9", "\x00", "\ud800", "x" * 101),
    ],
)
def test_what_is_no_scope_is_named_in_one_line_with_the_fix(scope: str) -> None:
    with pytest.raises(InvalidError, match=r"write one like reports:read or reports:\*") as error:
        stored(scopes=["reports:read", scope])
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("held", "asked", "covered"),
    [
        ("reports:read", "reports:read", True),
        ("reports:read", "reports:read:own", False),
        ("reports:read", "reports", False),
        ("reports:read", "reports:rea", False),
        ("reports:*", "reports:read", True),
        ("reports:*", "reports:read:own", True),
        ("reports:*", "reports:*", True),
        ("reports:*", "reports", False),
        ("reports:*", "reportsx:read", False),
        ("reports:*", "*", False),
        ("reports:read:*", "reports:read", False),
        ("reports:read:*", "reports:*", False),
        ("*", "reports:read", True),
        ("*", "reports:*", True),
        ("*", "*", True),
    ],
)
def test_a_scope_covers_itself_and_a_wildcard_what_is_below_it(
    held: str, asked: str, covered: bool
) -> None:
    assert Key("", "", frozenset([held, "other"])).covers(asked) == covered
    assert not Key("", "", frozenset()).covers(asked)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "billing",
            "Ren\u00e9",
            "e\u0301",
            "\u8acb\u6c42",
            "\u0645\u062d\u0627\u0633\u0628\u0629",
            "a  b",
            "7",
            "?",
        ),
        *("\U0001f511", "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f44d\U0001f3fd", "x" * 100),
    ],
)
def test_a_name_is_kept_as_people_see_it(name: str) -> None:
    assert stored(name=name) == stored(name=f" {name} ") == name
    assert stored(note=name) == stored(owner=name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "   ", "\t", "x" * 101, "a\x00b", "a\nb", "\x1b[31m", "\udcff"),
        *("a\u202eb", "a\u200bb", "a\u200db", "a\u2060b", "\ufeffa", "a\u00adb", "a\U000e0041b"),
        *("a\u00a0b", "a\u2003b", "a\u3000b"),  # spaces, but another name than with the usual one
        *("\u3164", "a\u3164b", "\uffa0", "\u115f", "\u1160", "\u2800", "a\u2800b", "a\u034fb"),
        *("\ufe0f", "\u0301", "\u17b4"),  # nothing to see without a letter before it
    ],
)
def test_a_name_that_nobody_could_tell_from_another_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="A name has 1 to 100 characters, all of them visible"):
        stored(name=name)


def test_a_note_is_longer_and_a_text_is_cleared_by_nothing() -> None:
    assert stored(note="x" * 1000) == "x" * 1000
    assert stored(note="") == stored(owner="") == ""
    for name, text in (("note", "x" * 1001), ("owner", "x" * 101), ("owner", " "), ("note", "\t")):
        with pytest.raises(InvalidError, match=rf"{name} has 1 to 1?0+ characters, all of them"):
            stored(**{name: text})


WRITTEN = {
    "alone": "{}",
    "in a sentence": "the key of Ann is {}, do not lose it",
    "with more around it": "0{}0",
    "in a list": "a, {}; b",
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("field", ["name", "owner", "note", "scopes"])
def test_a_text_that_lists_and_logs_show_holds_no_secret(
    field: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def known(_: object, digests: Sequence[bytes]) -> dict[bytes, str]:
        asked.extend(digests)
        return dict.fromkeys({digest(EXAMPLE.encode())} & {*digests}, "its id")

    monkeypatch.setattr("app.auth.keys.change.ids_of", known)

    def check(secret: str) -> None:
        text = WRITTEN[way].format(secret)
        given: Any = {field: [secret] if field == "scopes" else text}
        Change(Mock(), NOW).checked(Fields(**given), ())

    spellings = [EXAMPLE] if field == "scopes" else [EXAMPLE, EXAMPLE.upper(), PREFIXED]
    for secret in spellings:
        with pytest.raises(InvalidError, match=f"The {field} holds a secret of key its id; leave"):
            check(secret)
    assert {*asked} == {digest(EXAMPLE.encode())}
    # A UUID may be the name of a customer; a checksum is that of a key, wherever it was issued.
    check(new_secret())
    check(PREFIXED[:-1] + "a" if field != "scopes" else "a")
    if field != "scopes":
        other = new_secret()
        with pytest.raises(InvalidError, match=f"key {id_of(digest(other.encode()))}; leave it"):
            check(with_prefix(other, "acme"))
