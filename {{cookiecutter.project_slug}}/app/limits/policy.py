"""The policy `limits`: how often a key may be used."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Final

import sqlalchemy as sa

from app.auth.access.policy import Denial, Headers, UsageSource
from app.auth.database.engine import connect, transaction
from app.auth.database.models import api_keys
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import Key
from app.limits.limit import (
    Limit,
    Limiter,
    are_within,
    headers_of,
    parse_limits,
    with_default,
    written,
)
from app.limits.local import LocalLimiter
from app.limits.process_lock import ProcessLock

logger = logging.getLogger(__name__)

LOOK_EVERY = 5.0  # seconds
NOT_ALONE = "several processes count limits; name the Valkey that they share: valkey://HOST:6379"


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
        store: UsageSource | None,
    ) -> None:
        """Raises SettingsError if the client of Valkey is not installed."""
        self._default, self._database_url, self._store = default, database_url, store
        self._shares = bool(valkey_url)
        self._limiter = open_limiter(valkey_url, store) if store else None
        self._hold = ProcessLock(database_url)
        self._engine = connect(database_url)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="api-key-limits")
        self._has_limits = bool(default)
        self._looked_at = -1  # the value of `changes` then
        self._said_not_alone = False

    def parse(self, values: Sequence[str]) -> list[str]:
        return [f"{limit}" for limit in parse_limits(values)]

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None:
        theirs = with_default(parse_limits(outer), self._default)
        if not are_within(with_default(parse_limits(inner), self._default), theirs):
            raise ValueError(f"No key that you manage may send more than yours: {written(theirs)}")

    def concerns(self, key: Key) -> bool:
        return bool(self._limits_of(key))

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        if not self._limiter:
            raise RuntimeError("This policy has no store: it only parses and compares")
        limits = self._limits_of(key)
        self._has_limits = True
        charge = await self._limiter.charge(key.id, limits)
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
        own = key.restrictions.get(self.name)
        return with_default(_parsed(tuple(own)), self._default) if own else self._default

    # Without Valkey, only one process may count.

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        if not await self._counts_alone():
            raise SettingsError(f"VALKEY_URL: {NOT_ALONE}")
        watching = asyncio.create_task(self._keep_looking())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            if self._limiter:
                await self._limiter.close()
            self._hold.release()

    async def _keep_looking(self) -> None:
        """Another process may start later, and a key with the first limit may be created."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            with suppress(StoreUnavailableError):  # the store logs it
                alone = await self._counts_alone()
                if not (alone or self._said_not_alone):
                    logger.error("VALKEY_URL: %s. Until then each lets as many in.", NOT_ALONE)
                self._said_not_alone = not alone

    async def _counts_alone(self) -> bool:
        """Whether limits hold: no other process counts, or all count in Valkey."""
        if self._shares:
            return True
        run = asyncio.get_running_loop().run_in_executor
        changes = self._store.changes if self._store else 0
        if not self._has_limits and self._looked_at != changes:
            self._has_limits = await run(self._thread, self._some_key_has_limits)
            self._looked_at = changes
        return not self._has_limits or await run(self._thread, self._hold.take)

    def _some_key_has_limits(self) -> bool:
        limited = sa.cast(api_keys.c.restrictions, sa.Text).contains(f'"{self.name}"')
        some = sa.select(api_keys.c.id).where(limited, api_keys.c.revoked_at.is_(None)).limit(1)
        with transaction(self._engine) as connection:
            return connection.scalar(some) is not None


_parsed = lru_cache(10_000)(parse_limits)


def open_limiter(valkey_url: str, store: UsageSource) -> Limiter:
    """Raises SettingsError if the client of Valkey is not installed."""
    local = LocalLimiter(store.used_since, store.now)
    if not valkey_url:
        return local
    try:
        from app.limits.valkey_counter import ValkeyLimiter
    except ImportError:
        raise SettingsError("VALKEY_URL: install what asks it: uv sync --extra valkey") from None
    return ValkeyLimiter(valkey_url, local, store.used_since, store.now)
