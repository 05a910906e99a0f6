"""The service's settings: from the environment, or else from `.env` in the working directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.constants import COMMAND
from app.keys import Key, by_digest, parse_secrets

ENV_FILE = Path(".env")

FileVersion = tuple[int, ...]

MAKE_A_KEY = f"make a key with: uv run {COMMAND} keys create"


class SettingsError(Exception):
    """A setting is missing or malformed. Names it and the fix, never its value."""


def _parse_api_keys(text: str) -> dict[bytes, Key]:
    try:
        return by_digest(parse_secrets(text))
    except ValueError as error:
        raise PydanticCustomError("api_keys", f"{error}; {MAKE_A_KEY}") from None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", extra="ignore", hide_input_in_errors=True
    )

    # Comma-separated UUID4s. They become digests here, so that no secret outlives the parsing.
    api_keys: Annotated[
        dict[bytes, Key], NoDecode, PlainValidator(_parse_api_keys), Field(repr=False, exclude=True)
    ]
    # INFO tells why a request was refused, DEBUG also which key was let in.
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)
    ] = "INFO"

    # The state of `.env` before it was read; None if these settings were given by hand.
    _env_version: FileVersion | None = PrivateAttr(default=None)

    @property
    def env_version(self) -> FileVersion | None:
        return self._env_version


def env_version() -> FileVersion:
    """What changes whenever `.env` does."""
    try:
        status = ENV_FILE.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def load_settings() -> Settings:
    """Raises SettingsError, in one line, if a setting is missing or malformed."""
    version = env_version()
    try:
        with reading_env_file():
            settings = Settings()
        settings._env_version = version
        return settings
    except ValidationError as error:
        # Without the inputs: an error must never show what a setting held.
        details = error.errors(include_url=False, include_context=False, include_input=False)
    # Raised out here so that no traceback leads back to the value.
    raise SettingsError("; ".join(map(_describe, details)))


@contextmanager
def reading_env_file() -> Iterator[None]:
    """Turns what can go wrong into SettingsError."""
    problem = None
    try:
        yield
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); check its owner and mode"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text; save it as UTF-8"
    if problem:
        raise SettingsError(f"{ENV_FILE} {problem}")


def _describe(detail: ErrorDetails) -> str:
    name = f"{detail['loc'][0]}".upper()
    if detail["type"] == "missing":
        return f"{name} is not set; {MAKE_A_KEY}"
    return f"{name}: {detail['msg']}"
