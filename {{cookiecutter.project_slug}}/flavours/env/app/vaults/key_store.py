"""The key store of a running server for a vault."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from threading import Thread

from app.auth.access.rule import Refusal
from app.auth.config.settings import API_KEYS, AuthSettings
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import Key
from app.auth.store import env_file
from app.auth.store.env_store import EnvKeyStore
from app.vaults.client import IO_TIMEOUT, TIMEOUT, Vault

logger = logging.getLogger(__name__)

ASK_EVERY = 5.0  # seconds between two reads of the vault


class VaultKeyStore(EnvKeyStore):
    """Follows the list in a vault instead of a file.

    A thread reads the vault, so that no request waits for it. The last answer is trusted for
    `max_staleness` seconds from the start of the read.
    """

    def __init__(self, keys: Iterable[bytes], vault: Vault, max_staleness: float) -> None:
        super().__init__(keys, followed=True)
        self._vault, self._max_staleness = vault, max_staleness
        self._asked_at = time.monotonic() - TIMEOUT  # `keys` may be as old as that
        self._ask_at = -math.inf
        self._asking: Thread | None = None
        self._answered = Future[None]()
        self._problem = ""

    async def lookup(self, digest: bytes, client: str = "") -> Key | Refusal:
        await self._catch_up()
        return await super().lookup(digest, client)

    async def is_reachable(self) -> bool:
        await self._catch_up()
        return await super().is_reachable()

    async def _catch_up(self) -> None:
        """After a pause, such as that of a frozen machine, wait IO_TIMEOUT for an answer."""
        for _ in range(2):  # the first may have been asked before the pause
            try:
                return self._look()
            except StoreUnavailableError:
                await asyncio.wait([asyncio.wrap_future(self._answered)], timeout=IO_TIMEOUT)

    def _look(self) -> None:
        """Raises StoreUnavailableError if the last answer is too old."""
        now = time.monotonic()
        is_asking = self._asking and self._asking.is_alive() and not self._answered.done()
        if now >= self._ask_at and not is_asking:
            self._ask_at, self._answered = now + ASK_EVERY, Future()
            # A daemon does not delay the exit. After a fork the thread is gone, and starts again.
            ask = partial(self._ask, self._answered)
            self._asking = Thread(target=ask, name="api-keys-vault", daemon=True)
            self._asking.start()
        if now >= (trusted_until := self._asked_at + self._max_staleness):
            raise StoreUnavailableError(self._problem or "SECRETS_VAULT: no answer")
        self._trusted_until = min(now + env_file.MAX_AGE, trusted_until)

    def _ask(self, answered: Future[None]) -> None:
        asked_at = time.monotonic()
        try:
            listed = self._vault.read().get(API_KEYS, "")
        except SettingsError as error:
            if self._problem != f"{error}":
                self._problem = f"{error}"
                logger.warning("%s. The last answer counts for %g s.", error, self._max_staleness)
        else:
            self._take("the vault", listed.encode(errors="replace"))
            self._asked_at, self._problem = asked_at, ""
        finally:
            answered.set_result(None)


def follow_vault(store: EnvKeyStore, settings: AuthSettings, max_staleness: float) -> EnvKeyStore:
    """A store that follows the vault if the keys come from one; otherwise the given store."""
    url = os.environ.get("SECRETS_VAULT")
    if url and settings.may_change:
        return VaultKeyStore(settings.api_keys, Vault(url), max_staleness)
    return store
