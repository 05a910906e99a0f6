"""The file with the keys: reads the list, and edits it in `.env` without losing changes."""

import io
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

from dotenv import dotenv_values
from dotenv.parser import Binding, Original, parse_stream

from app.auth.config import sources
from app.auth.config.settings import API_KEYS, in_environment
from app.auth.config.sources import reading
from app.auth.errors import SettingsError
from app.auth.key import parse_secrets
from app.constants import COMMAND

MAX_AGE = 0.25  # seconds for which a server trusts what it has read
TIMEOUT = 5.0  # seconds to wait for another edit to end

# The statement with the list: its name, an equals sign, and the value, perhaps in quotes.
_LIST: Final = re.compile(
    r"""
    (\s* (?:export\s+)? (?:api_keys|'api_keys')) (?![^\s=])
    (?: (\s* = (?:\s*(?=[^\s\#]))?) (['"]?) .*? (?=\3 \s* (?:\#.*)? \Z) )?
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def key_file() -> Path:
    """The file with the keys, for settings that do not get them from the environment.

    Raises SettingsError if the keys come from no file.
    """
    if sources.chosen() == "SECRETS_VAULT":
        raise SettingsError("SECRETS_VAULT is set, but this store follows files alone")
    if folder := sources.secrets_dir():
        named = (path for path in folder.iterdir() if path.name.upper() == API_KEYS)
        return next(named, folder / API_KEYS.lower())
    return sources.ENV_FILE


def secrets_in(text: str, place: Path | str) -> list[str]:
    """Return the secrets in the text of a file or another place, parsed as the settings do it.

    Raises ValueError, without a secret in it, if the list is missing or broken.
    """
    if (value := _value_in(text) if place == sources.ENV_FILE else text.strip()) is None:
        raise ValueError("it is not set")
    return parse_secrets(value)


def secrets_named_in(text: str, place: Path | str) -> Iterator[str]:
    """Yield the secrets that are still readable in a broken list."""
    value = text
    if place == sources.ENV_FILE:
        _, listing, _ = _split(text)
        value = listing.value or listing.original.string.partition("=")[2]
    for entry in value.split(","):
        with suppress(ValueError):
            yield from parse_secrets(entry.strip("\ufeff\"' \t\r\n"))


def edit_keys(
    change: Callable[[list[str]], list[str]], show: Callable[[], None] = lambda: None
) -> list[str]:
    """Change the list in `.env`, and return the new one. The keys are spelled as in the file.

    Everything else in the file stays. The file is replaced in one step, so a reader or a crash
    finds either the old file or the new one. A second edit waits for the first. `show` runs
    before the file is replaced.

    Raises SettingsError if anything fails. The file is unchanged then.
    """
    in_vault = "the vault" if sources.chosen() == "SECRETS_VAULT" else None
    if place := "the environment" if in_environment() else in_vault or sources.secrets_dir():
        raise SettingsError(
            f"{API_KEYS} is set in {place}, which wins over {sources.ENV_FILE}; change it there"
        )
    try:
        with _replacing(sources.ENV_FILE.resolve()) as replacement:
            with reading():
                file = sources.ENV_FILE
                text = file.read_bytes().decode("utf-8-sig") if file.exists() else ""
            edited, keys = _edited(text, change)
            replacement.write(edited)
            replacement.flush()
            os.fsync(replacement.fileno())
            show()
    except OSError as error:
        raise SettingsError(f"{sources.ENV_FILE} stays as it was: {error.strerror}") from None
    return keys


def wait_for_servers() -> None:
    """Wait until no server trusts a list that it read before this call."""
    coarsest_tick_of_a_clock = 0.02
    time.sleep(MAX_AGE + coarsest_tick_of_a_clock)


def _value_in(text: str) -> str | None:
    """Return the list as the settings parse it. Its name may be in any case."""
    values = dotenv_values(stream=io.StringIO(text))
    return {name.upper(): value for name, value in values.items()}.get(API_KEYS)


def _split(text: str) -> tuple[str, Binding, str]:
    """Return the last list, which is in effect, and the text before and after it."""
    statements = list(parse_stream(io.StringIO(text, newline="")))
    texts = [statement.original.string for statement in statements]
    for place in reversed(range(len(texts))):
        if _LIST.match(texts[place]):
            return "".join(texts[:place]), statements[place], "".join(texts[place + 1 :])
    return text, Binding(None, None, Original("", 0), error=False), ""


def _edited(text: str, change: Callable[[list[str]], list[str]]) -> tuple[str, list[str]]:
    """Return the text with the changed list, and that list. Quotes and comment stay."""
    before, listing, after = _split(text)
    value = listing.value or ""
    if not listing.error and listing.value == _value_in(text):
        try:
            parse_secrets(value)
        except ValueError as error:
            raise SettingsError(f"{API_KEYS}: {error}; correct it in {sources.ENV_FILE}") from None
        keys = change([entry.strip() for entry in value.split(",")] if value.strip() else [])
        value = ",".join(keys)
        statement = _LIST.sub(
            lambda match: f"{match[1]}{match[2] or '='}{match[3] or ''}{value}",
            listing.original.string,
            count=1,
        )
        if not statement:
            line_end = "\n" if before and not before.endswith("\n") else ""
            statement = f"{line_end}{API_KEYS}={value}\n"
        edited = before + statement + after
        if _value_in(edited) == value:
            return edited, keys
    raise SettingsError(
        f"{API_KEYS} cannot be changed as it is written; write {API_KEYS}=KEY,KEY in a line of its"
        f" own in {sources.ENV_FILE}"
    )


@contextmanager
def _replacing(path: Path) -> Generator[TextIO]:
    """Write a file that replaces `path` at the end and keeps its mode and owner.

    The new file is also the lock: only one process can create it, and the rename releases it.
    """
    lock = path.with_name(f"{path.name}.lock")
    file = _created(lock)
    try:
        with file:
            yield file
        if path.exists():
            status = path.stat()
            # Windows has no owners, and not every user may change owners.
            with suppress(AttributeError, PermissionError):
                os.chown(lock, status.st_uid, status.st_gid)
            lock.chmod(stat.S_IMODE(status.st_mode))
        lock.replace(path)
    except BaseException:
        lock.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut could bring the old file back
        finally:
            os.close(folder)


def _created(lock: Path) -> TextIO:
    """Create a file that only its owner may read. Waits while another edit runs."""
    give_up_at = time.monotonic() + TIMEOUT
    while True:
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            return os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        except FileExistsError:
            if time.monotonic() >= give_up_at:
                raise SettingsError(
                    f"{lock} exists: another `{COMMAND} keys` is at work."
                    " If none is, it was cut off and changed nothing: delete that file"
                ) from None
            time.sleep(0.01)
        except OSError as error:
            raise SettingsError(f"{lock} cannot be written ({error.strerror})") from None
