"""Who gets in: the rule of access, and its refusals."""

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from opentelemetry import trace
from starlette.routing import Match
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.auth.access.clients import FailedAttempts
from app.auth.access.policy import Admission, Denial, Policy
from app.auth.errors import StoreUnavailableError
from app.auth.key import Key, canonical, digest, id_of, is_spelled_right, masked
from app.auth.log import RECORD
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS

logger = logging.getLogger(__name__)

CALLER: Final = "app.caller"
"""Where the ASGI scope of a request says who calls: a `Key`, or the `Refusal` of a stranger."""
PRESENTED: Final = "app.presented"  # what came in place of a key, until that is known
API: Final = "app.api"  # the application that was asked for the caller
MATCHED_ROUTE: Final = (
    "app.matched_route"  # the route of the application that a stranger is refused on
)

_HEADER: Final = API_KEY_HEADER.lower().encode()
PROBLEM_JSON: Final = "application/problem+json"
_CHALLENGES: Final = {401: {"WWW-Authenticate": "APIKey"}}
POLICY_VIOLATION: Final = 1008


class KeyStore(Protocol):
    """What the guard asks of the place that keeps the keys."""

    has_scopes: bool
    """Whether keys differ in their scopes. If not, each has all, and nothing can ask for one."""

    def cached(self, digest: bytes) -> Key | None:
        """The key with this SHA-256 digest, if it is in force and that is known right now."""
        ...

    def may_exist(self, digest: bytes) -> bool:
        """Whether a key may have this SHA-256 digest, for all that is known without asking."""
        ...

    async def lookup(self, digest: bytes) -> "Key | Refusal":
        """The key with this SHA-256 digest if it is in force; UNKNOWN if there never was one.

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
_hang_up = WebSocketClose(POLICY_VIOLATION)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller does not get in, for the log; and the answer, which does not tell a stranger.

    Reasons are few, for they are counted: what differs from one time to the next is the cause.
    """

    reason: str
    key_id: str = ""  # of an unknown key, that of its digest
    answer: JSONResponse = _stranger
    limited: Key | None = None  # the key is in force, but a policy holds it back
    cause: str = ""  # for the log, in place of the reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; on a WebSocket whose server cannot send a response, close the door."""
        self.log(scope)
        await (self.answer if can_respond(scope) else _hang_up)(scope, receive, send)

    def log(self, scope: Scope) -> None:
        record = scope.get(RECORD)
        if record:
            record.refusal = self.reason
            if self.limited:
                record.key, record.limited, (record.digest, _) = (
                    self.limited,
                    True,
                    scope[PRESENTED],
                )
        span = trace.get_current_span()
        if not (logger.isEnabledFor(logging.INFO) or span.is_recording()):
            return
        path, (client, _) = masked(scope["path"]), scope.get("client") or ("", 0)
        reason = self.cause or self.reason
        # No router has record the request, so nobody else can tell which endpoint it was meant for.
        route = route_of(scope)
        if record:
            record.route = route
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
UNENFORCED: Final = "a restriction that nothing enforces"
_SLOWED: Final = Refusal("too many wrong keys", answer=_slow_down)


def route_of(scope: Scope) -> str:
    """The path of the endpoint that a request is meant for, as it was declared: `/items/{id}`.

    Of a mounted application, that of the mount. Empty if there is none.
    """
    api = scope.get(API, scope["app"])
    if "app_root_path" in scope:  # as it was before a mount took a part of the path
        scope = {**scope, "root_path": scope["app_root_path"]}
    partial = ""
    for route in iter_route_contexts(
        [scope[MATCHED_ROUTE]] if MATCHED_ROUTE in scope else api.routes
    ):
        try:
            match, _ = route.matches(scope)
        except Exception:  # say, a number with too many digits: no router gets further either
            break
        if match is Match.FULL:
            return route.path_format or ""
        if match is Match.PARTIAL:
            partial = partial or route.path_format or ""
    return partial


def can_respond(scope: Scope) -> bool:
    return scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {})


def extract_key(scope: Scope) -> None:
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
        scope[PRESENTED] = Refusal(reason or "no key")
        return
    if b"-" not in secret:  # no UUID: one with a prefix, or none at all
        secret = canonical(secret)
    scope[PRESENTED] = digest(secret), is_spelled_right(secret)


async def authenticate(
    scope: Scope, keys: KeyStore, attempts: FailedAttempts, policies: Sequence[Policy] = ()
) -> Admission | Refusal:
    """The rule of access: exactly one key header, and its secret is known, has not ended, and
    every restriction of the key lets the request through.

    Every secret that arrives, known or not, costs one digest and one lookup; no lookup from an
    address that guesses: it gets 429 for every key that lets nobody in.
    """
    offered = scope[PRESENTED]
    if isinstance(offered, Refusal):
        return offered
    hashed, may_be_one = offered
    client, _ = scope.get("client") or ("", 0)
    slowed = attempts.are_too_many(client)
    if slowed and not keys.may_exist(hashed):
        attempts.add(client)
        return _SLOWED
    try:
        found = await keys.lookup(hashed)
        decision = await _admit(found, client, policies) if isinstance(found, Key) else found
    except StoreUnavailableError as error:
        return Refusal(OUT_OF_REACH, answer=_out_of_reach, cause=f"{error}")
    if isinstance(decision, Admission) or decision.limited:
        return decision
    attempts.add(client)
    if slowed:
        return _SLOWED
    if decision is UNKNOWN:
        return Refusal(UNKNOWN.reason, id_of(hashed)) if may_be_one else Refusal("not a key")
    return decision


async def _admit(key: Key, client: str, policies: Sequence[Policy]) -> Admission | Refusal:
    """A restriction that no policy enforces keeps everybody out: nobody widens a key by taking
    a policy away."""
    unenforced = key.restrictions.keys() - {policy.name for policy in policies}
    if unenforced:
        names = ", ".join(sorted(unenforced))
        return Refusal(UNENFORCED, key.id, cause=f"nothing here enforces its {names}")
    headers: list[tuple[bytes, bytes]] = []
    for policy in policies:
        if policy.concerns(key):
            verdict = await policy.admit(key, client)
            if isinstance(verdict, Denial):
                return _denied(key, verdict)
            headers += verdict
    return Admission(key, headers)


def _denied(key: Key, denial: Denial) -> Refusal:
    if denial.status is None:
        return Refusal(denial.reason, key.id, cause=denial.cause)
    answer = problem(denial.status, denial.detail)
    answer.raw_headers += denial.headers
    return Refusal(denial.reason, key.id, answer, key, denial.cause)
