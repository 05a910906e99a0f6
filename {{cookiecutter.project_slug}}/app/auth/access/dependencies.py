"""Dependencies of endpoints: the caller, and the required scopes."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

from fastapi import HTTPException, Security, WebSocketException, params
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.types import Scope

from app.auth.access.rule import (
    CALLER,
    POLICY_VIOLATION,
    PROBLEM_JSON,
    Refusal,
    can_respond,
    problem,
)
from app.auth.key import Key, masked
from app.constants import API_KEY_HEADER


def refusal_without(scopes: Iterable[str], scope: Scope) -> Refusal | None:
    """Return the refusal if the caller's key lacks one of these scopes."""
    caller: Key = scope[CALLER]
    if lacking := caller.lacks(scopes):
        return _lacking(caller, lacking)
    return None


def _lacking(caller: Key, scope: str) -> Refusal:
    return Refusal(f"missing scope {scope}", caller.id, problem(403, f"Missing scope: {scope}"))


class _CallerOfRequest(SecurityBase):
    def __init__(self) -> None:
        self.scheme_name = "APIKeyHeader"
        self.model = APIKey.model_validate({"name": API_KEY_HEADER, "in": APIKeyIn.header})

    async def __call__(self, connection: HTTPConnection, needed: SecurityScopes) -> Key:
        caller = connection.scope.get(CALLER)
        if not isinstance(caller, Key):
            path = masked(connection.scope["path"])
            raise RuntimeError(f"{path} asks for its caller: put it on a GuardedRouter")
        if lacking := caller.lacks(needed.scopes):
            _lacking(caller, lacking).log(connection.scope)
            if can_respond(connection.scope):
                headers = {"Content-Type": PROBLEM_JSON}
                raise HTTPException(403, f"Missing scope: {lacking}", headers)
            raise WebSocketException(POLICY_VIOLATION)
        return caller


get_caller: Final = _CallerOfRequest()
"""The dependency behind `Caller` and `require`."""

Caller = Annotated[Key, Security(get_caller)]
"""The calling key, as an argument of a guarded endpoint: `async def endpoint(caller: Caller)`."""


def require(*scopes: str) -> params.Security:
    """Require scopes: `dependencies=[require("reports:read")]` of an endpoint or a router."""
    return params.Security(get_caller, scopes=scopes)


def scopes_of(dependant: Dependant) -> Iterator[str]:
    """Yield the scopes that an operation and its dependencies require."""
    yield from dependant.own_oauth_scopes or ()
    for dependency in dependant.dependencies:
        yield from scopes_of(dependency)
