"""The rule of access: authentication, and refusals."""

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
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
from app.auth.log import RECORD, RequestRecord
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS

logger = logging.getLogger(__name__)

CALLER: Final = "app.caller"
"""The entry of the ASGI scope for the caller: its `Key`, or the `Refusal` if none is valid."""
PRESENTED: Final = "app.presented"  # the digest of the presented key, or a Refusal
API: Final = "app.api"  # the GuardedAPI that has checked the key
MATCHED_ROUTE: Final = "app.matched_route"  # the guarded route of a refused request

_HEADER: Final = API_KEY_HEADER.lower().encode()
PROBLEM_JSON: Final = "application/problem+json"
_CHALLENGES: Final = {401: {"WWW-Authenticate": "APIKey"}}
POLICY_VIOLATION: Final = 1008


class KeyStore(Protocol):
    """The store of the keys, as the guard uses it."""

    has_scopes: bool
    """Whether keys differ in their scopes. If not, each has all, and no route may require one."""

    def cached(self, digest: bytes) -> Key | None:
        """Return the key with this SHA-256 digest if it is valid and the cache is current."""
        ...

    def may_exist(self, digest: bytes) -> bool:
        """Whether a key with this SHA-256 digest may exist. Makes no query."""
        ...

    async def lookup(self, digest: bytes) -> "Key | Refusal":
        """Return the key with this SHA-256 digest if it is valid; UNKNOWN if it never existed.

        Raises StoreUnavailableError if the store cannot decide.
        """
        ...

    async def is_reachable(self) -> bool:
        """Whether the store can check keys now."""
        ...

    def follow(self) -> AbstractAsyncContextManager[None]:
        """Keep the cached keys current while the service runs."""
        ...


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse({"detail": detail}, status, headers, media_type=PROBLEM_JSON)


# The same answer for every reason, so that it reveals nothing.
_stranger = problem(
    MISSING_KEY_STATUS, "Invalid or missing API Key", _CHALLENGES.get(MISSING_KEY_STATUS)
)
_out_of_reach = problem(503, "The keys are out of reach; try again", {"Retry-After": "1"})
_slow_down = problem(429, "Too many wrong API keys from your address", {"Retry-After": "1"})
_hang_up = WebSocketClose(POLICY_VIOLATION)
_is_refused: Final = ContextVar("is_refused", default=False)  # the current request
logging.getLogger("uvicorn.error").addFilter(  # an error for each WebSocket: Kludex/uvicorn#3138
    lambda record: not (_is_refused.get() and "without completing handshake" in f"{record.msg}")
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason of a refusal, for the log, and the answer, which hides it without a valid key.

    Use few reasons, because they are counted; `cause` has the details.
    """

    reason: str
    key_id: str = ""  # `id_of(digest)` for an unknown key
    answer: JSONResponse = _stranger
    limited: Key | None = None  # the valid key that a policy holds back
    cause: str = ""  # the log shows it instead of the reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or close a WebSocket whose server cannot send a response."""
        self.log(scope)
        await (self.answer if can_respond(scope) else _hang_up)(scope, receive, send)

    def log(self, scope: Scope) -> None:
        _is_refused.set(True)
        record = scope.get(RECORD) or RequestRecord("", "")  # without a GuardedAPI around it
        record.refusal, record.outcome = self.reason, "refused"
        if self.limited:
            record.key, (record.digest, _) = self.limited, scope[PRESENTED]
            record.outcome = "limited"
        span = trace.get_current_span()
        if not (logger.isEnabledFor(logging.INFO) or span.is_recording()):
            return
        path, reason = masked(scope["path"]), self.cause or self.reason
        # No router has seen the request, so its route is looked up here.
        record.route = route = route_of(scope)
        if span.is_recording():
            span.set_attributes({"caller.id": self.key_id, "caller.refusal": reason})
            if route:
                span.set_attribute("http.route", route)
                span.update_name(f"{record.method} {route}")
        whose = f" ({self.key_id})" if self.key_id else ""
        logger.info(
            *("Refused %s %r: %s%s.", scope["type"], path, reason, whose),
            extra={
                "reason": reason,
                "key_id": self.key_id,
                "path": path,
                "route": route,
                "client": record.client,
            },
        )


UNKNOWN: Final = Refusal("unknown key")
OUT_OF_REACH: Final = "keys out of reach"
UNENFORCED: Final = "a restriction that nothing enforces"
_SLOWED: Final = Refusal("too many wrong keys", answer=_slow_down)


def route_of(scope: Scope) -> str:
    """Return the declared path of the endpoint that matches a request: `/items/{id}`.

    Returns the path of the mount for a mounted application, and "" without a match.
    """
    api = scope.get(API, scope["app"])
    if "app_root_path" in scope:  # the value before a mount changed it
        scope = {**scope, "root_path": scope["app_root_path"]}
    partial = ""
    for route in iter_route_contexts(
        [scope[MATCHED_ROUTE]] if MATCHED_ROUTE in scope else api.routes
    ):
        try:
            match, _ = route.matches(scope)
        except Exception:  # such as too many digits in a number: routing fails too
            break
        if match is Match.FULL:
            return route.path_format or ""
        if match is Match.PARTIAL:
            partial = partial or route.path_format or ""
    return partial


def can_respond(scope: Scope) -> bool:
    return scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {})


