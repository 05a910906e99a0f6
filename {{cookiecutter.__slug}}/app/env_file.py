"""Keys that live in `.env`: looked up by the server, changed by the `keys` command."""

import asyncio
import contextlib
import io
import logging
import os
import stat
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream

from app.constants import COMMAND
from app.keys import Key, parse_secrets
from app.settings import (
    ENV_FILE,
    MAKE_A_KEY,
    Settings,
    SettingsError,
    env_version,
    load_settings,
    reading_env_file,
)

logger = logging.getLogger(__name__)

NAME: Final = "API_KEYS"
MAX_AGE = 0.25  # seconds that a change to the file may go unnoticed
PATIENCE = 5.0  # seconds to wait for another editor


class EnvKeyStore:
    """The keys that API_KEYS names, following changes to `.env` while the server runs.

    Keys of settings that were given by hand stay as they are. A change that cannot be read leaves
    the last good keys in force and is reported in the log.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.api_keys:
            raise SettingsError(f"{NAME} is empty; {MAKE_A_KEY}")
        self._keys = settings.api_keys
        self._version = settings.env_version
        self._look_again_at = 0.0

    async def find(self, digest: bytes) -> Key | None:
        # Not every time: looking at the file costs more than all the rest.
        if (now := time.monotonic()) >= self._look_again_at:
            self._look_again_at = now + MAX_AGE
            self.look_for_changes()
        return self._keys.get(digest)

    @asynccontextmanager
    async def follow(self) -> AsyncGenerator[None]:
        """Look for changes also while nobody calls.

        Without that, a revocation could go unnoticed until a broken edit brings the key back.
        """
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(self._watch())
            yield
            watcher.cancel()

    async def _watch(self) -> None:
        while True:
            self.look_for_changes()
            await asyncio.sleep(MAX_AGE)

    def look_for_changes(self) -> None:
        version = env_version()
        if self._version in (None, version):
            return
        self._version = version
        try:
            keys = load_settings().api_keys
        except SettingsError as error:
            logger.error("%s. The last good keys stay in force.", error)
            return
        if keys != self._keys:
            self._keys = keys
            logger.info("%s changed: %d in force.", NAME, len(keys))


@contextmanager
def edit_secrets() -> Iterator[list[str]]:
    """Change the secrets in `.env`: what the list holds at the end of the block is what is kept.

    Everything else in the file stays as it is. The file is replaced in one step, so that a reader
    or a crash meets either the old one or the new one; of two editors the second one waits.
    Raises SettingsError if the file cannot be edited; it is unchanged then.
    """
    if NAME in os.environ:
        raise SettingsError(
            f"{NAME} is set in the environment, which wins over {ENV_FILE}; change it there"
        )
    path = ENV_FILE.resolve()
    with _replacing(path) as replacement:
        text = ""
        if path.exists():
            # newline="" leaves line ends alone.
            with reading_env_file(), path.open(encoding="utf-8", newline="") as file:
                text = file.read()
        statements = list(parse_stream(io.StringIO(text, newline="")))
        # Of several the last one counts, here as for the settings.
        current = next((s for s in reversed(statements) if (s.key or "").upper() == NAME), None)
        try:
            secrets = parse_secrets((current and current.value) or "")
        except ValueError as error:
            raise SettingsError(f"{NAME}: {error}; correct it in {ENV_FILE}") from None
        yield secrets
        value = ",".join(secrets)
        if current is None:
            separator = "" if not text or text.endswith("\n") else "\n"
            replacement.write(f"{text}{separator}{NAME}={value}\n")
        else:
            replacement.writelines(
                _with_value(s, value) if s is current else s.original.string for s in statements
            )


def _with_value(statement: Binding, value: str) -> str:
    """The statement's own text with another value, so that quotes and comments stay."""
    text = statement.original.string
    if statement.value:
        return text.replace(statement.value, value, 1)
    head, _, tail = text.partition("=")
    return f"{head}={value}" + tail.replace('""', "").replace("''", "")


@contextmanager
def _replacing(path: Path) -> Iterator[io.TextIOWrapper]:
    """Write a file that takes the place of `path` at the end, with its mode and owner.

    The new file is also the lock: only one process can create it, and renaming it lets go.
    """
    lock = path.with_name(f"{path.name}.lock")
    file = _create(lock)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            status = path.stat()
            # Not on Windows, which has no owners, nor for a user who may not give files away.
            with contextlib.suppress(AttributeError, PermissionError):
                os.chown(lock, status.st_uid, status.st_gid)
            lock.chmod(stat.S_IMODE(status.st_mode))
        lock.replace(path)
    except BaseException:
        lock.unlink(missing_ok=True)
        raise


def _create(lock: Path) -> io.TextIOWrapper:
    """Create a file that only its owner may read, once nobody else's is there."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if time.monotonic() >= give_up_at:
                raise SettingsError(
                    f"{lock.name} exists: another `{COMMAND} keys` is at work."
                    " If none is, it was cut off and changed nothing: delete that file"
                ) from None
            time.sleep(0.01)
        except OSError as error:
            raise SettingsError(f"{lock} cannot be written ({error.strerror})") from None
        else:
            return os.fdopen(descriptor, "w", encoding="utf-8", newline="")
