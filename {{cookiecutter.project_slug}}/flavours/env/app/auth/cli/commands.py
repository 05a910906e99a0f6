"""The command line: `keys list`, `create`, `rotate`, `revoke` and `scan` for the keys in `.env`."""

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app.auth.config import sources
from app.auth.config.settings import API_KEYS, MAKE_A_KEY
from app.auth.errors import SettingsError
from app.auth.key import canonical, digest, id_of, new_secret, with_prefix
from app.auth.store.env_file import MAX_AGE, edit_keys, wait_for_servers

keys = typer.Typer(no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command_line(load_settings: Callable[[], Any]) -> typer.Typer:
    """The command line with the group `keys`. You can add commands to it."""
    # Plain tracebacks: pretty ones can show local variables, and with them a key.
    main = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"obj": load_settings},
    )
    main.callback()(_prepare)
    main.add_typer(keys, name="keys", help="List, create, rotate and revoke the keys in .env.")
    return main


def _prepare() -> None:
    """Manage the service from the command line."""
    # Escape characters that the terminal cannot encode: a file may have any name.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


@keys.command("list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the id of every key in force, never the key itself."""
    with _one_line_errors():
        settings = ctx.obj()
        if not settings.api_keys:
            raise SettingsError(f"{API_KEYS} is not set; {MAKE_A_KEY}")
        ids = [id_of(digest) for digest in settings.api_keys]
        _print(json.dumps([{"id": id} for id in ids]) if as_json else "\n".join(ids))


@keys.command()
def create(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Add a key and show it, this once."""
    with _one_line_errors():
        new = with_prefix(new_secret(), ctx.obj().key_prefix)
        is_first = not sources.ENV_FILE.exists()
        edit_keys(lambda listed: [*listed, new], show=lambda: _show(new, as_json))
        if is_first:
            _note(f"{sources.ENV_FILE} is new.")


@keys.command()
def rotate(ctx: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Replace a key by a new one and show that, this once. Then no server accepts the old one."""
    with _one_line_errors():
        new = with_prefix(new_secret(), ctx.obj().key_prefix)
        edit_keys(lambda listed: [*_without(id, listed), new], show=lambda: _show(new, as_json))
        _wait()


@keys.command()
def revoke(id: Id, as_json: AsJson = False) -> None:
    """Remove a key. When this returns, no server accepts it any more."""
    with _one_line_errors():
        left = edit_keys(lambda listed: _without(id, listed))
        _wait()
        _print(json.dumps({"id": id}) if as_json else f"Revoked {id}.")
    if not left:
        _note("No key is left: nobody gets in until you create one.")


@keys.command()
def scan(
    ctx: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Text, logs, dumps; - is what you type or paste."),
    ],
    as_json: AsJson = False,
) -> None:
    """Look for keys in files; exit with 1 if there is one."""
    from app.auth.cli.scan import report

    with _one_line_errors():
        known = {digest: id_of(digest) for digest in ctx.obj().api_keys}
        found = report(files, lambda _: known, _print, as_json=as_json)
    raise typer.Exit(found)


def _id(key: str) -> str:
    return id_of(digest(canonical(key.encode())))


def _without(id: str, listed: list[str]) -> list[str]:
    # Remove every copy of a key that is listed twice.
    kept = [key for key in listed if _id(key) != id]
    if len(kept) == len(listed):
        raise SettingsError(f"No key has the id {id}; `keys list` shows the ids")
    return kept


def _wait() -> None:
    _note(f"Waiting {MAX_AGE:g} s: then no server accepts it any more.")
    wait_for_servers()


def _show(key: str, as_json: bool) -> None:
    id = _id(key)
    _print(json.dumps({"id": id, "key": key}) if as_json else f"id:  {id}\nkey: {key}")
    if not as_json:
        _note("Keep the key now: it is not shown again.")


def _print(text: str) -> None:
    """Raises SettingsError if standard output does not take it."""
    try:
        typer.echo(text)  # flushes
    except OSError as error:
        sys.stdout = None  # or Python flushes at exit, and prints a traceback
        raise SettingsError(f"The output cannot be written: {error.strerror}") from None


def _note(text: str) -> None:
    """Write a message for people. A command does not fail if this fails."""
    try:
        typer.echo(text, err=True)
    except OSError:
        sys.stderr = None  # or Python flushes at exit, and exits with 120


@contextmanager
def _one_line_errors() -> Generator[None]:
    try:
        if sys.stdout is None:
            raise SettingsError("Standard output is closed: nothing could be shown. Open it")
        yield
    except SettingsError as error:
        _note(f"{error}")
        raise typer.Exit(1) from None
