"""The key store of a running server for a vault."""

import logging
import math
import os
import time
from collections.abc import Iterable
from threading import Thread

from app.auth.config.settings import API_KEYS, AuthSettings
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.store import env_file
from app.auth.store.env_store import EnvKeyStore
from app.vaults.client import TIMEOUT, Vault

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
        self._problem = ""

    def _look(self) -> None:
        """Raises StoreUnavailableError if the last answer is too old."""
        now = time.monotonic()
        if now >= self._ask_at and not (self._asking and self._asking.is_alive()):
            self._ask_at = now + ASK_EVERY
            # A daemon does not delay the exit. After a fork the thread is gone, and starts again.
            self._asking = Thread(target=self._ask, name="api-keys-vault", daemon=True)
            self._asking.start()
        if now >= (trusted_until := self._asked_at + self._max_staleness):
            raise StoreUnavailableError(self._problem or "SECRETS_VAULT: no answer")
        self._trusted_until = min(now + env_file.MAX_AGE, trusted_until)

    def _ask(self) -> None:
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


def follow_vault(store: EnvKeyStore, settings: AuthSettings, max_staleness: float) -> EnvKeyStore:
    """A store that follows the vault if the keys come from one; otherwise the given store."""
    url = os.environ.get("SECRETS_VAULT")
    if url and settings.may_change:
        return VaultKeyStore(settings.api_keys, Vault(url), max_staleness)
    return store
