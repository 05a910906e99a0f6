"""The keys of `.env`, of a secret's file or of a vault, as a server knows them."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Final

from app.auth.access.rule import UNKNOWN, Refusal
from app.auth.config import sources
from app.auth.config.settings import API_KEYS, MAKE_A_KEY, AuthSettings
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import Key, digests, id_of
from app.auth.store import env_file
from app.vaults.client import PATIENCE, Vault

logger = logging.getLogger(__name__)

EVERYTHING: Final = frozenset({"*"})
ASK_EVERY = 5.0  # seconds from one question to a vault to the next


class EnvKeyStore:
    """The keys in force, given as digests. If they are `followed`, a file says which they are.

    What was read there is trusted for MAX_AGE; a request that comes later looks again. While the
    list is broken, those keys stay in force that were before and that it still names.
    """

    has_scopes = False

    def __init__(self, keys: Iterable[bytes], *, followed: bool) -> None:
        self._keys = self._good_keys = _by_digest(keys)
        self._followed = followed
        self._trusted_until = 0.0 if followed else math.inf
        self._seen = b""

    def recall(self, digest: bytes) -> Key | None:
        return self._keys.get(digest) if time.monotonic() < self._trusted_until else None

    def knows(self, digest: bytes) -> bool:
        return digest in self._keys

    async def find(self, digest: bytes, client: str = "") -> Key | Refusal:
        self._look()  # also for an unknown key: it may have been made a moment ago
        return self._keys.get(digest, UNKNOWN)

    async def is_reachable(self) -> bool:
        with contextlib.suppress(StoreUnavailableError):
            self._look()
            return True
        return False

    @asynccontextmanager
    async def follow(self) -> AsyncGenerator[None]:
        """Look also while nobody calls: a broken list is held against the last good one."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self) -> None:
        said = ""
        while True:
            try:
                self._look()
                said = ""
            except Exception as error:
                if f"{error}" != said:
                    said = f"{error}"
                    known = isinstance(error, StoreUnavailableError)
                    logger.error("Nobody gets in: %s.", said, exc_info=not known)
            await asyncio.sleep(env_file.MAX_AGE / 2)

    def _look(self) -> None:
        """Raises StoreUnavailableError if the file cannot be read."""
        if not self._followed:
            return
        began = time.monotonic()
        self._take(*_read())
        self._trusted_until = began + env_file.MAX_AGE

    def _take(self, place: Path | str, content: bytes) -> None:
        # Neither time nor size, which may stay the same; nor the content, which holds secrets.
        if (seen := sha256(content).digest()) == self._seen:
            return
        before = self._keys
        try:
            secrets = env_file.secrets_in(content.decode(), place)
        except ValueError as error:
            logger.error("%s in %s is broken: %s.", API_KEYS, place, error)
            text = content.decode(errors="replace")
            named = set(digests(env_file.secrets_named_in(text, place)))
            self._keys = {each: key for each, key in self._good_keys.items() if each in named}
        else:
            self._keys = self._good_keys = _by_digest(digests(secrets))
        if self._keys != before:
            logger.info("%s changed: %d in force.", API_KEYS, len(self._keys))
        self._seen = seen


class VaultKeyStore(EnvKeyStore):
    """The same with a vault in the file's place, which answers when it can, or not at all.

    So it is asked in a thread, for which nobody waits. What it said last is trusted for
    `max_staleness`, from the moment on when it was asked.
    """

    def __init__(self, keys: Iterable[bytes], vault: Vault, max_staleness: float) -> None:
        super().__init__(keys, followed=True)
        self._vault, self._max_staleness = vault, max_staleness
        self._asked_at = time.monotonic() - PATIENCE  # for those keys, at the earliest
        self._ask_at = -math.inf
        self._asking: Thread | None = None
        self._problem = ""

    def _look(self) -> None:
        """Raises StoreUnavailableError if the vault has been silent for too long."""
        now = time.monotonic()
        if now >= self._ask_at and not (self._asking and self._asking.is_alive()):
            self._ask_at = now + ASK_EVERY
            # A daemon holds up no exit, and one that a fork has lost is replaced.
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
                known = self._max_staleness
                logger.warning("%s. What was known before counts for %g s.", error, known)
        else:
            self._take("the vault", listed.encode(errors="replace"))
            self._asked_at, self._problem = asked_at, ""


def open_store(settings: AuthSettings) -> EnvKeyStore:
    """Raises SettingsError if the settings name no key."""
    if not settings.api_keys:
        how = "empty" if API_KEYS.lower() in settings.model_fields_set else "not set"
        raise SettingsError(f"{API_KEYS} is {how}; {MAKE_A_KEY}")
    if not settings.may_change:
        logger.warning(
            "The keys are not followed, for %s does not come from a file: to revoke one,"
            " change it where it is set, and restart.",
            API_KEYS,
        )
    elif url := sources.secrets_vault():
        return VaultKeyStore(settings.api_keys, Vault(url), settings.vault_max_staleness)
    return EnvKeyStore(settings.api_keys, followed=settings.may_change)


def _by_digest(keys: Iterable[bytes]) -> dict[bytes, Key]:
    return {digest: Key(id_of(digest), id_of(digest), EVERYTHING) for digest in keys}


def _read() -> tuple[Path, bytes]:
    try:
        file = env_file.key_file()
        if file.is_file():  # opening a pipe could take for ever
            return file, file.read_bytes()
        problem = f"{file} is missing, or no file"
    except OSError as error:
        problem = f"{error.filename} cannot be read ({error.strerror})"
    except SettingsError as error:
        problem = f"{error}"
    raise StoreUnavailableError(problem)
