"""Where the settings come from: the environment, or else the vault that SECRETS_VAULT names, or a
file for each in the folder that SECRETS_DIR names, or else `.env` in the project's folder."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic_settings
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource

from app.auth.errors import SettingsError
from app.vaults import client as vault


def _folder() -> Path:
    """The project that this file belongs to, from whichever folder the command was given; where
    only the package is installed, as in a container, the working directory."""
    project = Path(__file__).resolve().parents[3]
    return project if (project / "pyproject.toml").is_file() else Path.cwd()


FOLDER: Final = _folder()
"""What relative paths in the settings start from."""
ENV_FILE = FOLDER / ".env"

S = TypeVar("S", bound=BaseSettings)


def load(settings: type[S], **advice: str) -> S:
    """Raises SettingsError, in one line, if a setting is missing or malformed.

    `advice` says what to do where one is missing, by its name.
    """
    try:
        with reading():
            if url := secrets_vault():
                return settings(_env_file=None, **_Given(settings, vault.read(url))())
            if folder := secrets_dir():
                return settings(_secrets_dir=folder)
            return settings(_env_file=ENV_FILE)
    except ValidationError as error:
        # Without the inputs: an error must never show what a setting held.
        details = error.errors(include_url=False, include_context=False, include_input=False)
        problem = "; ".join(_described(each, advice) for each in details)
    except pydantic_settings.SettingsError as error:
        is_garbled = isinstance(error.__cause__, UnicodeDecodeError)
        problem = f"{error}; {'save it as UTF-8' if is_garbled else 'write it as JSON'}"
    # Raised out here so that no traceback leads back to the value.
    raise SettingsError(problem)


class _Given(EnvSettingsSource):
    """What a vault's secret says, as if it stood in the environment, which wins."""

    def __init__(self, settings: type[BaseSettings], secret: Mapping[str, str]) -> None:
        super().__init__(settings)
        self._secret = secret

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        return self._secret.get(key.upper()) if value is None else value, key, is_complex


def secrets_vault() -> str | None:
    """The URL of the secret that holds the settings.

    Raises SettingsError if a folder is to hold them as well.
    """
    url = os.environ.get("SECRETS_VAULT")
    if url and os.environ.get("SECRETS_DIR"):
        raise SettingsError("SECRETS_VAULT and SECRETS_DIR are both set; leave one of them out")
    return url


def secrets_dir() -> Path | None:
    """Where Docker or Kubernetes, or a vault's agent, has put a file for each setting.

    Raises SettingsError if there is no such folder.
    """
    if not (name := os.environ.get("SECRETS_DIR")):
        return None
    if not (folder := FOLDER / name).is_dir():
        raise SettingsError(f"SECRETS_DIR: there is no folder {folder}; mount it, or leave it out")
    return folder


@contextmanager
def reading() -> Generator[None]:
    """Raises SettingsError, in one line, if `.env` cannot be read."""
    try:
        # A pipe would be read once, and a folder not at all.
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
