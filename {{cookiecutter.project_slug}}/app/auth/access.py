"""Who gets in: the rule of access, its refusals, and the caller that it lets in."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, Protocol

from fastapi import HTTPException, Security, WebSocketException, params
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from opentelemetry import trace
from starlette.requests import HTTPConnection
from starlette.routing import Match
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.auth.errors import StoreUnavailableError
from app.auth.guesses import Guesses
from app.auth.keys import Key, canonical, digest, id_of, is_spelled_right, masked
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS

logger = logging.getLogger(__name__)

CALLER: Final = "app.caller"
"""Where the ASGI scope of a request says who calls: a `Key`, or the `Refusal` of a stranger."""
OFFERED: Final = "app.offered"  # what came in place of a key, until that is known
API: Final = "app.api"  # the application that was asked for the caller
MEANT: Final = "app.meant"  # the route of the application that a stranger is refused on
SEEN: Final = "app.seen"  # what the log is going to tell; copies of the scope share it

_HEADER: Final = API_KEY_HEADER.lower().encode()
PROBLEM_JSON: Final = "application/problem+json"
_CHALLENGES: Final = {401: {"WWW-Authenticate": "APIKey"}}
_POLICY_VIOLATION: Final = 1008


class KeyStore(Protocol):
    """What the guard asks of the place that keeps the keys."""

    has_scopes: bool
    """Whether keys differ in their scopes. If not, each has all, and nothing can ask for one."""

    def recall(self, digest: bytes) -> Key | None:
        """The key with this SHA-256 digest, if it lets everybody in and that is known right now."""
        ...

    def knows(self, digest: bytes) -> bool:
        """Whether a key may have this SHA-256 digest, for all that is known without asking."""
        ...

    async def find(self, digest: bytes, client: str = "") -> "Key | Admission | Refusal":
        """The key with this SHA-256 digest if it lets somebody in who calls from this address;
        UNKNOWN if there never was one. Once a request: it counts.

        Raises StoreUnavailableError if nobody can tell.
        """
        ...

    async def is_reachable(self) -> bool:
        """Whether callers with a valid key get in, as far as the store is concerned."""
        ...

    def follow(self) -> AbstractAsyncContextManager[None]:
        """Keep up with the place that keeps the keys, for as long as the service runs."""
        ...


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse({"detail": detail}, status, headers, media_type=PROBLEM_JSON)


# One answer for every reason, so that a stranger learns nothing from it.
_stranger = problem(
    MISSING_KEY_STATUS, "Invalid or missing API Key", _CHALLENGES.get(MISSING_KEY_STATUS)
)
_out_of_reach = problem(503, "The keys are out of reach; try again", {"Retry-After": "1"})
_slow_down = problem(429, "Too many wrong API keys from your address", {"Retry-After": "1"})
_hang_up = WebSocketClose(_POLICY_VIOLATION)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller does not get in, for the log; and the answer, which does not tell a stranger.

    Reasons are few, for they are counted: what differs from one time to the next is the cause.
    """

    reason: str
    key_id: str = ""  # of an unknown key, that of its digest
    answer: JSONResponse = _stranger
    limited: Key | None = None  # whose key is in force, but has no request left
    cause: str = ""  # for the log, in place of the reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; on a WebSocket whose server cannot send a response, close the door."""
        self.log(scope)
        await (self.answer if _can_respond(scope) else _hang_up)(scope, receive, send)

    def log(self, scope: Scope) -> None:
        seen = scope.get(SEEN)
        if seen:
            seen.refusal = self.reason
            if self.limited:
                seen.key, seen.limited, (seen.digest, _) = self.limited, True, scope[OFFERED]
        span = trace.get_current_span()
        if not (logger.isEnabledFor(logging.INFO) or span.is_recording()):
            return
        path, (client, _) = masked(scope["path"]), scope.get("client") or ("", 0)
        reason = self.cause or self.reason
        # No router has seen the request, so nobody else can tell which endpoint it was meant for.
        route = route_of(scope)
        if seen:
            seen.route = route
        if span.is_recording():
            span.set_attributes({"api_key.id": self.key_id, "api_key.refusal": reason})
            if route:
                span.set_attribute("http.route", route)
                method = scope["method"] if scope["type"] == "http" else "WS"
                span.update_name(f"{method} {route}")
        whose = f" ({self.key_id})" if self.key_id else ""
        logger.info(
            *("Refused %s %r: %s%s.", scope["type"], path, reason, whose),
            extra={
                "reason": reason,
                "key_id": self.key_id,
                "path": path,
                "route": route,
                "client": client,
            },
        )


UNKNOWN: Final = Refusal("unknown key")
OUT_OF_REACH: Final = "keys out of reach"
_SLOWED: Final = Refusal("too many wrong keys", answer=_slow_down)


class Admission(NamedTuple):
    """A caller who gets in, and the headers that tell it of its limits."""

    caller: Key
    headers: Sequence[tuple[bytes, bytes]]


def route_of(scope: Scope) -> str:
    """The path of the endpoint that a request is meant for, as it was declared: `/items/{id}`.

    Of a mounted application, that of the mount. Empty if there is none.
    """
    api = scope.get(API, scope["app"])
    if "app_root_path" in scope:  # as it was before a mount took a part of the path
        scope = {**scope, "root_path": scope["app_root_path"]}
    partial = ""
    for route in iter_route_contexts([scope[MEANT]] if MEANT in scope else api.routes):
        try:
            match, _ = route.matches(scope)
        except Exception:  # say, a number with too many digits: no router gets further either
            break
        if match is Match.FULL:
            return route.path_format or ""
        if match is Match.PARTIAL:
            partial = partial or route.path_format or ""
    return partial


