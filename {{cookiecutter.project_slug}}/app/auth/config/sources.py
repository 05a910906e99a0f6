"""The sources of settings: the environment first, then one other source.

The other source is the vault that SECRETS_VAULT names, the folder with one file per setting that
SECRETS_DIR names, or else `.env` in the project folder.
"""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic_settings
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from app.auth.errors import SettingsError


def _folder() -> Path:
    """The project folder, or the working directory if only the package is installed."""
    project = Path(__file__).resolve().parents[3]
    return project if (project / "pyproject.toml").is_file() else Path.cwd()


FOLDER: Final = _folder()
"""The base of relative paths in the settings."""
ENV_FILE = FOLDER / ".env"

S = TypeVar("S", bound=BaseSettings)
T = TypeVar("T")
Source = Callable[[str, type[BaseSettings]], dict[str, Any]]
"""Takes the value of its variable and the settings class. Returns the arguments for the class.
Raises SettingsError."""


def given(values: Mapping[str, T]) -> dict[str, T]:
    """Leave out empty values: Compose passes them for variables that nobody has set.

    An empty DATABASE_URL stays, to be refused: the default is another database.
    """
    return {name: value for name, value in values.items() if value != "" or name == "database_url"}


class _Files(SecretsSettingsSource):
    """The files in SECRETS_DIR, perhaps with the byte order mark that some editors write."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        text, key, is_complex = super().get_field_value(field, field_name)
        text = text and text.removeprefix("\ufeff").strip()
        return given({field_name: text}).get(field_name), key, is_complex


class SourcedSettings(BaseSettings):
    """Settings whose empty values count as not set, whatever their source."""

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8-sig",  # with or without a byte order mark
        extra="ignore",
        hide_input_in_errors=True,
        validate_default=False,  # defaults are already parsed
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        for source in (env_settings, dotenv_settings):
            if isinstance(source, EnvSettingsSource):
                source.env_vars = given(source.env_vars)
        if isinstance(file_secret_settings, SecretsSettingsSource):
            file_secret_settings = _Files(settings_cls, file_secret_settings.secrets_dir)
        return init_settings, env_settings, dotenv_settings, file_secret_settings


def load(settings: type[S], **advice: str) -> S:
    """Read the settings. Raises SettingsError, in one line, if one is missing or malformed.

    `advice` has the fix for a missing setting, by the name of the setting.
    """
    try:
        with reading():
            if variable := chosen():
                return settings(**SOURCES[variable](os.environ[variable], settings))
            return settings(_env_file=ENV_FILE)
    except ValidationError as error:
        # Leave out the inputs: an error must never show the value of a setting.
        details = error.errors(include_url=False, include_context=False, include_input=False)
        problem = "; ".join(_described(detail, advice) for detail in details)
    except pydantic_settings.SettingsError as error:
        is_garbled = isinstance(error.__cause__, UnicodeDecodeError)
        problem = f"{error}; {'save it as UTF-8' if is_garbled else 'write it as JSON'}"
    # Raised outside the `except` block, so that no traceback contains the value.
    raise SettingsError(problem)


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


def _refuse_vault(*_: object) -> dict[str, Any]:
    # Without this refusal the service would start with keys that the operator did not choose.
    raise SettingsError(
        "SECRETS_VAULT is set, but the part vaults is missing; add it, or unset SECRETS_VAULT"
    )


SOURCES: Final[dict[str, Source]] = {
    "SECRETS_VAULT": _refuse_vault,  # the part vaults replaces it
    "SECRETS_DIR": lambda *_: {"_secrets_dir": secrets_dir()},
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
