"""The file of keys: one JSON object a line, with digests and never a secret."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from app.auth.access.policy import Policy
from app.auth.cli.output import note
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import LONG_TIMEOUT, transaction
from app.auth.database.models import (
    ENV_ID,
    api_key_events,
    api_key_secrets,
    api_key_usage,
    api_keys,
)
from app.auth.errors import InvalidError, SettingsError, StoreUnavailableError
from app.auth.key import digest, is_scope
from app.auth.keys.change import OWN, Change, Fields
from app.auth.keys.service import KeyService, open_service
from app.auth.keys.views import AT_ONCE, ids_of
from app.auth.usage import counts


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("no database has this time") from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("write it in visible characters")
    return text


Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Count = Annotated[int, Field(ge=0, le=10**12)]


class _Strict(BaseModel):
    """What nothing here knows may say that a key has ended, so it is refused."""

    model_config = ConfigDict(extra="forbid")


class Usage(_Strict):
    starts_at: Instant
    hours: Literal[1, 24]
    served: Count
    refused: Count
    limited: Count


class Secret(_Strict):
    digest: str = Field(pattern="^[0-9a-f]{64}$")  # SHA-256
    created_at: Instant
    expires_at: Instant | None = None
    ended_at: Instant | None = None
    last_used_at: Instant | None = None
    usage: list[Usage] = []


class Line(_Strict):
    """A key with all of its secrets, those that have ended among them."""

    id: str = Field(pattern="^[!-~]{1,20}$")
    name: str
    scopes: list[str] = []
    restrictions: dict[str, list[str]] = {}
    owner: str = ""
    note: str = ""
    created_by: Annotated[str, AfterValidator(_printable)] = Field(max_length=100)
    created_at: Instant
    expires_at: Instant | None = None
    paused_at: Instant | None = None
    revoked_at: Instant | None = None
    secrets: list[Secret] = Field(min_length=1)


class Imported(BaseModel):
    imported: int
    of_them_ended: int
    here_before: int  # they stay as they are


class ImportedKeys:
    """For `keys scan`: keys that may be spelled in any way. No database has none."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings

    @cached_property
    def _digests(self) -> frozenset[bytes]:
        event, secret = api_key_events.c, api_key_secrets.c
        ids = sa.select(event.key_id).where(event.action == "imported")
        query = sa.select(secret.digest).where(secret.key_id.in_(ids))
        try:
            with transaction(open_service(self._settings).engine) as connection:
                return frozenset(connection.scalars(query))
        except SettingsError:  # there is none
            return frozenset()
        except StoreUnavailableError as error:
            note(f"Not every key is known here: {error}")
            return frozenset()

    def may_exist(self, digest: bytes) -> bool:
        return digest in self._digests


def export(engine: sa.Engine, with_usage: bool) -> Iterator[Line]:
    """All keys by id, as they are at one moment."""
    with transaction(engine, timeout=LONG_TIMEOUT) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        of, by = api_key_secrets.c.key_id, api_key_usage.c.digest
        ids = connection.scalars(sa.select(api_keys.c.id).order_by(api_keys.c.id)).all()
        for some in batches(ids):
            query = sa.select(api_keys).where(api_keys.c.id.in_(some)).order_by(api_keys.c.id)
            keys = [row._asdict() for row in connection.execute(query)]
            secrets = _by(connection, api_key_secrets, of, some)
            every = [row["digest"] for rows in secrets.values() for row in rows]
            usage = _by(connection, api_key_usage, by, every) if with_usage else {}
            for key in keys:
                key["scopes"] = key["scopes"].split()
                key["secrets"] = []
                for row in secrets[key["id"]]:
                    used = [_of(Usage, each) for each in usage.get(row["digest"], ())]
                    secret = {**row, "digest": row["digest"].hex(), "usage": used}
                    key["secrets"].append(_of(Secret, secret))
                yield Line.model_validate(key)


def _of(model: type[BaseModel], row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in model.model_fields}


