"""What does guarding a route cost? Compares this template's guard with its alternatives.

Prints a Markdown table. Exits with 1 if the guard costs more than a dependency that does nothing.
"""

import argparse
import asyncio
import gc
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from statistics import median, quantiles
from tempfile import TemporaryFile
from typing import Any, Final

import uvicorn
from variants import ENTRIES, PATH, Entry, Variant, workspace

PASSES: Final = 7  # over HTTP
SLOW: Final = 1 / 100  # of a batch for one request
PACKAGES: Final = ("fastapi", "starlette", "uvicorn", "fastapi-simple-security", "keyshield")
SCRIPT: Final = Path(sys.argv[0]).resolve()  # before the working directory changes


@dataclass
class Row:
    entry: Entry
    seconds: list[float] = field(default_factory=list)  # per request, one for each round
    shares: list[float] = field(default_factory=list)  # of the open route's speed, likewise
    rates: list[float] = field(default_factory=list)  # requests per second, one for each pass
    errors: int = 0  # among the answers to wrk
    problem: str = ""

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn a failure of somebody else's package into a remark in the table."""
        try:
            yield
        except Exception as error:
            if not self.entry.foreign:
                raise
            # Without the file's path that an ImportError shows.
            text = re.sub(r"\s*\([^()]*[/\\][^()]*\)", "", f"{type(error).__name__}: {error}")
            self.problem = f"does not run: {' '.join(text.split())}".replace("|", r"\|")


def expect(answer: int, status: int) -> None:
    if answer != status:
        raise RuntimeError(f"answered {answer} instead of {status}")


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def check(variant: Variant) -> None:
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await variant.app(variant.scope(), receive, send)
    expect(statuses[0], variant.status)


def finish_threads() -> None:
    """Wait for work that outlives its request: it has to be done, and not in the next batch."""
    for thread in threading.enumerate():
        # Idle ones stay: the event loop's, the store's, and anyio's, which are of a subclass.
        if type(thread) is threading.Thread and not thread.name.startswith(
            ("asyncio_", "api-keys")
        ):
            thread.join()


async def run_batch(variant: Variant, count: int) -> float:
    """Seconds per request."""

    async def send(message: Any) -> None:
        pass

    app = variant.app
    scopes = [variant.scope() for _ in range(count)]
    await asyncio.sleep(0)  # lets tasks in the background go on: the requests below may never wait
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for scope in scopes:
            await app(scope, receive, send)
        finish_threads()
        return (time.perf_counter() - start) / count
    finally:
        gc.enable()


async def prepare(row: Row, lifespans: AsyncExitStack) -> tuple[Row, Variant, int]:
    """The variant, started and warmed up, and how many requests make a batch."""
    variant = await row.entry.build()
    app = variant.app
    await lifespans.enter_async_context(app.router.lifespan_context(app))
    await check(variant)
    count = 3
    for _ in range(3):  # the first guesses are slow, for nothing is warm yet
        count = max(1, round(variant.batch_seconds / await run_batch(variant, count)))
    return row, variant, count


async def measure_in_process(rows: Sequence[Row], rounds: int) -> None:
    async with AsyncExitStack() as lifespans:
        prepared = []
        for row in rows:
            with row.reporting():
                prepared.append(await prepare(row, lifespans))
        gc.freeze()  # so that collecting between batches is quick
        _, base, base_count = prepared[0]
        for number in range(rounds):
            for row, variant, count in random.sample(prepared, len(prepared)):
                # Far from the marks, a tenth of the rounds tells enough.
                if not row.problem and (count > 1 / SLOW or number % 10 == 0):
                    with row.reporting():
                        # Between two batches of the open route, for the machine's speed drifts.
                        before = await run_batch(base, base_count)
                        seconds = await run_batch(variant, count)
                        after = await run_batch(base, base_count)
                        row.seconds.append(seconds)
                        row.shares.append((before + after) / 2 / seconds)
        for row, variant, _ in prepared:
            if not row.problem:
                with row.reporting():
                    await check(variant)


