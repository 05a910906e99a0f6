"""The settings of limits: RATE_LIMIT and VALKEY_URL."""

from typing import Annotated, Final

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from app.limits.limit import LIMIT_PATTERN, Limit, parse_limits

VALKEY_URL_FORM: Final = "write valkey://HOST:6379 or redis://HOST:6379"
_VALKEY = {
    "valkey": "valkey",
    "valkeys": "valkeys",  # with TLS
    "redis": "valkey",
    "rediss": "valkeys",
    "unix": "unix",
}


def _parse_rate_limit(text: str) -> tuple[Limit, ...]:
    try:
        limits = parse_limits(text.replace(",", " ").split())
    except ValueError:
        limits = None
    if limits is None or not all(limit.seconds for limit in limits):
        raise PydanticCustomError(
            "rate_limit", "write 600/minute, or 10/second,5000/hour; quotas are of single keys"
        )
    return limits


def _parse_valkey_url(text: str) -> str:
    scheme, _, rest = text.strip().partition(":")
    if scheme in _VALKEY and rest.startswith("//"):
        return f"{_VALKEY[scheme]}:{rest}"  # the client library parses the rest
    raise PydanticCustomError("valkey_url", VALKEY_URL_FORM)


RateLimit = Annotated[
    tuple[Limit, ...], NoDecode, PlainValidator(_parse_rate_limit), Field(exclude=True)
]
"""The default for keys without a sliding limit: 600/minute, or several with commas."""

ValkeyUrl = Annotated[
    str, NoDecode, PlainValidator(_parse_valkey_url), Field(repr=False, exclude=True)
]
"""The Valkey that counts limits. Without it they are counted where the keys are."""

# The fields of a key over HTTP.
_LimitText = Annotated[str, WithJsonSchema({"type": "string", "pattern": LIMIT_PATTERN})]
LimitTexts = Annotated[list[_LimitText], Field(description="As 600/minute, or 50000/month")]
NetworkTexts = Annotated[list[str], Field(description="As 10.0.0.0/8; from everywhere, if none")]