def _by(
    connection: sa.Connection, table: sa.Table, column: sa.ColumnElement[Any], values: Sequence[Any]
) -> dict[Any, list[dict[str, Any]]]:
    """The rows with these values in the column, by value."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for some in batches(values):
        query = sa.select(table).where(column.in_(some)).order_by(*table.primary_key)
        for row in connection.execute(query).mappings():
            found.setdefault(row[column.name], []).append({**row})
    return found


def batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE))


def parse(text: str) -> Iterator[tuple[int, Line]]:
    """The keys of such a file, each with the number of its line. Raises InvalidError."""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if line.strip():
            try:
                yield number, Line.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise InvalidError(
                    f"Line {number}: {where}: {first['msg']}; other systems' files need --format"
                ) from None


def bring_in(
    service: KeyService,
    lines: Sequence[tuple[int, Line]],
    *,
    dry_run: bool,
    actor: str,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Imported:
    """Add the keys that are not here, all or none. Raises InvalidError."""
    with transaction(service.engine, write=True, timeout=LONG_TIMEOUT) as connection:
        change = Change(connection, clock.now(connection))
        new = [*_new(connection, lines)]
        for number, line in new:
            try:
                _check(line, change, service.policies)
            except InvalidError as error:
                raise InvalidError(f"Line {number}: {error}") from None
        keys = [line for _, line in new]
        ends = ((key.revoked_at, key.expires_at) for key in keys)
        ended = sum(any(at and at <= change.now for at in both) for both in ends)
        for some in progress([] if dry_run else [*batches(keys)]):
            _insert(change, some, actor)
    return Imported(imported=len(keys), of_them_ended=ended, here_before=len(lines) - len(keys))


def _new(
    connection: sa.Connection, lines: Sequence[tuple[int, Line]]
) -> Iterator[tuple[int, Line]]:
    """Those that the database does not have, under whichever id."""
    for _, line in lines:
        if line.id.startswith(ENV_ID):  # whose keys are valid only where API_KEYS names them
            line.id = f"{int(line.created_at.timestamp() * 1000):011x}{line.secrets[0].digest[:6]}"
    digests = [bytes.fromhex(secret.digest) for _, line in lines for secret in line.secrets]
    known: dict[bytes, str] = {}
    for some in batches(digests):
        known |= ids_of(connection, some)
    taken = _by(connection, api_keys, api_keys.c.id, [line.id for _, line in lines])
    first: dict[str, int] = {}
    for number, line in lines:
        if any(bytes.fromhex(secret.digest) in known for secret in line.secrets):
            continue
        if line.id in taken:
            raise InvalidError(f"Line {number}: another key here has the id {line.id}")
        for name in (line.id, *(secret.digest for secret in line.secrets)):
            if first.setdefault(name, number) != number:
                raise InvalidError(f"Line {number}: the key of line {first[name]} again; remove it")
        yield number, line


def _check(key: Line, change: Change, policies: Sequence[Policy]) -> None:
    if not all(map(is_scope, key.scopes)):  # it may be a key, so it is not shown
        raise InvalidError("it has other scopes than such as reports:read or reports:*")
    shown = {digest(text.encode()).hex() for text in (key.name, key.owner, key.note, *key.scopes)}
    if not shown.isdisjoint(secret.digest for secret in key.secrets):
        raise InvalidError("a column that lists and logs show holds the key; leave it out")
    fields = Fields(name=key.name, scopes=key.scopes, owner=key.owner, note=key.note)
    fields["restrictions"] = key.restrictions
    if not key.expires_at or key.expires_at > change.now:
        fields["expires_at"] = key.expires_at
    found = change.checked(fields, policies)
    key.name, key.owner, key.note = found["name"], found["owner"], found["note"]
    key.scopes, key.restrictions = found["scopes"], found["restrictions"]
    if OWN in key.scopes and not key.owner:
        raise InvalidError(f"a key with {OWN} needs an owner")
    places = [secret.expires_at is None for secret in key.secrets if not secret.ended_at]
    if len(places) != len({*places}):
        raise InvalidError("a key has one current secret, and one old one in a rotation")


def _insert(change: Change, keys: Sequence[Line], actor: str) -> None:
    rows: dict[sa.Table, list[dict[str, Any]]] = {api_keys: [], api_key_secrets: []}
    usage: list[dict[str, Any]] = []
    more: list[str] = []
    for key in keys:
        fields = key.model_dump(exclude={"secrets"})
        rows[api_keys].append({**fields, "scopes": " ".join(key.scopes)})
        for secret in key.secrets:
            hashed = {"digest": bytes.fromhex(secret.digest)}
            fields = secret.model_dump(exclude={"usage"})
            rows[api_key_secrets].append({**fields, **hashed, "key_id": key.id})
            usage += [{**period.model_dump(), **hashed} for period in secret.usage]
        more += [key.id] * (len(key.secrets) - 1)
    for table, values in rows.items():
        change.connection.execute(sa.insert(table), values)
    for some in batches(usage):
        counts.add(change.connection, api_key_usage, some)
    # The servers count these events: each brings one secret.
    change.record("imported", actor, [key.id for key in keys])
    change.record("imported secret", actor, more)
