"""The interface for rules that bound a key beyond its scopes and its expiry."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from app.auth.key import Key

Headers = Sequence[tuple[bytes, bytes]]


class Admission(NamedTuple):
    """An accepted caller, and headers for the answer."""

    caller: Key
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """A policy's refusal of a valid key.

    Use few reasons, because they are counted; `cause` has the details for the log. Without a
    status the caller gets the same answer as a caller without a valid key.
    """

    reason: str
    cause: str = ""
    status: int | None = None
    detail: str = ""
    headers: Headers = field(default=())


class Policy(Protocol):
    """Enforces one restriction. Keys carry the restriction under `name`."""

    name: str

    def parse(self, values: Sequence[str]) -> list[str]:
        """Return the values in the canonical form in which they are stored.

        Raises ValueError, in one line that names the expected form.
        """
        ...

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None:
        """Raises ValueError if `inner` allows a key more than `outer` does."""
        ...

    def concerns(self, key: Key) -> bool:
        """Whether the guard must call `admit` for this key."""
        ...

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        """Decide on one request from this address, and count it.

        Raises StoreUnavailableError if no decision is possible. An attribute `headers` may describe
        the headers, as OpenAPI does.
        """
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """A context that the service enters at its start and leaves at its end.

        Raises SettingsError on entry if the policy cannot do its work. Without a lifespan the
        service never enters it.
        """
        ...

    def upgrade(self) -> bool:
        """Create what the policy keeps beside the keys. Returns whether anything was missing."""
        ...


def parse_restrictions(
    asked: Mapping[str, Sequence[str]], policies: Sequence[Policy]
) -> dict[str, list[str]]:
    """Return the restrictions in canonical form, without empty ones. Raises ValueError."""
    known = {policy.name: policy for policy in policies}
    parsed = {}
    for name, values in asked.items():
        if name not in known:
            raise ValueError(f"Nothing here enforces {name!r}; install the part that does")
        parsed[name] = known[name].parse(values)
    return {name: values for name, values in parsed.items() if values}
