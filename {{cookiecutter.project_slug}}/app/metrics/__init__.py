"""What Prometheus is told: how much is asked for, by whom, how soon it is answered, what is refused.

No label is what a caller has sent: routes are those that were declared, keys those that are in
force, reasons those in this code. So a stranger makes no series.
"""

import os
import sys
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

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where several processes put what they count
_KINDS: Final = ("counter_", "gauge_", "histogram_", "summary_")  # how the names of files begin
MOST_KEYS: Final = 10_000  # further ones are told together
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"})
_BUCKETS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds

disable_created_metrics()  # as many series more, which tell when each began
_ours: Final = CollectorRegistry()  # or an exporter of yours that is open to all would tell it
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
_keys: Final[set[str]] = set()  # that are told apart

# To find a series takes longer than to count, so each is looked for once.


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
    """Counts a request."""
    route = record.route or ""
    _add_request(route, record.method if record.method in _METHODS else "other", record.status)()
    if record.key:
        _add_use(record.key.id, record.outcome)()
    if record.refusal:
        _add_refusal(record.refusal)()
    else:
        _add_seconds(route)(record.seconds)


def prepare() -> None:
    """Raises SettingsError if several processes could not put there what they count, or if anything
    else is there: the library reads all that it finds, a database as well."""
    folder = os.environ.get(FOLDER)
    if folder is not None:
        _check(folder)
    # Nobody may look while it counts, and who first sees it later would not see it grow.
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
    """Of all processes, those that have ended too."""

    def collect(self) -> Iterator[Metric]:
        # prometheus_client fails at a file that has just been made, and at one that is left so by
        # a process that was killed just then.
        files = []
        for path in Path(os.environ[FOLDER]).glob("*.db"):
            with suppress(FileNotFoundError):  # a gauge of yours may go with its process
                if path.stat().st_size:
                    files.append(f"{path}")
        yield from MultiProcessCollector.merge(files)


class _Ages(Collector):
    """Of the process that is asked."""

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
    shared = FOLDER in os.environ
    # uvicorn's workers are children, as is what `fastapi dev` starts anew; gunicorn's are forks.
    if not shared and (parent_process() or "gunicorn" in sys.modules):
        raise HTTPException(503, f"One of several processes is asked for all: set {FOLDER}")
    told = CollectorRegistry()
    for each in [_Sums()] if shared else [_ours, REGISTRY]:
        told.register(each)
    told.register(_Ages(request.app.keys))
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(told), headers={"Content-Type": media_type})
