"""The policy `limits`: how often a key may be used."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import sqlalchemy as sa

from app.auth.access.policy import Denial, Headers
from app.auth.errors import SettingsError
from app.auth.key import Key
from app.limits.limit import Limit, are_within, headers_of, parse_limits, with_default
from app.limits.limiter import Counter, Limiter
from app.limits.sqlite_counter import SqliteCounter


class LimitPolicy:
    """Charges each request to all limits of its key, or to none.

    `default` applies to keys without a sliding limit of their own. Without a store, as on the
    command line, the policy only parses and compares.
    """

    name = "limits"
    headers: Final = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in {
            "RateLimit-Policy": "The limits of the key",
            "RateLimit": "How many requests are left, and the seconds until there are more",
        }.items()
    }

    def __init__(
        self,
        default: tuple[Limit, ...],
        valkey_url: str,
        database_url: sa.URL,
        store: Any,  # a DatabaseKeyStore
    ) -> None:
        """Raises SettingsError if the client of Valkey is not installed."""
        self._default, self._url = default, database_url
        self._charged = WeakValueDictionary[int, Key]()  # by their identity
        if store:
            counter = open_counter(valkey_url, database_url)
            from app.limits.usage import StoreUsage  # with the store: commands start without it

            self._limiter = Limiter(counter, SqliteCounter(None), StoreUsage(store))

    def parse(self, values: Sequence[str]) -> list[str]:
        return [f"{limit}" for limit in parse_limits(values)]

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None:
        theirs = with_default(parse_limits(outer), self._default)
        if not are_within(with_default(parse_limits(inner), self._default), theirs):
            bound = " ".join(map(str, theirs))
            raise ValueError(f"No key that you manage may send more than yours: {bound}")

    def concerns(self, key: Key) -> bool:
        return bool(self._default or key.restrictions.get(self.name))

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        limits = self._limits_of(key)
        # A change makes a new object of a key. What it used meanwhile, without a quota, counts.
        is_known = self._charged.get(id(key)) is key
        charge = await self._limiter.charge(key.id, limits, is_known=is_known)
        if not is_known:
            self._charged[id(key)] = key
        headers = headers_of(charge, limits)
        if not charge.over:
            return headers
        return Denial(
            "over its limit",
            f"over its limit of {charge.over}",
            429,
            f"Too many requests: {charge.over}",
            headers,
        )

    def _limits_of(self, key: Key) -> tuple[Limit, ...]:
        return _that_hold(tuple(key.restrictions.get(self.name, ())), self._default)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        await self._limiter.check()
        try:
            yield
        finally:
            await self._limiter.close()

    def upgrade(self) -> bool:
        if self._url.get_backend_name() == "postgresql":
            from app.limits.postgresql_counter import create_tables

            return create_tables(self._url)
        return False


@lru_cache(10_000)
def _that_hold(own: tuple[str, ...], default: tuple[Limit, ...]) -> tuple[Limit, ...]:
    return with_default(parse_limits(own), default)


def open_counter(valkey_url: str, database_url: sa.URL) -> Counter:
    """Raises SettingsError if the client of Valkey is not installed."""
    if not valkey_url:
        if database_url.get_backend_name() == "sqlite":
            return SqliteCounter(Path(f"{database_url.database}"))
        from app.limits.postgresql_counter import PostgresqlCounter  # SQLite's users need no driver

        return PostgresqlCounter(database_url)
    try:
        from app.limits.valkey_counter import ValkeyCounter
    except ImportError:
        raise SettingsError("VALKEY_URL: install what asks it: uv sync --extra valkey") from None
    return ValkeyCounter(valkey_url)
