"""The bodies of requests to `/api-keys` and of their answers."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

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
from app.auth.keys import views
from app.auth.keys.views import LONGEST, OVERLAP
from app.limits.settings import LimitTexts, NetworkTexts  # part: limits


class KeyView(BaseModel):
    """A key, without its secret. Times are in UTC."""

    id: str
    name: str
    scopes: list[str]
    limits: list[str] = []  # part: limits
    networks: list[str] = []  # part: limits
    owner: str
    note: str
    status: Literal["active", "paused", "expired", "revoked"]
    created_by: str
    created_at: datetime
    issued_at: datetime = Field(description="When its newest secret was issued")
    expires_at: datetime | None
    paused_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    old_key_expires_at: datetime | None = Field(
        description="The end of the old secret, while a rotation overlaps"
    )
    old_key_last_used_at: datetime | None

    @classmethod
    def of(cls, view: views.KeyView) -> Self:
        """Each restriction of the key is a field of its own."""
        return cls.model_validate({**view.restrictions, **view.model_dump()})


class IssuedKey(KeyView):
    """A key with its new secret, which is never shown again."""

    key: str = Field(repr=False)


class DayOfUse(BaseModel):
    """The use of one key on one day, in UTC."""

    id: str
    day: date
    served: int = 0
    refused: int = 0
    limited: int = 0


def _written(value: object) -> str:
    # Pydantic would also take numbers, in text too, and guess their unit.
    if not (isinstance(value, str) and value.strip("+-.0123456789")):
        raise PydanticCustomError("written", "Write it like 2030-12-31T23:59:59Z or P1D")
    return value


Written = BeforeValidator(_written)
# The service checks scopes, because its message says more than Pydantic's.
Scope = Annotated[
    str, WithJsonSchema({"type": "string", "maxLength": 100, "pattern": SCOPE_PATTERN})
]


_EMPTY: Final = {"scopes": (), "owner": "", "note": ""}
_RESTRICTIONS: Final[list[str]] = []
_RESTRICTIONS.extend(("limits", "networks"))  # part: limits
_NAME: Final = "1 to 100 characters, all of them visible or spaces"


class KeyPatch(BaseModel):
    """What changes of a key. What is absent stays, and null clears (RFC 7396)."""

    # The schema has no defaults: tools would fill them in, and clear what should stay.
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"note": "EU"}]})

    name: str = Field(default_factory=str, description=_NAME)
    scopes: list[Scope] | None = None
    limits: LimitTexts | None = None  # part: limits
    networks: NetworkTexts | None = None  # part: limits
    expires_at: Annotated[AwareDatetime, Written] | None = None
    owner: str | None = Field(default=None, description="Whose it is, as your own records say")
    note: str | None = None

    def fields(self, had: Mapping[str, Sequence[str]]) -> Any:
        """What the service sets, for a key that has had these restrictions."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        asked = {name: given.pop(name) or () for name in _RESTRICTIONS if name in given}
        fields = {name: _EMPTY.get(name) if it is None else it for name, it in given.items()}
        return {**fields, "restrictions": {**had, **asked}} if asked else fields


class NewKey(KeyPatch):
    """What is absent or null is empty: no scopes, no limits, no end."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "billing"}]})

    name: str = Field(description=_NAME)


class Rotation(BaseModel):
    # `issue: false` requires `drop`.
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"overlap": "P1D"}],  # without one, tools would fill in `drop`
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


class Pause(Revocation):
    """The same as of a revocation."""


class Page(BaseModel):
    items: list[KeyView]
    next: str | None = Field(description="The `after` of the next page")
