"""What commands print: tables for people, JSON for programs, and errors in one line."""

import json
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from math import ceil
from typing import Any

import typer
from pydantic import BaseModel

from app.auth.errors import KeyServiceError, SettingsError, StoreUnavailableError
from app.auth.keys.views import IssuedKey, flat
from app.auth.usage.counts import OUTCOMES
from app.auth.usage.report import UsageView

# The fields that a table leaves out.
_DETAILS = {
    "restrictions",
    "note",
    "created_by",
    "issued_at",
    "paused_at",
    "revoked_at",
    "old_key_expires_at",
    "old_key_last_used_at",
}


class NotShownError(Exception):
    """Standard output is closed, or a write to it has failed."""


@contextmanager
def one_line_errors(not_shown: str = "") -> Generator[None]:
    """Print an error in one line and exit with 1. `not_shown` follows if the output has failed."""
    try:
        if sys.stdout is None:
            raise NotShownError("it is closed")
        yield
        return
    except NotShownError as error:
        note(f"Standard output: {error}.{not_shown}")
    except (SettingsError, KeyServiceError, StoreUnavailableError) as error:
        note(f"{error}")
    raise typer.Exit(1)


def escape_what_cannot_be_encoded() -> None:
    """Escape what the terminal cannot encode, so that printing a new key never fails."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def show(
    result: BaseModel | Sequence[BaseModel],
    as_json: bool,
    tables: Sequence[BaseModel | Sequence[BaseModel] | str] = (),
) -> None:
    """One item with its fields below each other, several as a table; or the `tables` instead.

    Raises NotShownError.
    """
    if tables and not as_json:
        for number, table in enumerate([table for table in tables if table] or [()]):
            print_text("\n" * (number > 0), end="")
            print_text(table) if isinstance(table, str) else show(table, as_json)
        return
    several = result if isinstance(result, Sequence) else [result]
    if as_json:
        dumped = [flat(item) for item in several]
        print_text(json.dumps(dumped if several is result else dumped[0]))
    elif several is not result:
        fields = flat(several[0], "python").items()
        print_text(aligned([(f"{name}:", _readable(value)) for name, value in fields]))
    elif several:
        names = [name for name in type(several[0]).model_fields if name not in _DETAILS]
        rows = [[_readable(getattr(item, name)) for name in names] for item in several]
        print_text(aligned([[name.replace("_", " ").upper() for name in names], *rows]))
    else:
        print_text("None.")
    if isinstance(result, IssuedKey) and not as_json:
        note("Keep the key now: it is not shown again.")


def print_text(text: str, end: str = "\n") -> None:
    """Raises NotShownError if the text cannot be written."""
    try:
        typer.echo(f"{text}{end}", nl=False)  # this flushes
    except OSError as error:
        sys.stdout = None  # otherwise Python flushes it at exit and prints a traceback
        raise NotShownError(f"{error.strerror}") from None


def note(text: str) -> None:
    """Print a message on standard error. If that fails, the command goes on."""
    try:
        typer.echo(text, err=True)
        sys.stderr.flush()
    except (AttributeError, OSError):  # standard error is closed
        sys.stderr = None  # otherwise Python flushes it at exit and exits with 120


def progress(work: Iterable[Any], length: int | None = None) -> Iterator[Any]:
    """The same work, with a bar on standard error if that is a terminal."""
    hidden = sys.stderr is None or not sys.stderr.isatty()
    with typer.progressbar(work, length, file=sys.stderr, hidden=hidden) as bar:
        yield from bar


def _readable(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%MZ}"
    if isinstance(value, list):
        return " ".join(value) or "-"
    if isinstance(value, dict):  # by field, before and after
        changed = ((name, " to ".join(map(_readable, each))) for name, each in value.items())
        return ", ".join(f"{name}: {change}" for name, change in changed)
    return "-" if value in (None, "") else f"{value}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def chart(used: UsageView, since: timedelta) -> str:
    """A bar for each hour, or for each day if the time is longer than two days."""
    by_hour = since <= timedelta(days=2)
    counts: dict[str, Counter[str]] = {}
    for period in used.by_hour:
        when = f"{period.starts_at:%Y-%m-%d %H:00Z}" if by_hour else f"{period.starts_at:%Y-%m-%d}"
        counts.setdefault(when, Counter()).update(period.model_dump(include={*OUTCOMES}))
    most = max((count.total() for count in counts.values()), default=0)
    rows = [
        [
            when,
            "#" * ceil(40 * count.total() / max(most, 1)),
            *(f"{count[outcome]}" for outcome in OUTCOMES),
        ]
        for when, count in counts.items()
    ]
    heads = ["HOUR" if by_hour else "DAY", "", *(outcome.upper() for outcome in OUTCOMES)]
    return aligned([heads, *rows])
