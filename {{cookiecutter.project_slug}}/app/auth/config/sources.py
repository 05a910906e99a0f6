"""The sources of settings: the environment first, then one other source.

The other source is the vault that SECRETS_VAULT names, the folder with one file per setting that
SECRETS_DIR names, or else `.env` in the project folder.
"""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import pydantic_settings
from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource

from app.auth.errors import SettingsError


def _folder() -> Path:
    """The project folder, or the working directory if only the package is installed."""
    project = Path(__file__).resolve().parents[3]
    return project if (project / "pyproject.toml").is_file() else Path.cwd()


FOLDER: Final = _folder()
"""The base of relative paths in the settings."""
ENV_FILE = FOLDER / ".env"

NEVER_EMPTY: Final[set[str]] = set()  # settings that are refused if they are empty
NEVER_EMPTY.add("database_url")  # part: database

S = TypeVar("S", bound=BaseSettings)
Source = Callable[[str, type[BaseSettings]], Mapping[str, str | None]]
"""Takes the value of its variable and the settings class. Returns the values by their names.
Raises SettingsError."""


def load(settings: type[S], **advice: str) -> S:
    """Read the settings. Raises SettingsError, in one line, if one is missing or malformed.

    `advice` has the fix for a missing setting, by the name of the setting.
    """
    try:
        with reading():
            variable, source = chosen(), EnvSettingsSource(settings, env_ignore_empty=False)
            values = (
                SOURCES[variable](os.environ[variable], settings)
                if variable
                else dotenv_values(ENV_FILE, encoding="utf-8-sig")
            )
            source.env_vars = _given(values) | _given(source.env_vars)
            return settings(_env_file=None, **source())
    except ValidationError as error:
        # Leave out the inputs: an error must never show the value of a setting.
        details = error.errors(include_url=False, include_context=False, include_input=False)
        problem = "; ".join(_described(detail, advice) for detail in details)
    except pydantic_settings.SettingsError as error:
        problem = f"{error}; write it as JSON"
    # Raised outside the `except` block, so that no traceback contains the value.
    raise SettingsError(problem)


def _given(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Leave out empty values: Compose passes them for variables that nobody has set."""
    named = {name.lower(): value for name, value in values.items()}
    return {name: value for name, value in named.items() if value or name in NEVER_EMPTY}


def chosen() -> str | None:
    """The variable that names the source; None means `.env`.

    Raises SettingsError if two variables name a source.
    """
    named = [variable for variable in SOURCES if os.environ.get(variable)]
    if len(named) > 1:
        raise SettingsError(f"{' and '.join(named)} are both set; leave one of them out")
    return named[0] if named else None


def secrets_dir() -> Path | None:
    """The folder where Docker, Kubernetes or a vault agent puts one file per setting, if any.

    Raises SettingsError if the folder does not exist.
    """
    if not (name := os.environ.get("SECRETS_DIR")):
        return None
    if not (folder := FOLDER / name).is_dir():
        raise SettingsError(f"SECRETS_DIR: there is no folder {folder}; mount it, or leave it out")
    return folder


def _read_files(_: str, settings: type[BaseSettings]) -> dict[str, str]:
    fields = settings.model_fields.items()
    names = {f"{field.validation_alias or name}".lower() for name, field in fields}
    values = {}
    for file in (secrets_dir() or FOLDER).iterdir():
        if file.name.lower() in names and file.is_file():
            try:
                values[file.name] = file.read_text("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise SettingsError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    return values


def _refuse_vault(*_: object) -> dict[str, str]:
    # Without this refusal the service would start with keys that the operator did not choose.
    raise SettingsError(
        "SECRETS_VAULT is set, but the part vaults is missing; add it, or unset SECRETS_VAULT"
    )


SOURCES: Final[dict[str, Source]] = {
    "SECRETS_VAULT": _refuse_vault,  # the part vaults replaces it
    "SECRETS_DIR": _read_files,
}
"""Sources by the variable that configures them. Parts add theirs in `app/settings.py`."""


@contextmanager
def reading() -> Generator[None]:
    """Turn an error in reading a file into a SettingsError of one line."""
    try:
        # Reading a pipe empties it, and a folder cannot be read.
        if (ENV_FILE.exists() or ENV_FILE.is_symlink()) and not ENV_FILE.is_file():
            raise SettingsError(f"{ENV_FILE} is not a file; put the settings into one")
        yield
        return
    except OSError as error:
        file = error.filename or ENV_FILE
        problem = f"{file} cannot be read ({error.strerror}); check its owner and mode"
    except UnicodeDecodeError:
        problem = f"{ENV_FILE} is not UTF-8 text; save it as UTF-8"
    raise SettingsError(problem)


def _described(detail: ErrorDetails, advice: dict[str, str]) -> str:
    name = f"{detail['loc'][0]}"
    if detail["type"] == "missing":
        return f"{name.upper()} is not set; {advice.get(name, 'set it')}"
    return f"{name.upper()}: {detail['msg']}"
