"""Where settings come from: the environment first, then one source.

The source is a vault if SECRETS_VAULT names one, a folder with a file for each setting if
SECRETS_DIR names one, and otherwise `.env` in the project's folder.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic_settings
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings

from app.auth.errors import SettingsError


def _folder() -> Path:
    """The project of this file; the working directory if only the package is installed."""
    project = Path(__file__).resolve().parents[3]
    return project if (project / "pyproject.toml").is_file() else Path.cwd()


FOLDER: Final = _folder()
"""Relative paths in the settings start here."""
ENV_FILE = FOLDER / ".env"

S = TypeVar("S", bound=BaseSettings)
Source = Callable[[str, type[BaseSettings]], dict[str, Any]]
"""Gets the value of its variable and the class of the settings. Returns the arguments to make the
settings with. Raises SettingsError."""


def load(settings: type[S], **advice: str) -> S:
    """Raises SettingsError, in one line, if a setting is missing or malformed.

    `advice` says what to do about a missing setting, by its name.
    """
    try:
        with reading():
            if variable := chosen():
                return settings(**SOURCES[variable](os.environ[variable], settings))
            return settings(_env_file=ENV_FILE)
    except ValidationError as error:
        # Without the inputs: an error must never show the value of a setting.
        details = error.errors(include_url=False, include_context=False, include_input=False)
        problem = "; ".join(_described(each, advice) for each in details)
    except pydantic_settings.SettingsError as error:
        is_garbled = isinstance(error.__cause__, UnicodeDecodeError)
        problem = f"{error}; {'save it as UTF-8' if is_garbled else 'write it as JSON'}"
    # Raised out here, so that no traceback leads back to the value.
    raise SettingsError(problem)


def chosen() -> str | None:
    """The variable that names the source; None means `.env`.

    Raises SettingsError if two variables name one.
    """
    named = [variable for variable in SOURCES if os.environ.get(variable)]
    if len(named) > 1:
        raise SettingsError(f"{' and '.join(named)} are both set; leave one of them out")
    return named[0] if named else None


def secrets_dir() -> Path | None:
    """The folder where Docker, Kubernetes or the agent of a vault puts a file for each setting.

    Raises SettingsError if there is no such folder.
    """
    if not (name := os.environ.get("SECRETS_DIR")):
        return None
    if not (folder := FOLDER / name).is_dir():
        raise SettingsError(f"SECRETS_DIR: there is no folder {folder}; mount it, or leave it out")
    return folder


def _refuse_vault(*_: object) -> dict[str, Any]:
    # Without this line the service would start with other keys than the operator meant.
    raise SettingsError(
        "SECRETS_VAULT is set, but the part vaults is missing; add it, or unset SECRETS_VAULT"
    )


SOURCES: Final[dict[str, Source]] = {
    "SECRETS_VAULT": _refuse_vault,  # the part vaults replaces it
    "SECRETS_DIR": lambda *_: {"_secrets_dir": secrets_dir()},
}
"""By the environment variable that names the place. Parts add theirs in `app/settings.py`."""


@contextmanager
def reading() -> Generator[None]:
    """Raises SettingsError, in one line, if `.env` cannot be read."""
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
