"""What people choose of a key, and the transaction that changes keys and records the event."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import token_bytes
from typing import Any, Final, Literal, TypedDict

import sqlalchemy as sa

from app.auth.access.policy import Policy, parse_restrictions
from app.auth.database.models import api_key_events, api_key_secrets, api_keys
from app.auth.errors import ForbiddenError, InvalidError
from app.auth.key import canonical, digest, id_of, is_scope, spelled_in
from app.auth.keys.views import AT_ONCE, LONGEST, KeyView, get_view, ids_of, select_views, shown

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


@dataclass(frozen=True)
class Change:
    """A write transaction. Changes run one after the other."""

    connection: sa.Connection
    now: datetime
    owner: str | None = None  # with one, only its keys can be changed

    def checked(self, fields: Fields, policies: Sequence[Policy]) -> dict[str, Any]:
        """The fields in the form in which they are stored. Raises InvalidError or ForbiddenError."""
        found: dict[str, Any] = {**fields}
        if "name" in fields:
            found["name"] = _visible(fields["name"], "A name")
        for name, what, longest in (("owner", "An owner", 100), ("note", "A note", 1000)):
            if found.get(name):
                found[name] = _visible(found[name], what, longest)
        if self.owner is not None and found.get("owner", self.owner) != self.owner:
            raise ForbiddenError(f"The keys that you manage belong to {self.owner}")
        if "scopes" in fields:
            found["scopes"] = _scopes(fields["scopes"])
        if "restrictions" in fields:
            try:
                found["restrictions"] = parse_restrictions(fields["restrictions"], policies)
            except ValueError as error:
                raise InvalidError(f"{error}") from None
        end = fields.get("expires_at")
        if end and not self.now < end < self.now + LONGEST:
            raise InvalidError("A key expires in the future, and within a hundred years")
        for name in ("name", "owner", "note", "scopes"):
            self._refuse_secrets(name, f"{found.get(name, '')}")
        return found

    def _refuse_secrets(self, field: str, text: str) -> None:
        for spelled in spelled_in(text):
            secret = canonical(spelled.encode())
            hashed = digest(secret.lower())
            id = ids_of(self.connection, [hashed]).get(hashed)
            # No service has issued most UUIDs, but a checksum is right only in a key.
            if id or secret != spelled.encode():
                raise InvalidError(
                    f"The {field} holds a secret of key {id or id_of(hashed)}; leave it out, since"
                    " lists and logs show it"
                )

    def view(self, id: str) -> KeyView:
        return get_view(self.connection, id, self.now, self.owner)

    def views(self, ids: Sequence[str]) -> list[KeyView]:
        found: list[KeyView] = []
        for first in range(0, len(ids), AT_ONCE):
            some = select_views(self.now).where(api_keys.c.id.in_(ids[first : first + AT_ONCE]))
            rows = self.connection.execute(some.order_by(api_keys.c.id))
            found.extend(shown(row) for row in rows)
        return found

    def add(self, id: str, hashed: bytes, fields: Mapping[str, Any], created_by: str) -> None:
        values = {"id": id, "created_by": created_by, "created_at": self.now, **_stored(fields)}
        self.connection.execute(sa.insert(api_keys).values(**values))
        self.issue(id, hashed)

    def update(self, id: str, fields: Mapping[str, Any]) -> None:
        statement = sa.update(api_keys).where(api_keys.c.id == id)
        self.connection.execute(statement.values(**_stored(fields)))

    def issue(self, id: str, hashed: bytes) -> None:
        values = {"digest": hashed, "key_id": id, "created_at": self.now}
        self.connection.execute(sa.insert(api_key_secrets).values(**values))

    def in_force(self, id: str) -> dict[Literal["old", "new"], bytes]:
        """The digests of an active key's secrets. Marks expired ones as ended."""
        secret = api_key_secrets.c
        self.end(secret.key_id == id, secret.expires_at <= self.now)
        query = sa.select(secret.digest, secret.expires_at)
        rows = self.connection.execute(query.where(secret.key_id == id, secret.ended_at.is_(None)))
        return {"old" if row.expires_at else "new": row.digest for row in rows}

    def end(self, *which: sa.ColumnElement[bool]) -> list[str]:
        """End secrets for good. Returns the ids of their keys."""
        secret = api_key_secrets.c
        statement = sa.update(api_key_secrets).where(secret.ended_at.is_(None), *which)
        ended = statement.values(ended_at=self.now).returning(secret.key_id)
        return sorted(self.connection.scalars(ended))

    def expire(self, hashed: bytes, at: datetime) -> None:
        """Let a secret expire no later than `at`. A time in the past ends it now."""
        secret = api_key_secrets.c
        if at <= self.now:
            self.end(secret.digest == hashed)
            return
        later = sa.or_(secret.expires_at.is_(None), secret.expires_at > at)
        statement = sa.update(api_key_secrets).where(secret.digest == hashed, later)
        self.connection.execute(statement.values(expires_at=at))

    def revoke(self, which: sa.ColumnElement[bool]) -> list[str]:
        """Revoke keys. Returns the ids of those that were not revoked before."""
        statement = sa.update(api_keys).where(api_keys.c.revoked_at.is_(None), which)
        revoked = statement.values(revoked_at=self.now).returning(api_keys.c.id)
        return sorted(self.connection.scalars(revoked))

    def record(self, action: str, actor: str, ids: Sequence[str], changes: Any = None) -> None:
        """Write one event per key. Servers learn of the change from these events."""
        if ids:
            event = {"at": self.now, "stamp": token_bytes(8), "action": action, "actor": actor}
            event["changes"] = changes
            latest = self.connection.scalar(sa.select(sa.func.max(api_key_events.c.id))) or 0
            rows = [
                {**event, "id": number, "key_id": id} for number, id in enumerate(ids, latest + 1)
            ]
            self.connection.execute(sa.insert(api_key_events), rows)


def _stored(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: " ".join(value) if name == "scopes" else value for name, value in fields.items()}
