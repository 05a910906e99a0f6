"""The settings for keys and logs."""

import os
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.auth.key import PREFIX_PATTERN, digests, parse_secrets
from app.constants import COMMAND

API_KEYS: Final = "API_KEYS"
MAKE_A_KEY: Final = f"make a key with: uv run {COMMAND} keys create"


def in_environment() -> bool:
    """Whether the environment sets API_KEYS, in any case. It overrides files and vaults."""
    return any(name.upper() == API_KEYS and value for name, value in os.environ.items())


def _parse_api_keys(text: str) -> tuple[bytes, ...]:
    try:
        return tuple(digests(parse_secrets(text)))
    except ValueError as error:
        values = {"problem": f"{error}"}
        raise PydanticCustomError(
            "api_keys", "{problem}; correct it, or take it out", values
        ) from None


def _parse_log_level(text: str) -> str:
    return "WARNING" if text.upper() == "WARN" else text.upper()


class AuthSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        validate_default=False,  # defaults are already parsed
    )

    # Comma-separated UUID4s. Only their digests stay in memory.
    api_keys: Annotated[
        tuple[bytes, ...],
        NoDecode,
        PlainValidator(_parse_api_keys),
        Field(repr=False, exclude=True),
    ] = ()
    # The prefix of new keys, as in acme_4fVt... Servers accept both spellings of a key.
    key_prefix: Annotated[str, Field(pattern=PREFIX_PATTERN)] = ""
    # Whether `Authorization: Bearer KEY` counts as the header of the key.
    accept_bearer: bool = False
    # INFO logs each request and each refusal.
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_parse_log_level)
    ] = "INFO"
    log_format: Annotated[Literal["text", "json", "own"], BeforeValidator(str.lower)] = "text"
    # Seconds for which the last answer of an unreachable vault is trusted.  # part: vaults
    vault_max_staleness: Annotated[float, Field(ge=20, le=86_400)] = 60.0  # part: vaults

    _may_change: bool = PrivateAttr(default=False)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._may_change = "_env_file" in values and not in_environment()

    @property
    def may_change(self) -> bool:
        """Whether the keys come from a file or a vault, which may change while the service runs."""
        return self._may_change
