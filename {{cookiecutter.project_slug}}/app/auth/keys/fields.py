"""The fields of a key that people choose, and what they may hold."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict

from app.auth.access.policy import Policy, parse_restrictions
from app.auth.errors import InvalidError
from app.auth.key import canonical, digest, id_of, is_scope, spelled_in
from app.auth.keys.views import LONGEST

MANAGE: Final = "keys:manage"  # the scope that at least one key must keep
OWN: Final = "keys:own"  # the scope to manage the keys of the key's own owner

# Characters that are printable in Unicode but invisible.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


class Fields(TypedDict, total=False):
    """What a change sets. What is absent stays."""

    name: str
    scopes: Iterable[str]
    restrictions: Mapping[str, Sequence[str]]  # by the name of the policy that enforces each
    expires_at: datetime | None
    owner: str  # "" for none
    note: str


def checked(
    fields: Fields,
    now: datetime,
    policies: Sequence[Policy],
    ids_of: Callable[[Sequence[bytes]], Mapping[bytes, str]],
) -> dict[str, Any]:
    """The fields in the form in which they are stored. Raises InvalidError.

    `ids_of` returns the key ids of the digests that the database has.
    """
    found: dict[str, Any] = {**fields}
    if "name" in fields:
        found["name"] = _visible(fields["name"], "A name")
    for name, what, longest in (("owner", "An owner", 100), ("note", "A note", 1000)):
        if found.get(name):
            found[name] = _visible(found[name], what, longest)
    if "scopes" in fields:
        found["scopes"] = _scopes(fields["scopes"])
    if "restrictions" in fields:
        try:
            found["restrictions"] = parse_restrictions(fields["restrictions"], policies)
        except ValueError as error:
            raise InvalidError(f"{error}") from None
    end = fields.get("expires_at")
    if end and not now < end < now + LONGEST:
        raise InvalidError("A key expires in the future, and within a hundred years")
    for field in ("name", "owner", "note", "scopes"):
        for spelled in spelled_in(f"{found.get(field, '')}"):
            secret = canonical(spelled.encode())
            hashed = digest(secret.lower())
            # No service has issued most UUIDs, but a checksum is right only in a key.
            id = ids_of([hashed]).get(hashed) or (secret != spelled.encode() and id_of(hashed))
            if id:
                raise InvalidError(
                    f"The {field} holds a secret of key {id}; leave it out, since lists and logs"
                    " show it"
                )
    return found


def _visible(text: str, what: str, longest: int = 100) -> str:
    text = text.strip()
    visible = any(unicodedata.category(character)[0] in "LNPS" for character in text)
    if not (visible and text.isprintable() and len(text) <= longest and _BLANK.isdisjoint(text)):
        raise InvalidError(f"{what} has 1 to {longest} characters, all of them visible or spaces")
    return text


def _scopes(scopes: Iterable[str]) -> list[str]:
    scopes = sorted(set(scopes))
    for scope in scopes:
        if not is_scope(scope):
            raise InvalidError(
                f"{scope!r} is not a scope; write one like reports:read or reports:*"
            )
    return scopes
