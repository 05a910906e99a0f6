"""Metrics for Prometheus: requests, their duration, the use of each key, and refusals.

Labels come only from declared routes, existing key ids and fixed reason codes, never from request
data, so callers cannot create new time series.
"""

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from multiprocessing import parent_process
from pathlib import Path
from shutil import disk_usage
from threading import Lock
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

logger = logging.getLogger(__name__)

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where several processes store their counts
_KINDS: Final = ("counter_", "gauge_", "histogram_", "summary_")  # how its files' names begin
LEAST_FREE: Final = 1 << 20  # bytes on the disk of that folder
MOST_KEYS: Final = 10_000  # any further key counts under `others`
MOST_OWNERS: Final = 1_000  # any further owner too
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
_owners = Counter(
    "api_owner_requests",
    "Requests with a key in force, by the owner of the key, if SHOW_OWNERS says so",
    ["owner", "outcome"],
    registry=_ours,
)
_refusals = Counter("api_key_refusals", "Requests that were refused", ["reason"], registry=_ours)
_keys: Final[set[str]] = set()  # the ids that have a series
_known_owners: Final[set[str]] = set()
_show_owners = False

_AT_ONCE: Final = 0 if FOLDER in os.environ else 200
_lock: Final = Lock()  # pages are answered in other threads
_waiting: Final = defaultdict[tuple[str, str, int, str, str, str, str], list[float]](list)


class _FullError(Exception):
    """A new series does not fit: a write to a file on a full disk would end the process."""


def _check_room() -> None:
    folder = os.environ.get(FOLDER)
    if folder and disk_usage(folder).free < LEAST_FREE:
        _tell_lost(folder)
        raise _FullError


@cache
def _tell_lost(folder: str) -> None:
    logger.warning("%s: the disk of %s is full, so what is counted anew is lost", FOLDER, folder)


# Looking up a series takes longer than counting, so these functions cache it.


@cache
def _add_request(route: str, method: str, status: int) -> Callable[[int], None]:
    _check_room()
    return _requests.labels(route, method, status).inc


@cache
def _add_seconds(route: str) -> Callable[[float], None]:
    _check_room()
    return _seconds.labels(route).observe


@lru_cache(3 * MOST_KEYS)
def _add_use(key_id: str, outcome: str) -> Callable[[int], None]:
    _check_room()
    return _uses.labels(_bounded(key_id, _keys, MOST_KEYS), outcome).inc


@lru_cache(3 * MOST_OWNERS)
def _add_owner(owner: str, outcome: str) -> Callable[[int], None]:
    _check_room()
    return _owners.labels(_bounded(owner, _known_owners, MOST_OWNERS), outcome).inc


def _bounded(label: str, known: set[str], most: int) -> str:
    if len(known) < most:
        known.add(label)
    return label if label in known else "others"


@cache
def _add_refusal(reason: str) -> Callable[[int], None]:
    _check_room()
    return _refusals.labels(reason).inc


def observe(record: RequestRecord) -> None:
    """Count a request. Adding up many is faster, but other processes cannot wait for that."""
    labels = (
        record.route or "",
        record.method if record.method in _METHODS else "other",
        record.status,
        record.key.id if record.key else "",
        record.key.owner if record.key and _show_owners else "",
        record.outcome,
        record.refusal,
    )
    with _lock:
        waiting = _waiting[labels]
        waiting.append(record.seconds)
    if len(waiting) > _AT_ONCE or len(_waiting) > _AT_ONCE:
        _add_up()


def _add_up() -> None:
    with _lock:
        for (route, method, status, key_id, owner, outcome, refusal), seconds in _waiting.items():
            with suppress(_FullError):
                _add_request(route, method, status)(len(seconds))
                if key_id:
                    _add_use(key_id, outcome)(len(seconds))
                if owner:
                    _add_owner(owner, outcome)(len(seconds))
                if refusal:
                    _add_refusal(refusal)(len(seconds))
                else:
                    for each in seconds:
                        _add_seconds(route)(each)
        _waiting.clear()


def prepare(show_owners: bool = False) -> None:
    """Check the folder that several processes share. Raises SettingsError if it is not writable, or
    has other files: the library would read these too, even a database."""
    global _show_owners
    _show_owners = show_owners
    folder = os.environ.get(FOLDER)
    if folder is not None:
        _check(folder)
    # This series exists from the start, because Prometheus sees no growth in a series' first value.
    with suppress(_FullError):
        _add_refusal(OUT_OF_REACH)


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


def _is_one_of_several() -> bool:
    """Whether the server may have other workers. Where there is no /proc, nobody can say."""
    # The workers of most servers are child processes, those of gunicorn are forks.
    if not (parent_process() or "gunicorn" in sys.modules):
        return False
    workers = 0
    for path in Path(f"/proc/{os.getppid()}/task").glob("*/children"):
        for child in path.read_text().split():
            with suppress(FileNotFoundError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                workers += b"resource_tracker" not in command  # Python's own, beside workers
    return workers != 1


router = GuardedRouter(dependencies=[require("metrics:read")])


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """The sums of all processes that answer at this address."""
    shared = FOLDER in os.environ
    if not shared and _is_one_of_several():
        raise HTTPException(503, f"One of several processes is asked for all: set {FOLDER}")
    _add_up()
    registry = CollectorRegistry()
    for collector in [_Sums()] if shared else [_ours, REGISTRY]:
        registry.register(collector)
    registry.register(_Ages(request.app.keys))
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": media_type})
