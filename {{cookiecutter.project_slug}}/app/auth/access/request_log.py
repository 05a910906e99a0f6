"""What every request gets: an id, default headers of its answer, and its line in the log."""

import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import cached_property, lru_cache
from random import Random
from time import perf_counter
from typing import Any, Final

from fastapi.routing import iter_route_contexts
from starlette.types import Message, Scope, Send

from app.auth.access.clients import address_of
from app.auth.access.policy import Headers
from app.auth.access.rule import PRESENTED, KeyStore, route_of
from app.auth.key import canonical, digest, imported_in, masked, spelled_in
from app.auth.log import RECORD, Observer, RequestRecord, request_id

logger = logging.getLogger("app.requests")

_BELIEVED: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Defaults: a header that the answer has already stays.
_HEADERS: Final = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_NAMES: Final = frozenset({b"x-request-id", *(name for name, _ in _HEADERS)})
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_NO_STORE: Final = (b"cache-control", b"no-store")
_FOR_WHOM: Final = re.compile(rb"private|public|s-maxage|no-store", re.IGNORECASE)


class RequestLog:
    """The log of an application.

    `probes` are paths whose successful requests have a line at the level DEBUG alone.
    """

    def __init__(
        self, api: Any, observers: Iterable[Observer], probes: Iterable[str], show_owners: bool
    ) -> None:
        self.api, self.observers, self.probes = api, list(observers), frozenset(probes)
        self.show_owners = show_owners

    @cached_property  # at the first request, for a process may fork before it
    def bits(self) -> Callable[[int], int]:
        """Ids need only be unique, so the system's random source starts them."""
        return Random().getrandbits  # noqa: S311 - an id is no secret

    @cached_property
    def _paths(self) -> dict[int, str]:
        """Declared paths, by the id() of the route."""
        contexts = list(iter_route_contexts(self.api.routes))
        times = Counter(id(context.original_route) for context in contexts)
        return {
            id(context.original_route): context.path_format or ""
            for context in contexts
            if times[id(context.original_route)] == 1
        }

    def path_of(self, scope: Scope) -> str:
        return self._paths.get(id(scope.get("route"))) or route_of(scope)


class Exchange(RequestRecord):
    """A request and its answer. The guard fills in who calls."""

    headers: Headers = ()  # of the policies
    _has_line = False

    def __init__(self, log: RequestLog, scope: Scope, id: bytes, send: Send) -> None:
        self._began_at = perf_counter()
        client = scope.get("client")
        self.client = _address(client[0][:64]) if client else ""  # no address is longer
        self.method = "WS" if scope["type"] == "websocket" else _shown(scope["method"])
        self.scope, self._log, self._send = scope, log, send
        self.id = (id and _believed(id, scope, log.api.keys)) or f"{log.bits(64):016x}"
        self._id_before = request_id.set(self.id)
        scope[RECORD] = self

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.body":
            if not message.get("more_body"):
                self._tell()
        elif kind == "http.response.start" or kind == "websocket.http.response.start":
            self._begin(message["status"])
            message["headers"] = self._with_headers(message.get("headers", ()))
        elif kind == "websocket.accept":
            self._begin(101)
        elif kind == "websocket.close" and not self.status:
            self._begin(403)  # the status that the server sends
        return self._send(message)

    def end(self) -> None:
        if not self.status:  # there was no answer
            self._begin(0)
        if not self._has_line:
            self._tell()
        request_id.reset(self._id_before)
        del self.scope, self._send  # they hold this: a cycle waits for the garbage collector

    def _begin(self, status: int) -> None:
        self.status, self.seconds = status, perf_counter() - self._began_at
        if self.route is None:
            self.route = self._log.path_of(self.scope)
        for observe in self._log.observers:
            observe(self)

    def _with_headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Add the default headers, and keep shared caches from storing an answer to a caller.

        As with an Authorization header, a shared cache may store it only if the endpoint
        explicitly says `public` or `s-maxage`.
        """
        headers = [*given, *self.headers]
        names = dict(headers)
        if self.key and b"cache-control" not in names:
            headers.append(_NO_STORE)
        elif self.key:
            for place, (name, value) in enumerate(headers):
                if name == b"cache-control" and not _FOR_WHOM.search(value):
                    headers[place] = name, b"private, " + value
        added = [*_HEADERS, (b"x-request-id", self.id.encode())]
        if not _NAMES.isdisjoint(names):
            added = [header for header in added if header[0] not in names]
        return headers + added

    def _tell(self) -> None:
        """Write the line, once."""
        self._has_line = True
        level = logging.INFO
        if self.scope["path"] in self._log.probes and 0 < self.status < 400:
            level = logging.DEBUG
        if not logger.isEnabledFor(level):
            return
        milliseconds = 1000 * (perf_counter() - self._began_at)
        key_id = self.key.id if self.key else ""
        owner = masked(self.key.owner) if self.key and self._log.show_owners else ""
        line = logger.makeRecord(  # `logger.log` would search the stack for the caller of it
            *(logger.name, level, __file__, 0, "%s %s %s %d in %.1f ms%s"),
            (
                self.client or "-",
                self.method,
                self.route or repr(masked(self.scope["path"])),
                self.status,
                milliseconds,
                (key_id and f", key {key_id}") + (owner and f" of {owner}"),
            ),
            None,
        )
        vars(line).update(
            client=self.client,
            method=self.method,
            route=self.route,
            status=self.status,
            duration_ms=round(milliseconds, 1),
            key_id=key_id,
        )
        if owner:
            line.owner = owner
        logger.handle(line)


def _shown(method: str) -> str:
    return method if method in _METHODS else masked(method)


@lru_cache(10_000)
def _address(client: str) -> str:
    return f"{address_of(client) or ''}"


def _believed(sent: bytes, scope: Scope, keys: KeyStore) -> str:
    """Return the caller's X-Request-ID, or nothing if that is malformed or holds a key."""
    id = sent.decode("latin-1")
    if not _BELIEVED.fullmatch(sent) or any(_is_key(text, scope, keys) for text in spelled_in(id)):
        return ""
    return "" if any(imported_in(id, 64)) else id


def _is_key(text: str, scope: Scope, keys: KeyStore) -> bool:
    hashed = digest(canonical(text.encode()).lower())
    offered = scope[PRESENTED]
    return (isinstance(offered, tuple) and offered[0] == hashed) or keys.may_exist(hashed)
