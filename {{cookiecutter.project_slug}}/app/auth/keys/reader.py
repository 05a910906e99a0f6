"""Reads keys and their events."""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Final, Self

import sqlalchemy as sa

from app.auth.access.policy import Policy
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import connect, transaction
from app.auth.database.models import (
    ENV_ID,
    LEAST_STALENESS,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.errors import StoreUnavailableError
from app.auth.key import id_of
from app.auth.keys.views import (
    AT_ONCE,
    EventView,
    KeyView,
    get_view,
    is_of,
    select_views,
    shown,
)

LONGEST_STALENESS: Final = 60.0  # seconds; the maximum in the settings


class KeyReader:
    """Reads the keys in the database. No server needs to run.

    Every method raises StoreUnavailableError if the database is unreachable.
    """

    def __init__(self, settings: AuthSettings, policies: Sequence[Policy] = ()) -> None:
        self.engine = connect(settings.database_url)
        self.policies = policies
        self.owner: str | None = None  # with one, all other keys do not exist
        self._env_keys = {ENV_ID + id_of(hashed): hashed for hashed in settings.api_keys}

    def of_owner(self, owner: str | None) -> Self:
        """The same for the keys of this owner alone, or of all with None."""
        narrow = copy(self)
        narrow.owner = owner
        return narrow

    def get(self, id: str) -> KeyView:
        """Return one key. Raises NotFoundError."""
        with transaction(self.engine) as connection:
            return self._filled(get_view(connection, id, clock.now(connection), self.owner))

    def page(
        self, after: str = "", limit: int = 100, *conditions: sa.ColumnElement[bool]
    ) -> list[KeyView]:
        """Return keys after the id `after`, oldest first; keys of API_KEYS come last."""
        with transaction(self.engine) as connection:
            query = select_views(clock.now(connection)).where(is_of(self.owner), *conditions)
            query = query.where(api_keys.c.id > after)
            rows = connection.execute(query.order_by(api_keys.c.id).limit(limit))
            return [self._filled(shown(row)) for row in rows]

    def all(self) -> Iterator[KeyView]:
        after = ""
        while page := self.page(after, AT_ONCE):
            yield from page
            after = page[-1].id

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        """Return the key ids of the secrets that the database has, valid or ended."""
        with transaction(self.engine) as connection:
            return ids_of(connection, digests)

    def is_named(self, id: str) -> bool:
        """Whether API_KEYS still names this key. True for keys from elsewhere."""
        return not id.startswith(ENV_ID) or id in self._env_keys

    def events(self, id: str | None = None) -> list[EventView]:
        """Return the events, oldest first. Raises NotFoundError."""
        event = api_key_events.c
        query = sa.select(api_key_events).order_by(event.id)
        query = query.where(event.key_id.in_(sa.select(api_keys.c.id).where(is_of(self.owner))))
        with transaction(self.engine) as connection:
            if id is not None:
                found = get_view(connection, id, clock.now(connection), self.owner)
                query = query.where(event.key_id == found.id)
            rows = connection.execute(query)
            return [EventView.model_validate(row, from_attributes=True) for row in rows]

    def longest_staleness(self) -> float:
        """Seconds until every server knows the changes committed before this call."""
        try:
            with transaction(self.engine) as connection:
                servers = connection.execute(sa.select(api_key_servers)).all()
                now = clock.now(connection)
        except StoreUnavailableError:
            return LONGEST_STALENESS
        # A server that was not seen for a day has stopped, unless this clock is days ahead.
        latest = max((server.seen_at for server in servers), default=now)
        alive = (server for server in servers if server.seen_at > min(now, latest) - clock.DAY)
        longest: float = max((server.max_staleness for server in alive), default=0.0)
        return max(longest, LEAST_STALENESS)

    def _filled(self, view: KeyView) -> KeyView:
        """The view, with an empty list for each restriction that the key does not have."""
        empty = {policy.name: list[str]() for policy in self.policies}
        return view.model_copy(update={"restrictions": empty | view.restrictions})


def ids_of(connection: sa.Connection, digests: Sequence[bytes]) -> dict[bytes, str]:
    secret = api_key_secrets.c
    query = sa.select(secret.digest, secret.key_id).where(secret.digest.in_(digests))
    return {row.digest: row.key_id for row in connection.execute(query)}
