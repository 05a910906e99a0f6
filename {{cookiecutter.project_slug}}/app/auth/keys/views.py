"""What is told about keys, and what is asked for over HTTP."""

from datetime import date, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from app.auth.key import SCOPE_PATTERN
from app.limits.rates import LIMIT_PATTERN

OVERLAP: Final = timedelta(hours=24)
LONGEST: Final = timedelta(days=36_500)


class KeyView(BaseModel):
    """A key as it is shown. Times are in UTC."""

    id: str
    name: str
    scopes: list[str]
    limits: list[str]  # as 600/minute; the service has one for keys without
    networks: list[str]  # from where it may be used; from everywhere, if there are none
    status: Literal["active", "expired", "revoked"]
    created_by: str
    created_at: datetime
    issued_at: datetime  # its newest secret
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    # Of the old secret, while a rotation overlaps.
    old_key_expires_at: datetime | None
    old_key_last_used_at: datetime | None


class IssuedKey(KeyView):
    """A key with its new secret, which is never shown again."""

    key: str = Field(repr=False)


class EventView(BaseModel):
    at: datetime
    action: str
    actor: str
    key_id: str


class KeyUse(BaseModel):
    """How often a key got in, was refused for want of a scope, and by a limit."""

    id: str
    name: str
    served: int
    refused: int
    limited: int
    last_used_at: datetime | None


class SecretUse(BaseModel):
    created_at: datetime
    in_force: bool
    served: int
    refused: int
    limited: int


class PeriodOfUse(BaseModel):
    """An hour, or a day if that is more than a month ago."""

    starts_at: datetime
    hours: Literal[1, 24]
    served: int
    refused: int
    limited: int


class UsageView(KeyUse):
    since: datetime
    total: int
    by_secret: list[SecretUse]  # the newest first
    by_hour: list[PeriodOfUse]  # those in which anything happened, the oldest first


class DayOfUse(BaseModel):
    """Of one key, in UTC."""

    id: str
    day: date
    served: int = 0
    refused: int = 0
    limited: int = 0


class StrangerUse(BaseModel):
    """How often callers without a key in force were refused, by where they came from, and why."""

    network: str
    reason: str
    refused: int


class AllUsage(BaseModel):
    keys: list[KeyUse]
    strangers: list[StrangerUse]


class Finding(BaseModel):
    """What `doctor` has found; about the service as a whole if there is no id."""

    id: str
    name: str
    problem: str
    advice: str


def _written(value: object) -> str:
    if not isinstance(value, str):  # Pydantic takes numbers as well, in units of its own choice
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return value


Written = BeforeValidator(_written)
# Checked by the service, whose message says more.
Scope = Annotated[
    str, WithJsonSchema({"type": "string", "maxLength": 100, "pattern": SCOPE_PATTERN})
]
LimitText = Annotated[str, WithJsonSchema({"type": "string", "pattern": LIMIT_PATTERN})]


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="1 to 100 characters, all of them visible or spaces")
    scopes: list[Scope] = []
    limits: Annotated[list[LimitText], Field(description="As 600/minute, or 50000/month")] = []
    networks: Annotated[
        list[str], Field(description="As 10.0.0.0/8; from everywhere, if none")
    ] = []
    expires_at: Annotated[AwareDatetime, Written] | None = None


class Rotation(BaseModel):
    # If none is issued, one is dropped.
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "if": {"properties": {"issue": {"const": False}}, "required": ["issue"]},
            "then": {"properties": {"drop": {"type": "string"}}, "required": ["drop"]},
        },
    )

    overlap: Annotated[timedelta, Field(ge=timedelta(), le=LONGEST), Written] = OVERLAP
    drop: Literal["old", "new"] | None = None
    issue: StrictBool = Field(
        default=True, description="Whether to issue a new secret, or only `drop`"
    )


class Revocation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    force: StrictBool = False


class Page(BaseModel):
    items: list[KeyView]
    next: str | None = Field(description="The `after` of the next page")
