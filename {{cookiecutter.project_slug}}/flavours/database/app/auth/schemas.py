"""What is told about keys, and what is asked for over HTTP."""

from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

OVERLAP: Final = timedelta(hours=24)
LONGEST: Final = timedelta(days=36_500)


class KeyView(BaseModel):
    """A key as it is shown. Times are in UTC."""

    id: str
    name: str
    scopes: list[str]
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


class Finding(BaseModel):
    """What `doctor` has found; about the service as a whole if there is no id."""

    id: str
    name: str
    problem: str
    advice: str


class Problem(BaseModel):
    detail: str


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    scopes: list[str] = []
    expires_at: AwareDatetime | None = None


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overlap: Annotated[timedelta, Field(ge=timedelta(), le=LONGEST)] = OVERLAP
    drop: Literal["old", "new"] | None = None
    issue: bool = Field(default=True, description="Whether to issue a new secret, or only `drop`")


class Revocation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    force: bool = False


class Page(BaseModel):
    items: list[KeyView]
    next: str | None = Field(description="The `after` of the next page")
