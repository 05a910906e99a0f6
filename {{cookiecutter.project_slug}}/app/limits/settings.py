"""The types of the settings RATE_LIMIT and VALKEY_URL."""

from typing import Annotated, Final

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from app.limits.rates import Limit, parse_limits

VALKEY_URL_FORM: Final = "write valkey://HOST:6379 or redis://HOST:6379"
_SCHEMES: Final = {
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
    if scheme in _SCHEMES and rest.startswith("//"):
        return f"{_SCHEMES[scheme]}:{rest}"  # the library of Valkey parses it
    raise PydanticCustomError("valkey_url", VALKEY_URL_FORM)


RateLimit = Annotated[
    tuple[Limit, ...], NoDecode, PlainValidator(_parse_rate_limit), Field(exclude=True)
]
"""The limit of each key that has none of its own: 600/minute, or several."""
ValkeyUrl = Annotated[
    str, NoDecode, PlainValidator(_parse_valkey_url), Field(exclude=True, repr=False)
]
"""The server where all instances count together. Without it each process counts for itself."""
