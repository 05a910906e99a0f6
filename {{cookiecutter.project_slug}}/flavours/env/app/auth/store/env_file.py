"""The file where the keys are: what its list says, and how to change `.env` without any loss."""

import contextlib
import io
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
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
PATIENCE = 5.0  # seconds to wait for another editor

# The statement that holds the list: its name, the equals sign, and the value in its quotes.
_LIST: Final = re.compile(
    r"""
    (\s* (?:export[^\S\r\n]+)? (?:api_keys|'api_keys')) (?![^\s=])
    (?:
        ([^\S\r\n]* = (?:[^\S\r\n]*(?=[^\s\#]))?)
        (?: (['"]) (?:\\.|(?!\3)[^\\])* \3 | (?:(?![^\S\r\n]+\#)[^\r\n])* )
    )?
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def key_file() -> Path:
    """Where the settings find the keys if the environment does not name them.

    Raises SettingsError if that is no file.
    """
    if sources.chosen() == "SECRETS_VAULT":
        raise SettingsError("SECRETS_VAULT is set, but this store follows files alone")
    if folder := sources.secrets_dir():
        named = (path for path in folder.iterdir() if path.name.upper() == API_KEYS)
        return next(named, folder / API_KEYS.lower())
    return sources.ENV_FILE


def secrets_in(text: str, place: Path | str) -> list[str]:
    """The secrets that the settings find in this text of that file, or of some other place.

    Raises ValueError, without a secret in it, if they find no list or a broken one.
    """
    if (value := _value_in(text) if place == sources.ENV_FILE else text.strip()) is None:
        raise ValueError("it is not set")
    return parse_secrets(value)


def secrets_named_in(text: str, place: Path | str) -> Iterator[str]:
    """The secrets that can still be read in a list that is broken."""
    value = text
    if place == sources.ENV_FILE:
        _, listing, _ = _split(text)
        value = listing.value or listing.original.string.partition("=")[2]
    for entry in value.split(","):
        with contextlib.suppress(ValueError):
            yield from parse_secrets(entry.strip("\"' \t\r\n"))


def edit_keys(
    change: Callable[[list[str]], list[str]], show: Callable[[], None] = lambda: None
) -> list[str]:
    """Let `.env` list what `change` makes of the keys there, as they are spelled; return that.

    Everything else in the file stays as it is. It is replaced in one step, so that a reader or a
    crash meets either the old one or the new one; of two editors the second one waits. `show` runs
    before that step.

    Raises SettingsError if anything fails; the file is unchanged then.
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
                text = file.read_bytes().decode() if file.exists() else ""
            keys = change(_keys_in(text))
            replacement.write(_with_keys(text, keys))
            replacement.flush()
            os.fsync(replacement.fileno())
            show()
    except OSError as error:
        raise SettingsError(f"{sources.ENV_FILE} stays as it was: {error.strerror}") from None
    return keys


def wait_for_servers() -> None:
    """Until no server trusts any more what it has read before now."""
    coarsest_tick_of_a_clock = 0.02
    time.sleep(MAX_AGE + coarsest_tick_of_a_clock)


def _value_in(text: str) -> str | None:
    """As the settings find it: they ask the same parser, and take the name in any case."""
    values = dotenv_values(stream=io.StringIO(text))
    return {name.upper(): value for name, value in values.items()}.get(API_KEYS)


def _split(text: str) -> tuple[str, Binding, str]:
    """The list, and what stands before and behind it. Of several lists the last one counts."""
    statements = list(parse_stream(io.StringIO(text, newline="")))
    texts = [statement.original.string for statement in statements]
    for place in reversed(range(len(texts))):
        if _LIST.match(texts[place]):
            return "".join(texts[:place]), statements[place], "".join(texts[place + 1 :])
    return text, Binding(None, None, Original("", 0), error=False), ""


def _keys_in(text: str) -> list[str]:
    _, listing, _ = _split(text)
    if listing.error or listing.value != _value_in(text):
        raise _unclear()
    value = listing.value or ""
    try:
        parse_secrets(value)
    except ValueError as error:
        raise SettingsError(f"{API_KEYS}: {error}; correct it in {sources.ENV_FILE}") from None
    return [entry.strip() for entry in value.split(",")] if value.strip() else []


def _with_keys(text: str, keys: list[str]) -> str:
    """The text with these keys in its list, whose quotes and comment stay."""
    value = ",".join(keys)
    before, listing, after = _split(text)
    if listing.original.string:
        statement = _LIST.sub(
            lambda match: f"{match[1]}{match[2] or '='}{match[3] or ''}{value}{match[3] or ''}",
            listing.original.string,
            count=1,
        )
    else:
        statement = ("" if before.endswith("\n") or not before else "\n") + f"{API_KEYS}={value}\n"
    edited = before + statement + after
    if _value_in(edited) != value:
        raise _unclear()
    return edited


def _unclear() -> SettingsError:
    return SettingsError(
        f"{API_KEYS} cannot be changed as it is written; write {API_KEYS}=KEY,KEY in a line of its"
        f" own in {sources.ENV_FILE}"
    )


@contextmanager
def _replacing(path: Path) -> Generator[TextIO]:
    """Write a file that takes the place of `path` at the end, with its mode and owner.

    The new file is also the lock: only one process can create it, and renaming it lets go.
    """
    lock = path.with_name(f"{path.name}.lock")
    file = _create(lock)
    try:
        with file:
            yield file
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
    with contextlib.suppress(OSError):  # Windows opens no folders
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """From now on a power cut does not bring back the file that was replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(lock: Path) -> TextIO:
    """Create a file that only its owner may read, once nobody else's is there."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if time.monotonic() >= give_up_at:
                raise SettingsError(
                    f"{lock} exists: another `{COMMAND} keys` is at work."
                    " If none is, it was cut off and changed nothing: delete that file"
                ) from None
            time.sleep(0.01)
        except OSError as error:
            raise SettingsError(f"{lock} cannot be written ({error.strerror})") from None
        else:
            return os.fdopen(descriptor, "w", encoding="utf-8", newline="")