def take_bearer(scope: Scope) -> None:
    """Let the credentials of `Authorization: Bearer` count as the header of the key."""
    scope["headers"] = [
        (_HEADER, value[7:].strip())
        if name == b"authorization" and value[:7].lower() == b"bearer "
        else (name, value)
        for name, value in scope["headers"]
    ]


def extract_key(scope: Scope) -> bytes:
    """Remove the secret from the request, so that no later code can show it. `authenticate` uses
    the digest, which stays in the scope. Returns the X-Request-ID."""
    headers = scope["headers"]
    if not isinstance(headers, list):  # ASGI allows any iterable
        headers = scope["headers"] = list(headers)
    secret, place, chunked, reason, id = None, 0, False, "", b""
    for index, (name, value) in enumerate(headers):  # one pass is fastest
        if name == _HEADER:
            if secret is not None:
                reason = "more than one key"
            elif chunked and "httptools" in sys.modules:
                # httptools appends the trailers of a chunked body to the headers.
                reason = "a key behind Transfer-Encoding, which may be a trailer"
            secret, place = value, index
        elif name == b"transfer-encoding":
            chunked = True
        elif name == b"x-request-id":
            id = value
    if reason:
        headers[:] = [header for header in headers if header[0] != _HEADER]
    elif secret is not None:
        del headers[place]
    if chunked:
        scope["headers"] = headers.copy()  # httptools appends later trailers to the old list
    if secret is None or reason:
        scope[PRESENTED] = Refusal(reason or "no key")
    else:
        if not (is_right := is_spelled_right(secret)):  # perhaps the prefixed spelling
            secret = canonical(secret)
            is_right = is_spelled_right(secret)
        scope[PRESENTED] = digest(secret), is_right
    return id


async def authenticate(
    scope: Scope, keys: KeyStore, attempts: FailedAttempts, policies: Sequence[Policy] = ()
) -> Admission | Refusal:
    """Check the key of a request: it must have exactly one key header with a valid secret, and
    every policy must admit it.

    Each secret, known or not, costs one digest and one lookup. An address with too many wrong keys
    gets 429 for every invalid key, without a lookup of unknown ones.
    """
    offered = scope[PRESENTED]
    if isinstance(offered, Refusal):
        return offered
    hashed, may_be_one = offered
    client = scope[RECORD].client
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
    """Ask the policies. A key with a restriction that no policy enforces is refused, so that
    removing a policy never widens a key."""
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
