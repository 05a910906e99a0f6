"""The settings for keys and logs."""

from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.auth.config.sources import FOLDER
from app.auth.key import PREFIX_PATTERN, digests, parse_secrets
from app.constants import COMMAND

# A pasted URL may name any driver; these are installed.
_DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}


def _parse_api_keys(text: str) -> frozenset[bytes]:
    try:
        return frozenset(digests(parse_secrets(text)))
    except ValueError as error:
        values = {"problem": f"{error}", "fix": f"uv run {COMMAND} keys create NAME"}
        raise PydanticCustomError("api_keys", "{problem}; make a key with: {fix}", values) from None


def _parse_url(text: str) -> URL:
    text = text.strip()
    if text.count("@") > 1 and not text.startswith("sqlite"):
        raise PydanticCustomError("database_url", "write %40 for an @ in a name or a password")
    try:
        url = make_url(text if unquote(text).isprintable() else "")
        url = url.set(drivername=_DRIVERS[url.get_backend_name()])
        for host in (url.host or "").split(","):
            host.encode("idna")  # the driver encodes it too
    except (ArgumentError, KeyError, ValueError):
        url = URL.create("")
    file = url.database or ":memory:"
    is_special = url.host or url.query or file == ":memory:" or file.startswith("file:")
    if url.drivername == "sqlite" and not is_special:
        return url.set(database=str(FOLDER / file))
    if url.drivername == "postgresql+psycopg" and (url.database or "service" in url.query):
        return url
    raise PydanticCustomError(
        "database_url",
        "write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        " (several hosts: /DATABASE?host=HOST:PORT&host=HOST:PORT)",
    )


def _parse_log_level(text: str) -> str:
    return "WARNING" if text.upper() == "WARN" else text.upper()


class AuthSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        validate_default=False,  # defaults are already parsed
    )

    # Comma-separated UUID4s, with every scope. Only their digests stay in memory.
    api_keys: Annotated[
        frozenset[bytes],
        NoDecode,
        PlainValidator(_parse_api_keys),
        Field(repr=False, exclude=True),
    ] = frozenset()
    # A relative path starts at the project folder.
    database_url: Annotated[
        URL,
        NoDecode,
        PlainValidator(_parse_url),
        Field(repr=False, exclude=True),
    ] = URL.create("sqlite", database=str(FOLDER / "keys.db"))
    # The prefix of new keys, as in acme_4fVt... Servers accept both spellings of a key.
    key_prefix: Annotated[str, Field(pattern=PREFIX_PATTERN)] = ""
    # Seconds for which a server trusts its cached keys. A revocation waits that long.
    key_max_staleness: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    # Whether `Authorization: Bearer KEY` counts as the header of the key.
    accept_bearer: bool = False
    # Whether what is told of a request names the owner of the key.
    show_owners: bool = False
    # INFO logs each request and each refusal.
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_parse_log_level)
    ] = "INFO"
    log_format: Annotated[Literal["text", "json", "own"], BeforeValidator(str.lower)] = "text"