def serve(entry: Entry) -> None:
    """Serve a variant on a free port, once standard output told which and how to call it."""
    # uvicorn ends by raising the signal again, which would leave the workspace behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    variant = asyncio.run(entry.build())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        print(json.dumps([host, variant.headers(host), variant.status]), flush=True)
        config = uvicorn.Config(variant.app, access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End it after the block, if it did not end by itself."""
    with process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def server(name: str) -> Iterator[tuple[str, dict[str, str], int]]:
    command = [sys.executable, str(SCRIPT), "--serve", name]
    with TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        with ended(process):
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                errors.seek(0)
                reason = errors.read().decode().strip().rpartition("\n")[2]
                raise RuntimeError(f"its server did not start: {reason}")
            yield json.loads(line)


def check_over_http(host: str, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("GET", PATH, headers=headers)
    expect(connection.getresponse().status, status)
    connection.close()


def run_wrk(name: str, seconds: int) -> tuple[float, int]:
    """Requests per second, and how many of them were not answered as they should be."""
    with server(name) as (host, headers, status):
        check_over_http(host, headers, status)
        options = [f"-H{name}: {value}" for name, value in headers.items()]
        command = ["wrk", "-t1", "-c16", f"-d{seconds}s", *options, f"http://{host}{PATH}"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        check_over_http(host, headers, status)

    def number(pattern: str) -> float:
        return sum(map(float, re.findall(pattern, report)))

    total, bad = number(r"(\d+) requests in"), number(r"Non-2xx or 3xx responses: (\d+)")
    wrong = bad if status < 400 else total - bad
    broken = number(r"(?:connect|read|write|timeout) (\d+)")
    return number(r"Requests/sec:\s+([\d.]+)"), int(wrong + broken)


def measure_over_http(rows: dict[str, Row], seconds: int, passes: int = PASSES) -> None:
    for _ in range(passes):
        for name in random.sample(list(rows), len(rows)):
            if not (row := rows[name]).problem:
                print(f"wrk: {name}", file=sys.stderr)
                with row.reporting():
                    rate, errors = run_wrk(name, seconds)
                    row.rates.append(rate)
                    row.errors += errors


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(of, to, strict=True)]


def show(number: float, digits: int) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.{digits}f}"


def show_share(share: float) -> str:
    return f"{share:.2f}" if share >= 0.1 else f"{share:.2g}"


def cells(row: Row, base: Row, over_http: bool) -> list[str]:
    if row.problem:
        return [row.entry.label, row.problem, *[""] * (5 if over_http else 2)]
    shares = quantiles(row.shares, n=4, method="inclusive")
    low, middle, high = map(show_share, shares)
    result = [row.entry.label, show(median(row.seconds) * 1e6, 1), middle, f"{low} to {high}"]
    if over_http:
        errors = f" ({row.errors} errors)" if row.errors else ""
        shares = ratios(row.rates, base.rates)
        result.append(show(median(row.rates), 0) + errors)
        result.append(show_share(median(shares)))
        result.append(f"{show_share(min(shares))} to {show_share(max(shares))}")
    return result


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table: text in the first column, numbers in the others."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(rows: Sequence[Row], over_http: bool) -> str:
    head = ["Route", "\xb5s per request", "Share of the open route's speed", "Quartiles"]
    if over_http:
        head += ["HTTP: requests/s", "HTTP: share", "Range"]
    return markdown(head, (cells(row, rows[0], over_http) for row in rows))


def environment(packages: Sequence[str] = PACKAGES, *servers: str) -> str:
    versions = list(servers)
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    today = datetime.now(UTC).date()
    return f"{today}, {os.cpu_count()} CPUs, Python {python_version()}; {', '.join(versions)}."


def notes(rounds: int, seconds: int, over_http: bool) -> str:
    wrk = "HTTP was not measured: `wrk` is not on the PATH."
    if over_http:
        wrk = (
            f"HTTP: `wrk -t1 -c16 -d{seconds}s` on the same machine against one uvicorn worker."
            f"\n  Median of {PASSES} passes, each in another order; the spread is the machine's noise."
        )
    return f"""\
- Without "HTTP": the ASGI application is called directly, one request at a time. Median of {rounds}
  batches (a tenth of that for the slow ones), in random order. A share compares a batch with one of
  the open route before and one after it; 1.00 is as fast as the open route.
- {wrk}
- Same path, same answer, same headers but for the key's. Refusals are logged as the template does
  it by default, but to the null device.
- fastapi-simple-security has its keys in an SQLite file and starts a thread for each request to
  count it there. In process, a batch ends when these have ended.
- keyshield has its keys in memory, hashed with Argon2, and this key in its cache. Its delay is a
  sleep: callers wait, the processor does not work."""


def marks(rows: dict[str, Row]) -> dict[str, bool]:
    """What the guard should achieve in process, and whether it does."""
    cost = median(rows["nothing"].shares) / median(rows["guarded"].shares)
    return {f"Cheaper than a dependency that does nothing: {cost:.3f} of its time": cost < 1}


def show_marks(held: dict[str, bool]) -> str:
    return "\n".join(f"{mark}: {'held' if holds else 'MISSED'}." for mark, holds in held.items())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="in process, at least 20 (400)")
    parser.add_argument("--seconds", type=int, default=2, help="of wrk, each time (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every measurement there")
    parser.add_argument("--serve", choices=ENTRIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 20 or arguments.seconds < 1:
        parser.error("that is too short to measure anything")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    over_http = shutil.which("wrk") is not None
    rows = {name: Row(entry) for name, entry in ENTRIES.items()}
    with workspace():
        if arguments.serve:
            serve(ENTRIES[arguments.serve])
            return 0
        asyncio.run(measure_in_process(list(rows.values()), arguments.rounds))
        if over_http:
            measure_over_http(rows, arguments.seconds)
    held = marks(rows)
    print(environment(), table(list(rows.values()), over_http), sep="\n\n")
    print("", notes(arguments.rounds, arguments.seconds, over_http), "", sep="\n")
    print(show_marks(held))
    if arguments.json:
        measured = {name: {**vars(row), "entry": row.entry.label} for name, row in rows.items()}
        result = {"environment": environment(), "rows": measured, "marks": held}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
