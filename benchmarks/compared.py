"""What does a service of this template cost, beside what its owner would write instead?

That is plain FastAPI with the same endpoints on two routers, a dependency that does nothing, and
uvicorn's access line. Prints a Markdown table. Exits with 1 if one of the marks is missed.
"""

import asyncio
import gc
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import uvicorn
from bench import (
    PACKAGES,
    SCRIPT,
    check_over_http,
    ended,
    environment,
    markdown,
    ratios,
    receive,
    show,
    show_marks,
)
from fastapi import APIRouter, Depends, FastAPI
from variants import KEYS, PATH, Variant, endpoint, workspace

ROUNDS: Final = 200
BATCH: Final = 0.02  # seconds of the processor
PASSES: Final = 9  # of wrk
SECONDS: Final = 3
ACCESS_LOG: Final = '%s - "%s %s HTTP/%s" %d'  # as uvicorn calls it


def plain() -> FastAPI:
    """As many people write it: with the endpoints of a new project, on two routers."""

    async def nothing() -> None: ...

    async def live() -> dict[str, str]:
        return {"status": "live"}

    public, inner = APIRouter(), APIRouter(dependencies=[Depends(nothing)])
    public.add_api_route("/", live)
    for path in ("/health/live", "/health/ready"):
        public.add_api_route(path, live)
        public.add_api_route(path, live, methods=["HEAD"], include_in_schema=False)
    inner.add_api_route(PATH, endpoint)
    app = FastAPI()
    app.include_router(public)
    app.include_router(inner)
    return app


def service() -> FastAPI:
    """The generated one with every part, as `app.main` makes it."""
    made: FastAPI = import_module("app.main").app
    return made


APPS: Final[dict[str, Callable[[], FastAPI]]] = {"plain": plain, "service": service}


# In process.


@dataclass
class Side:
    """One of the two in a pair."""

    variant: Variant
    is_plain: bool
    has_line: bool
    count: int = 100
    seconds: list[float] = field(default_factory=list)

    async def batch(self) -> float:
        """Seconds of the processor for a request."""
        logging.getLogger("app").setLevel("INFO" if self.has_line else "WARNING")
        access = logging.getLogger("uvicorn.access")
        writes = self.is_plain and self.has_line
        scopes = [self.variant.scope() for _ in range(self.count)]
        scope = scopes[0]

        async def send(message: Any) -> None:
            if writes and message["type"] == "http.response.start":  # the server does it then
                client, method = f"{scope['client'][0]}:{scope['client'][1]}", scope["method"]
                access.info(ACCESS_LOG, client, method, PATH, "1.1", message["status"])

        app = self.variant.app
        await asyncio.sleep(0)  # lets tasks in the background go on
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            for scope in scopes:  # `send` uses it
                await app(scope, receive, send)
            return (time.process_time() - start) / self.count
        finally:
            gc.enable()


async def measure_in_process(rounds: int) -> dict[str, tuple[Side, Side]]:
    """Pairs of batches, in turn, so that both have the machine of the same moment."""
    made = {name: Variant(make()) for name, make in APPS.items()}
    pairs = {
        name: (Side(made["plain"], True, line), Side(made["service"], False, line))
        for name, line in (("line", True), ("silent", False))
    }
    async with made["service"].app.router.lifespan_context(made["service"].app):
        for side in (side for pair in pairs.values() for side in pair):
            for _ in range(3):  # the first guesses are slow, for nothing is warm yet
                side.count = max(20, round(BATCH / await side.batch()))
        gc.freeze()
        for _ in range(rounds):
            for pair in random.sample(list(pairs.values()), len(pairs)):
                for side in random.sample(pair, 2):
                    side.seconds.append(await side.batch())
    return pairs


@contextmanager
def logging_to_nowhere() -> Iterator[None]:
    """The server's handlers and the service's, as a start makes them, but all on one null device."""
    with Path(os.devnull).open("w", encoding="utf-8", buffering=1) as nowhere:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            uvicorn.Config(plain).configure_logging()
        logging.getLogger("uvicorn.access").filters.clear()  # the plain application has none
        for handler in logging.root.handlers:
            if type(handler) is logging.StreamHandler:  # the service's, on the real standard error
                handler.setStream(nowhere)
        yield


# Over HTTP.


def serve(name: str, port: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    uvicorn.run(f"compared:{name}_app", port=port, app_dir=f"{Path(__file__).parent}")


def __getattr__(name: str) -> FastAPI:
    """The applications as uvicorn imports them, after it has set logging up."""
    if name.endswith("_app"):
        return APPS[name.removesuffix("_app")]()
    raise AttributeError(name)


def requests_a_second(name: str) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    command = [sys.executable, str(SCRIPT), "--serve", name, f"{port}"]
    keys = {"API_KEYS": ",".join(KEYS), "DATABASE_URL": f"sqlite:///{Path('keys.db').absolute()}"}
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env={**os.environ, **keys})
    with ended(process):
        headers = Variant(FastAPI()).headers(host)
        for _ in range(200):
            try:
                check_over_http(f"{host}:{port}", headers, 200)
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        options = [f"-H{key}: {value}" for key, value in headers.items()]
        command = ["wrk", "-t1", "-c16", f"-d{SECONDS}s", *options, f"http://{host}:{port}{PATH}"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in report, report
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", report)
    return float(rate)


def measure_over_http() -> tuple[list[float], list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in APPS}
    for _ in range(PASSES):
        for name in random.sample(list(APPS), len(APPS)):
            rates[name].append(requests_a_second(name))
    return rates["plain"], rates["service"]


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return 0
    rounds = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
    lines, shares = [], {}
    with workspace(), logging_to_nowhere():
        for name, (theirs, ours) in asyncio.run(measure_in_process(rounds)).items():
            each = ratios(theirs.seconds, ours.seconds)
            low, shares[name], high = quantiles(each, n=4, method="inclusive")
            label = {"line": "In process, with lines", "silent": "In process, without lines"}[name]
            times = [show(median(side.seconds) * 1e6, 1) + " \xb5s" for side in (theirs, ours)]
            lines.append([label, *times, f"{shares[name]:.2f}", f"{low:.2f} to {high:.2f}"])
        if shutil.which("wrk"):
            plain_rates, rates = measure_over_http()
            each = ratios(rates, plain_rates)
            shares["http"] = median(each)
            both = [show(median(some), 0) + "/s" for some in (plain_rates, rates)]
            spread = f"{min(each):.2f} to {max(each):.2f}"
            lines.append(["Over HTTP, with lines", *both, f"{shares['http']:.2f}", spread])
    marks = {"line": 1.00, "http": 0.95, "silent": 0.90}
    held = {f"{name}, at least {marks[name]}": shares[name] >= marks[name] for name in shares}
    print(environment(PACKAGES[:3]), "")
    print(
        markdown(
            ["A request", "plain FastAPI", "This template", "Share of its speed", "Range"], lines
        )
    )
    print(show_marks(held))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