def _can_respond(scope: Scope) -> bool:
    return scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {})


def take_secret(scope: Scope) -> None:
    """Take the secret out of the request, so that nothing that runs later can show it.

    Its digest is what `authenticate` goes by.
    """
    headers = scope["headers"]
    if not isinstance(headers, list):  # ASGI asks for no more than an iterable
        headers = scope["headers"] = list(headers)
    secret, place, chunked, reason = None, 0, False, ""
    for index, (name, value) in enumerate(headers):  # one look at each takes the least time
        if name == _HEADER:
            if secret is not None:
                reason = "more than one key"
            elif chunked and "httptools" in sys.modules:
                # It puts the trailers of a chunked body behind the headers. A trailer is no header.
                reason = "a key behind Transfer-Encoding, which may be a trailer"
            secret, place = value, index
        elif name == b"transfer-encoding":
            chunked = True
    if reason:
        headers[:] = [header for header in headers if header[0] != _HEADER]
    elif secret is not None:
        del headers[place]
    if chunked:
        scope["headers"] = headers.copy()  # without the trailers that are still to come
    if secret is None or reason:
        scope[OFFERED] = Refusal(reason or "no key")
        return
    if b"-" not in secret:  # no UUID: one with a prefix, or none at all
        secret = canonical(secret)
    scope[OFFERED] = digest(secret), is_spelled_right(secret)


async def authenticate(scope: Scope, keys: KeyStore, guesses: Guesses) -> Key | Admission | Refusal:
    """The rule of access: exactly one key header, and its secret is known, has not ended, comes
    from where it may, and has a request left.

    Every secret that arrives, known or not, costs one digest and one lookup; no lookup from an
    address that guesses: it gets 429 for every key that lets nobody in.
    """
    offered = scope[OFFERED]
    if isinstance(offered, Refusal):
        return offered
    hashed, may_be_one = offered
    client, _ = scope.get("client") or ("", 0)
    slowed = guesses.are_many(client)
    if slowed and not keys.knows(hashed):
        guesses.add(client)
        return _SLOWED
    try:
        found = await keys.find(hashed, client)
    except StoreUnavailableError as error:
        return Refusal(OUT_OF_REACH, answer=_out_of_reach, cause=f"{error}")
    if not isinstance(found, Refusal) or found.limited:
        return found
    guesses.add(client)
    if slowed:
        return _SLOWED
    if found is UNKNOWN:
        return Refusal(UNKNOWN.reason, id_of(hashed)) if may_be_one else Refusal("not a key")
    return found


def refusal_without(scopes: Iterable[str], scope: Scope) -> Refusal | None:
    """What a caller with a valid key gets who lacks one of these scopes."""
    caller: Key = scope[CALLER]
    if lacking := caller.lacks(scopes):
        return _lacking(caller, lacking)
    return None


def _lacking(caller: Key, scope: str) -> Refusal:
    return Refusal(f"missing scope {scope}", caller.id, problem(403, f"Missing scope: {scope}"))


class MissingScopeError(HTTPException):
    """The same, from a dependency. FastAPI answers it, in mounted applications too."""

    def __init__(self, scope: str) -> None:
        super().__init__(403, f"Missing scope: {scope}", {"Content-Type": PROBLEM_JSON})


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
            if _can_respond(connection.scope):
                raise MissingScopeError(lacking)
            raise WebSocketException(_POLICY_VIOLATION)
        return caller


get_caller: Final = _CallerOfRequest()
"""The dependency behind `Caller` and `require`."""

Caller = Annotated[Key, Security(get_caller)]
"""The calling key, as an argument of a guarded endpoint: `async def endpoint(caller: Caller)`."""


def require(*scopes: str) -> params.Security:
    """For `dependencies=[require("reports:read")]`, of an endpoint or a whole router."""
    return params.Security(get_caller, scopes=scopes)


def scopes_of(dependant: Dependant) -> Iterator[str]:
    """The scopes that an operation, with all it depends on, asks for."""
    yield from dependant.own_oauth_scopes or ()
    for dependency in dependant.dependencies:
        yield from scopes_of(dependency)


PROBLEM_SCHEMA: Final = {
    "title": "KeyProblem",
    "type": "object",
    "properties": {"detail": {"type": "string"}},
    "required": ["detail"],
}


def described(description: str) -> dict[str, Any]:
    """An answer with PROBLEM_SCHEMA, for the OpenAPI document."""
    schema = {"$ref": "#/components/schemas/KeyProblem"}
    return {"description": description, "content": {PROBLEM_JSON: {"schema": schema}}}


RESPONSES: Final[dict[str, dict[str, Any]]] = {
    "403": described("Missing scope"),
    f"{MISSING_KEY_STATUS}": described(
        "Invalid or missing API key" + " or scope" * (MISSING_KEY_STATUS == 403)
    ),
    "429": described("Too many requests"),
    "503": described("The keys are out of reach"),
}
"""What every guarded operation may answer instead of its own, for the OpenAPI document."""
