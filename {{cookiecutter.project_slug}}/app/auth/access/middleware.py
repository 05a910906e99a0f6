"""The guard: it checks the key before other code reads or handles the request."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from opentelemetry import trace
from opentelemetry.context import get_current
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.access.clients import FailedAttempts
from app.auth.access.policy import Admission, Policy
from app.auth.access.rule import (
    API,
    CALLER,
    MATCHED_ROUTE,
    PRESENTED,
    KeyStore,
    Refusal,
    authenticate,
)
from app.auth.access.selfcheck import FaultyRoutes
from app.auth.key import Key, masked
from app.auth.log import RECORD


class Guard:
    """Middleware that checks the key, once per request."""

    def __init__(self, app: ASGIApp, api: Any) -> None:  # a GuardedAPI
        self._app, self._api = app, api
        self._keys: KeyStore = api.keys
        self._policies: Sequence[Policy] = api.policies
        self._attempts = FailedAttempts()
        self._faulty_routes = FaultyRoutes(api)
        # Without a route, a caller without a key gets 404, or the answer of your handler for it.
        self._not_found = ExceptionMiddleware(
            APIRouter(redirect_slashes=False), api.exception_handlers
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        caller = scope.get(CALLER)
        if caller is None:
            record, offered = scope[RECORD], scope[PRESENTED]
            record.scope = scope  # the one that the router writes to
            # The fast path: a cached key that no policy restricts.
            if not (
                isinstance(offered, tuple)
                and (caller := self._keys.cached(offered[0]))
                and not caller.restrictions
                and not [policy for policy in self._policies if policy.concerns(caller)]
            ):
                caller = await authenticate(scope, self._keys, self._attempts, self._policies)
                if isinstance(caller, Admission):
                    caller, record.headers = caller
            if isinstance(caller, Key):
                record.key, record.digest = caller, offered[0]
            scope[CALLER], scope[API] = caller, self._api
            if get_current():  # empty unless OpenTelemetry is set up
                _describe(trace.get_current_span(), caller)
        elif scope[API].keys is not self._keys:
            raise RuntimeError("A GuardedAPI lies in one that asks other keys, and took the key")
        answer = self._app if isinstance(caller, Key) else self._answer_for(caller, scope)
        if answer is self._app:
            self._faulty_routes.refuse(scope)
        await answer(scope, receive, send)

    def _answer_for(self, refusal: Refusal, scope: Scope) -> ASGIApp:
        route = self._api.route_for(scope)
        if route is None:
            scope["router"] = self._api.router
            return self._not_found
        if self._api.is_public(route):
            return self._app
        scope[MATCHED_ROUTE] = route
        return refusal


def _describe(span: trace.Span, caller: Key | Refusal) -> None:
    """Name the caller, and mask keys in what others have recorded of the request."""
    if not span.is_recording():
        return
    name = getattr(span, "name", "")
    if masked(name) != name:
        span.update_name(masked(name))
    for name, value in dict(getattr(span, "attributes", None) or {}).items():
        if isinstance(value, str) and masked(value) != value:
            span.set_attribute(name, masked(value))
    if isinstance(caller, Key):
        span.set_attribute("caller.id", caller.id)
