"""Metrics for Prometheus: requests, their duration, the use of each key, and refusals.

Labels come only from declared routes, existing key ids and fixed reason codes, never from request
data, so callers cannot create new time series.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Final

from fastapi import HTTPException, Request, Response
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.auth import GuardedRouter, require
from app.auth.access.rule import OUT_OF_REACH
from app.auth.errors import SettingsError
from app.auth.log import RequestRecord
from app.auth.store.cache import DatabaseKeyStore

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where several processes store their counts
_KINDS: Final = ("counter_", "gauge_", "histogram_", "summary_")  # how its files' names begin
MOST_KEYS: Final = 10_000  # any further key counts under `others`
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"})
_BUCKETS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds

disable_created_metrics()  # they would double the series
_ours: Final = CollectorRegistry()  # an open exporter of yours must not publish these
_requests = Counter(
    "api_requests", "Requests that were answered", ["route", "method", "status"], registry=_ours
)
_seconds = Histogram(
    "api_request_seconds",
    "Seconds until the answer began, of requests that were not refused",
    ["route"],
    buckets=_BUCKETS,
    registry=_ours,
)
_uses = Counter(
    "api_key_requests", "Requests with a key in force", ["key_id", "outcome"], registry=_ours
)
_refusals = Counter("api_key_refusals", "Requests that were refused", ["reason"], registry=_ours)
_keys: Final[set[str]] = set()  # the ids that have a series

_AT_ONCE: Final = 1 if FOLDER in os.environ else 100  # requests
_waiting: Final = deque[tuple[tuple[str, str, int], str, str, str, float]]()  # to be counted

# Looking up a series takes longer than counting, so these functions cache it.


@cache
def _add_request(route: str, method: str, status: int) -> Callable[[], None]:
    return _requests.labels(route, method, status).inc


@cache
def _add_seconds(route: str) -> Callable[[float], None]:
    return _seconds.labels(route).observe


@lru_cache(3 * MOST_KEYS)
def _add_use(key_id: str, outcome: str) -> Callable[[], None]:
    if key_id not in _keys and len(_keys) < MOST_KEYS:
        _keys.add(key_id)
    return _uses.labels(key_id if key_id in _keys else "others", outcome).inc


@cache
def _add_refusal(reason: str) -> Callable[[], None]:
    return _refusals.labels(reason).inc


def observe(record: RequestRecord) -> None:
    """Count a request. Counting many at a time is faster, but other processes cannot wait."""
    key_id, outcome = (record.key.id, record.outcome) if record.key else ("", "")
    method = record.method if record.method in _METHODS else "other"
    request = (record.route or "", method, record.status)
    _waiting.append((request, key_id, outcome, record.refusal, record.seconds))
    if len(_waiting) >= _AT_ONCE:
        count_waiting()


def count_waiting() -> None:
    while _waiting:
        request, key_id, outcome, refusal, seconds = _waiting.popleft()
        _add_request(*request)()
        if key_id:
            _add_use(key_id, outcome)()
        if refusal:
            _add_refusal(refusal)()
        else:
            _add_seconds(request[0])(seconds)


def prepare() -> None:
    """Check the folder that several processes share. Raises SettingsError if it is not writable, or
    has other files: the library would read these too, even a database."""
    folder = os.environ.get(FOLDER)
    if folder is not None:
        _check(folder)
    # This series exists from the start, because Prometheus sees no growth in a series' first value.
    _refusals.labels(OUT_OF_REACH)


def _check(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        theirs = all(path.name.startswith(_KINDS) for path in Path(folder).iterdir())
    except OSError:
        theirs = False
    if not (folder and theirs and os.access(folder, os.W_OK | os.X_OK)):
        raise SettingsError(
            f"{FOLDER}: name a folder for this alone, which the service may write to"
        )


class _Sums(Collector):
    """The sums of all processes, also of those that have ended."""

    def collect(self) -> Iterator[Metric]:
        # prometheus_client fails at an empty file: one that has just been created, or one that a
        # killed process has left.
        files = []
        for path in Path(os.environ[FOLDER]).glob("*.db"):
            with suppress(FileNotFoundError):  # the file of a live gauge goes with its process
                if path.stat().st_size:
                    files.append(f"{path}")
        yield from MultiProcessCollector.merge(files)


class _Ages(Collector):
    """The ages of the data of the process that answers."""

    def __init__(self, store: DatabaseKeyStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        read, written = self._store.ages()
        about_keys = "Seconds since the keys were last read, in the process that answers"
        yield GaugeMetricFamily("api_keys_age_seconds", about_keys, value=read)
        about_usage = "Seconds since usage was last written, in the process that answers"
        yield GaugeMetricFamily("api_key_usage_age_seconds", about_usage, value=written)


router = GuardedRouter(dependencies=[require("metrics:read")])


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """The sums of all processes that answer at this address."""
    count_waiting()
    shared = FOLDER in os.environ
    # The workers of uvicorn and `fastapi dev` are child processes, those of gunicorn are forks.
    if not shared and (parent_process() or "gunicorn" in sys.modules):
        raise HTTPException(503, f"One of several processes is asked for all: set {FOLDER}")
    registry = CollectorRegistry()
    for collector in [_Sums()] if shared else [_ours, REGISTRY]:
        registry.register(collector)
    registry.register(_Ages(request.app.keys))
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": media_type})
