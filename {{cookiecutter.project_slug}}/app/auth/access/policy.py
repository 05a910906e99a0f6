"""The seam for everything that bounds a key beyond its scopes and its end."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from app.auth.key import Key

Headers = Sequence[tuple[bytes, bytes]]


class Admission(NamedTuple):
    """A caller who gets in, and headers for the answer."""

    caller: Key
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a policy keeps a caller with a valid key out.

    Reasons are few, because they are counted; `cause` has the details for the log. Without a
    status the caller gets the answer that strangers get.
    """

    reason: str
    cause: str = ""
    status: int | None = None
    detail: str = ""
    headers: Headers = field(default=())


class Policy(Protocol):
    """Enforces one restriction, which keys carry under this name."""

    name: str

    def parse(self, values: Sequence[str]) -> list[str]:
        """The values in their canonical form, as they are stored.

        Raises ValueError, in one line that names the form.
        """
        ...

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None:
        """Raises ValueError if a key bound by `inner` may do more than one bound by `outer`."""
        ...

    def concerns(self, key: Key) -> bool:
        """Whether `admit` is to be asked for this key."""
        ...

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        """Decides over one request from this address, and counts it.

        Raises StoreUnavailableError if nobody can tell.
        """
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """What the policy does while the service runs.

        Raises SettingsError at its beginning if it cannot keep its promise.
        """
        ...


class UsageSource(Protocol):
    """What a policy may ask of the store."""

    changes: int  # how often the keys have changed since the service started

    def now(self) -> float:
        """Seconds since the epoch, by a clock that does not go back."""
        ...

    async def used_since(self, key_id: str, since: datetime) -> int:
        """How many requests a key has sent since then, as far as that is written down.

        Raises StoreUnavailableError.
        """
        ...


def parse_restrictions(
    asked: Mapping[str, Sequence[str]], policies: Sequence[Policy]
) -> dict[str, list[str]]:
    """The restrictions in their canonical form, without empty ones. Raises ValueError."""
    known = {policy.name: policy for policy in policies}
    parsed = {}
    for name, values in asked.items():
        if name not in known:
            raise ValueError(f"Nothing here enforces {name!r}; install the part that does")
        parsed[name] = known[name].parse(values)
    return {name: values for name, values in parsed.items() if values}
