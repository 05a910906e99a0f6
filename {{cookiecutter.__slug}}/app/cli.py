"""The command line: `keys list`, `create`, `rotate` and `revoke` work on the keys in `.env`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from app.env_file import edit_secrets
from app.keys import key_of, new_secret
from app.settings import SettingsError, load_settings

# Plain tracebacks: pretty ones can show local variables, and with them a key.
main = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
keys = typer.Typer(no_args_is_help=True)
main.add_typer(keys, name="keys", help="List, create, rotate and revoke the keys in .env.")

Id = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@main.callback()
def _commands() -> None:
    """Manage the service from the command line."""


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show the id of every key in force, never the key itself."""
    with _one_line_errors():
        ids = [key.id for key in load_settings().api_keys.values()]
    typer.echo(json.dumps([{"id": id} for id in ids]) if as_json else "\n".join(ids))


@keys.command()
def create(as_json: AsJson = False) -> None:
    """Add a key and show it, this once."""
    secret = new_secret()
    with _one_line_errors(), edit_secrets() as secrets:
        secrets.append(secret)
    _show(secret, as_json)


@keys.command()
def rotate(id: Id, as_json: AsJson = False) -> None:
    """Replace a key by a new one and show that, this once. The old one ends within a second."""
    secret = new_secret()
    with _one_line_errors(), edit_secrets() as secrets:
        _remove(id, secrets)
        secrets.append(secret)
    _show(secret, as_json)


@keys.command()
def revoke(id: Id, as_json: AsJson = False) -> None:
    """Remove a key. It ends within a second."""
    with _one_line_errors(), edit_secrets() as secrets:
        _remove(id, secrets)
    typer.echo(json.dumps({"id": id}) if as_json else f"Revoked {id}.")
    if not secrets:
        typer.echo("No key is left: nobody gets in until you create one.", err=True)


def _remove(id: str, secrets: list[str]) -> None:
    # All of them: a key that was listed twice must not survive its removal.
    kept = [secret for secret in secrets if key_of(secret).id != id]
    if len(kept) == len(secrets):
        raise SettingsError(f"No key has the id {id}; `keys list` shows the ids")
    secrets[:] = kept


def _show(secret: str, as_json: bool) -> None:
    id = key_of(secret).id
    typer.echo(json.dumps({"id": id, "key": secret}) if as_json else f"id:  {id}\nkey: {secret}")
    if not as_json:
        typer.echo("Keep the key now: it is not shown again.", err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (SettingsError, OSError) as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(1) from None
