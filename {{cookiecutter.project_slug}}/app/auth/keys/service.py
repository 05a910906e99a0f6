"""The key service: it creates, changes, rotates and ends keys.

Each change and its event are written in one transaction.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Literal

import sqlalchemy as sa

from app.auth.access.policy import Policy
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import LONG_TIMEOUT, check_schema, transaction
from app.auth.database.migrate import upgrade
from app.auth.database.models import ENV_ID, api_key_secrets, api_keys
from app.auth.errors import ConflictError, InvalidError, SettingsError
from app.auth.key import digest, new_secret, with_prefix
from app.auth.keys.change import MANAGE, OWN, Change, Fields
from app.auth.keys.views import (
    LONGEST,
    OVERLAP,
    IssuedKey,
    KeyReader,
    KeyView,
    flat,
    ids_of,
    is_active,
    is_of,
)

Show = Callable[[IssuedKey], None]
"""Shows a new secret before the change is committed. If it raises, nothing changes."""


Authorize = Callable[[Change, KeyView], None]
"""Raises ForbiddenError if the caller may not make this change to this key."""


Edit = Callable[[KeyView], Fields]
"""Returns what an update sets, for the key as it is inside the transaction."""


def anybody(_: Change, __: KeyView) -> None:
    """Allow every change, for callers with access to the database."""


class KeyService(KeyReader):
    """Changes the keys as well. `authorize` runs inside the transaction. Pass it for callers
    without access to the database.
    """

    def __init__(self, settings: AuthSettings, policies: Sequence[Policy] = ()) -> None:
        super().__init__(settings, policies)
        self._prefix = settings.key_prefix

    def import_env_keys(self) -> None:
        """Add the keys of API_KEYS to the database. A key revoked there stays revoked."""
        listed = [*self._env_keys.values()]
        if len(self.ids_of(listed)) == len(listed):
            return
        with self._change() as change:
            known = ids_of(change.connection, listed)  # again: another server may have added them
            ids = sorted(id for id, hashed in self._env_keys.items() if hashed not in known)
            for id in ids:
                fields = Fields(name="API_KEYS", scopes="*")
                change.add(id, self._env_keys[id], fields, "API_KEYS")
            change.record("created", "API_KEYS", ids)

    def create(
        self,
        name: str,
        scopes: Iterable[str] = (),
        *,
        restrictions: Mapping[str, Sequence[str]] | None = None,
        expires_at: datetime | None = None,
        owner: str = "",
        note: str = "",
        actor: str,
        authorize: Authorize = anybody,
        show: Show | None = None,
    ) -> IssuedKey:
        """Create a key. Raises InvalidError, or the error of `authorize`."""
        secret, bounds = new_secret(), restrictions or {}
        fields = Fields(name=name, scopes=scopes, restrictions=bounds, expires_at=expires_at)
        fields |= {"owner": owner or self.owner or "", "note": note}
        with self._change() as change:
            # The milliseconds come first, so that ids sort by age.
            id = f"{int(change.now.timestamp() * 1000):011x}{token_hex(3)}"
            change.add(id, digest(secret.encode()), change.checked(fields, self.policies), actor)
            key = _with_owner(change.view(id))
            authorize(change, key)
            change.record("created", actor, [id])
            return self._issued(key, secret, show)

    def update(
        self,
        id: str,
        edit: Edit,
        *,
        force: bool = False,
        actor: str,
        authorize: Authorize = anybody,
    ) -> KeyView:
        """Change the fields that `edit` returns. `authorize` sees the key before and after.

        Raises InvalidError, NotFoundError, ForbiddenError, or ConflictError if the key has ended or
        no manager would be left.
        """
        with self._change() as change:
            key = self._not_ended(change, id, authorize)
            managers = self._managers(change)
            if fields := change.checked(edit(key), self.policies):
                change.update(id, fields)
            if (updated := _with_owner(change.view(id))) != key:
                self._keep_a_manager(change, managers, force)
                authorize(change, updated)
                before, after = (flat(self._filled(view)) for view in (key, updated))
                differ = [name for name in sorted(after) if before.get(name) != after[name]]
                changes = {name: [before.get(name), after[name]] for name in differ}
                change.record("updated", actor, [id], changes)
            return self._filled(updated)

    def pause(
        self, id: str, *, force: bool = False, actor: str, authorize: Authorize = anybody
    ) -> KeyView:
        """Refuse a key until `resume`. Its end comes all the same.

        Raises NotFoundError, ForbiddenError, or ConflictError as `update` does.
        """
        with self._change() as change:
            key, managers = self._not_ended(change, id, authorize), self._managers(change)
            if key.status == "active":
                change.update(id, {"paused_at": change.now})
                self._keep_a_manager(change, managers, force)
                change.record("paused", actor, [id])
            return self._filled(change.view(id))

    def resume(self, id: str, *, actor: str, authorize: Authorize = anybody) -> KeyView:
        """Accept a paused key again. Raises NotFoundError, ForbiddenError or ConflictError."""
        with self._change() as change:
            if self._not_ended(change, id, authorize).status == "paused":
                change.update(id, {"paused_at": None})
                change.record("resumed", actor, [id])
            return self._filled(change.view(id))

    def rotate(
        self,
        id: str,
        *,
        overlap: timedelta = OVERLAP,
        drop: Literal["old", "new"] | None = None,
        actor: str,
        authorize: Authorize = anybody,
        show: Show | None = None,
    ) -> IssuedKey:
        """Give a key a new secret. The current one stays valid for the overlap, but no longer than
        before. If two are valid already, `drop` says which one ends now.

        Raises InvalidError, NotFoundError, ForbiddenError or ConflictError.
        """
        if not timedelta() <= overlap <= LONGEST:
            raise InvalidError("An overlap is between nothing and a hundred years")
        secret = new_secret()
        with self._change() as change:
            key = self._active(change, id, authorize)
            if id.startswith(ENV_ID):
                instead = "create another key, then revoke this one"
                raise ConflictError(f"{id} lives in API_KEYS; {instead}")
            in_force = change.in_force(id)
            if len(in_force) == 2:
                if not drop:
                    raise ConflictError(
                        f"Two secrets of {id} are in force until"
                        f" {key.old_key_expires_at:%Y-%m-%d %H:%M} UTC; drop the old one if nobody"
                        " needs it any more, the new one if it got lost"
                    )
                change.end(api_key_secrets.c.digest == in_force.pop(drop))
            ends_at = change.now + overlap
            for left in in_force.values():
                change.expire(left, min(ends_at, key.expires_at or ends_at))
            change.issue(id, digest(secret.encode()))
            change.record("rotated", actor, [id])
            return self._issued(change.view(id), secret, show)

    def drop(
        self,
        id: str,
        which: Literal["old", "new"],
        *,
        actor: str,
        authorize: Authorize = anybody,
    ) -> KeyView:
        """End one of two secrets without a new one. An old one that remains still expires.

        Raises NotFoundError, ForbiddenError or ConflictError.
        """
        with self._change() as change:
            self._active(change, id, authorize)
            in_force = change.in_force(id)
            if len(in_force) < 2:
                raise ConflictError(f"{id} has no two secrets in force; to end the key, revoke it")
            change.end(api_key_secrets.c.digest == in_force[which])
            change.record(f"dropped {which}", actor, [id])
            return self._filled(change.view(id))

    def revoke(
        self, id: str, *, force: bool = False, actor: str, authorize: Authorize = anybody
    ) -> KeyView:
        """End a key for good.

        Raises NotFoundError, ForbiddenError, or ConflictError if no manager would be left.
        """
        with self._change() as change:
            authorize(change, change.view(id))
            self._revoke(change, api_keys.c.id == id, force, actor)
            return self._filled(change.view(id))

    def revoke_issued_before(
        self, moment: datetime, *, force: bool = False, dry_run: bool = False, actor: str
    ) -> list[KeyView]:
        """End every secret issued before `moment`, and revoke each key without a newer one.

        Returns the keys that have lost a secret. A dry run changes nothing. Raises ConflictError if
        no manager would be left.
        """
        secret = api_key_secrets.c
        in_force = sa.select(secret.key_id).where(secret.ended_at.is_(None))
        renewed = in_force.where(secret.created_at >= moment)
        outdated = in_force.where(secret.created_at < moment)
        alive = sa.select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None), is_of(self.owner))
        which = api_keys.c.id.in_(outdated) & api_keys.c.id.not_in(renewed) & is_of(self.owner)
        with self._change(timeout=LONG_TIMEOUT) as change:
            revoked = self._revoke(change, which, force, actor)
            rotated = change.end(secret.created_at < moment, secret.key_id.in_(alive))
            change.record("dropped old", actor, rotated)
            ended = [self._filled(view) for view in change.views(sorted({*revoked, *rotated}))]
            if dry_run:
                change.connection.rollback()
            return ended

    def _active(self, change: Change, id: str, authorize: Authorize) -> KeyView:
        key = self._not_ended(change, id, authorize)
        if key.status == "paused":
            raise ConflictError(f"{id} is paused; resume it first")
        return key

    def _not_ended(self, change: Change, id: str, authorize: Authorize) -> KeyView:
        key = change.view(id)
        authorize(change, key)
        if key.status not in ("active", "paused"):
            raise ConflictError(f"{id} is {key.status}; create another key")
        return key

    def _revoke(
        self, change: Change, which: sa.ColumnElement[bool], force: bool, actor: str
    ) -> list[str]:
        managers = self._managers(change)
        ids = change.revoke(which)
        self._keep_a_manager(change, managers, force)
        change.record("revoked", actor, ids)
        return ids

    def _keep_a_manager(self, change: Change, before: int, force: bool) -> None:
        if not force and self._managers(change) < before:
            raise ConflictError(
                f"No key with {MANAGE} and without an end would be left; force it if that is meant"
            )

    def _managers(self, change: Change) -> int:
        """2 if a key without expiry can manage keys, 1 if only expiring keys can, 0 if none can."""
        scopes = " " + api_keys.c.scopes + " "
        manages = [scopes.contains(f" {held} ") for held in ("*", "keys:*", MANAGE)]
        named = sa.or_(api_keys.c.id.not_like(f"{ENV_ID}%"), api_keys.c.id.in_(self._env_keys))
        for_good = sa.case((api_keys.c.expires_at.is_(None), 2), else_=1)
        query = sa.select(sa.func.max(for_good))
        query = query.where(is_active(change.now), named, sa.or_(*manages))
        return change.connection.scalar(query) or 0

    @contextmanager
    def _change(self, timeout: float | None = None) -> Generator[Change]:
        with transaction(self.engine, write=True, timeout=timeout) as connection:
            yield Change(connection, clock.now(connection), self.owner)

    def _issued(self, view: KeyView, secret: str, show: Show | None) -> IssuedKey:
        issued = IssuedKey(**self._filled(view).model_dump(), key=with_prefix(secret, self._prefix))
        if show:
            show(issued)
        return issued


def _with_owner(key: KeyView) -> KeyView:
    if OWN in key.scopes and not key.owner:
        raise InvalidError(f"A key with {OWN} needs an owner")
    return key


def open_service(
    settings: AuthSettings, policies: Sequence[Policy] = (), *, migrate: bool = False
) -> KeyService:
    """Check the schema; `migrate` upgrades it on SQLite. Raises SettingsError if the service needs
    another schema, and StoreUnavailableError."""
    service = KeyService(settings, policies)
    try:
        check_schema(service.engine)
    except SettingsError:
        if not (migrate and service.engine.dialect.name == "sqlite"):
            raise
        upgrade(settings.database_url)
    return service
