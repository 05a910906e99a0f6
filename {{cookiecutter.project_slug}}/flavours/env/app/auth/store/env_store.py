"""The key store of a running server for `.env` or a file in SECRETS_DIR."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from app.auth.access.rule import UNKNOWN, Refusal
from app.auth.config.settings import API_KEYS, MAKE_A_KEY, AuthSettings
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import Key, digests, id_of
from app.auth.store import env_file

logger = logging.getLogger(__name__)

EVERYTHING: Final = frozenset({"*"})


class EnvKeyStore:
    """The valid keys, by digest. If `followed`, the store reads them from a file.

    The list is trusted for MAX_AGE seconds; a later request reads it again. A broken list can
    remove keys but never adds one: only valid keys that it still names stay valid.
    """

    has_scopes = False

    def __init__(self, keys: Iterable[bytes], *, followed: bool) -> None:
        self._keys = self._good_keys = _by_digest(keys)
        self._followed = followed
        self._trusted_until = 0.0 if followed else math.inf
        self._seen = b""

    def cached(self, digest: bytes) -> Key | None:
        return self._keys.get(digest) if time.monotonic() < self._trusted_until else None

    def may_exist(self, digest: bytes) -> bool:
        return digest in self._keys

    async def lookup(self, digest: bytes, client: str = "") -> Key | Refusal:
        self._look()  # also for an unknown key, which may be new
        return self._keys.get(digest, UNKNOWN)

    async def is_reachable(self) -> bool:
        with contextlib.suppress(StoreUnavailableError):
            self._look()
            return True
        return False

    @asynccontextmanager
    async def follow(self) -> AsyncGenerator[None]:
        """Read also without requests: a broken list is compared with the last good one."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self) -> None:
        logged = ""
        while True:
            try:
                self._look()
                logged = ""
            except Exception as error:
                if f"{error}" != logged:
                    logged = f"{error}"
                    known = isinstance(error, StoreUnavailableError)
                    logger.error("Nobody gets in: %s.", logged, exc_info=not known)
            await asyncio.sleep(env_file.MAX_AGE / 2)

    def _look(self) -> None:
        """Raises StoreUnavailableError if the file cannot be read."""
        if not self._followed:
            return
        began = time.monotonic()
        self._take(*_read())
        self._trusted_until = began + env_file.MAX_AGE

    def _take(self, place: Path | str, content: bytes) -> None:
        # Compare digests: time and size may stay the same, and the content holds secrets.
        if (seen := sha256(content).digest()) == self._seen:
            return
        before = self._keys
        try:
            secrets = env_file.secrets_in(content.decode("utf-8-sig"), place)
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


def open_store(settings: AuthSettings) -> EnvKeyStore:
    """Raises SettingsError if the settings name no key."""
    if not settings.api_keys:
        raise SettingsError(f"{API_KEYS} is not set; {MAKE_A_KEY}")
    if not settings.may_change:
        logger.warning(
            "The keys are not followed, for %s does not come from a file: to revoke one,"
            " change it where it is set, and restart.",
            API_KEYS,
        )
    return EnvKeyStore(settings.api_keys, followed=settings.may_change)


def _by_digest(keys: Iterable[bytes]) -> dict[bytes, Key]:
    return {digest: Key(id_of(digest), id_of(digest), EVERYTHING) for digest in keys}


def _read() -> tuple[Path, bytes]:
    try:
        file = env_file.key_file()
        if file.is_file():  # opening a pipe could block
            return file, file.read_bytes()
        problem = f"{file} is missing, or no file"
    except OSError as error:
        problem = f"{error.filename} cannot be read ({error.strerror})"
    except SettingsError as error:
        problem = f"{error}"
    raise StoreUnavailableError(problem)
