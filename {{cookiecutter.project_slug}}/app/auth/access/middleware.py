"""The guard: it checks the key before other code reads or handles the request."""

import re
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, Protocol

from fastapi import APIRouter
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.access.clients import FailedAttempts
from app.auth.access.policy import Admission, Headers, Policy
from app.auth.access.rule import API, CALLER, MATCHED_ROUTE, PRESENTED, KeyStore, authenticate
from app.auth.key import Key
from app.auth.log import RECORD

_NO_STORE: Final = (b"cache-control", b"no-store")
_FOR_WHOM: Final = re.compile(rb"private|public|s-maxage|no-store", re.IGNORECASE)


class Application(Protocol):
    """The application, as the guard uses it."""

    @property
    def keys(self) -> KeyStore: ...

    @property
    def policies(self) -> Sequence[Policy]: ...

    @property
    def router(self) -> APIRouter: ...

    @property
    def exception_handlers(self) -> Mapping[Any, Any]: ...

    def route_for(self, scope: Scope) -> BaseRoute | None:
        """Return the route that will handle the request, if any."""
        ...

    def is_public(self, route: BaseRoute) -> bool: ...


class Guard:
    """Middleware that checks the key, once per request."""

    def __init__(self, app: ASGIApp, api: Application) -> None:
        self._app, self._api, self._keys, self._policies = app, api, api.keys, api.policies
        self._failed_attempts = FailedAttempts()
        # Without a route, a caller without a key gets 404, or the answer of your handler for it.
        self._not_found = ExceptionMiddleware(
            APIRouter(redirect_slashes=False), api.exception_handlers
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # The fast path: a cached key without restrictions needs no coroutine of its own.
        offered = scope.get(PRESENTED)
        if (
            isinstance(offered, tuple)
            and (caller := self._keys.cached(offered[0]))
            and not (caller.restrictions or self._concerns(caller))
        ):
            return self._let_in(caller, scope, receive, _not_stored(send))
        return self._decide(scope, receive, send)

    def _concerns(self, caller: Key) -> bool:
        return any(policy.concerns(caller) for policy in self._policies)

    def _let_in(self, caller: Key, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope[CALLER], scope[API] = caller, self._api
        if record := scope.get(RECORD):
            record.key, (record.digest, _) = caller, scope[PRESENTED]
        return self._app(scope, receive, send)

    async def _decide(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        caller = scope.get(CALLER)
        if caller is None:
            decision = await authenticate(scope, self._keys, self._failed_attempts, self._policies)
            if isinstance(decision, Admission):
                with_headers = _not_stored(send, decision.headers)
                await self._let_in(decision.caller, scope, receive, with_headers)
                return
            caller = decision
            scope[CALLER], scope[API] = caller, self._api
        elif scope[API].keys is not self._keys:
            raise RuntimeError("A GuardedAPI lies in one that asks other keys, and took the key")
        if isinstance(caller, Key):
            await self._app(scope, receive, send)
            return
        route = self._api.route_for(scope)
        if route is None:
            scope["router"] = self._api.router
            await self._not_found(scope, receive, send)
        elif self._api.is_public(route):
            await self._app(scope, receive, send)
        else:
            scope[MATCHED_ROUTE] = route
            await caller(scope, receive, send)


def _not_stored(send: Send, more: Headers = ()) -> Send:
    """Add the headers, and keep shared caches from storing the answer.

    As with an Authorization header, a shared cache may store it only if the endpoint explicitly
    says `public` or `s-maxage`.
    """

    def send_not_stored(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *more]
            for place, (name, value) in enumerate(headers):
                if name == b"cache-control":
                    if not _FOR_WHOM.search(value):
                        private = (name, b"private, " + value)
                        headers[place] = private
                    break
            else:
                headers.append(_NO_STORE)
            message["headers"] = headers
        return send(message)

    return send_not_stored
