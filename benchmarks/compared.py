"""What does a service of this template cost, beside what its owner would write instead?

That is plain FastAPI with two routers, a dependency that does nothing, and uvicorn's access line.
Prints a Markdown table. Exits with 1 if one of the marks is missed.
"""

import asyncio
import gc
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvicorn
from bench import environment, markdown, ratios, receive, show, show_marks
from fastapi import APIRouter, Depends, FastAPI
from variants import KEYS, PATH, Variant, endpoint, workspace

from app.constants import API_KEY_HEADER

ROUNDS: Final = 200
BATCH: Final = 0.02  # seconds of the processor
PASSES: Final = 7  # of wrk
SECONDS: Final = 3
MARKS: Final = {"line": (1.00, 0.95), "silent": (0.90, None)}  # in process, over HTTP


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
    import app.main

    made: FastAPI = app.main.app
    return made


APPS: Final[dict[str, Callable[[], FastAPI]]] = {"plain": plain, "service": service}


# In process.


@dataclass
class Side:
    """One of the two in a pair."""

    variant: Variant
    line: bool = False
    plain: bool = False
    count: int = 100
    seconds: list[float] = field(default_factory=list)

    async def batch(self) -> float:
        """Seconds of the processor for a request."""
        logging.getLogger("app").setLevel("INFO" if self.line else "WARNING")
        access = logging.getLogger("uvicorn.access")
        writes = self.line and self.plain
        scopes = [self.variant.scope() for _ in range(self.count)]

        async def send(message: Any) -> None:
            # The server writes its line then; for the service it has no handler to write one to.
            if writes and message["type"] == "http.response.start":
                access.info(
                    '%s - "%s %s HTTP/%s" %d',
                    "127.0.0.1:1",
                    scope["method"],
                    PATH,
                    scope["http_version"],
                    message["status"],
                )

        app = self.variant.app
        await asyncio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            for scope in scopes:
                await app(scope, receive, send)
            return (time.process_time() - start) / self.count
        finally:
            gc.enable()


async def measure(rounds: int) -> dict[str, tuple[Side, Side]]:
    """Pairs of batches in turn, so that each has the machine of the same moment."""
    made = {name: Variant(make()) for name, make in APPS.items()}
    lifespan = made["service"].app.router.lifespan_context
    pairs = {
        name: (
            Side(made["plain"], line=line, plain=True),
            Side(made["service"], line=line),
        )
        for name, line in (("line", True), ("silent", False))
    }
    async with lifespan(made["service"].app):
        for pair in pairs.values():
            for side in pair:
                for _ in range(3):
                    side.count = max(20, round(BATCH / await side.batch()))
        gc.freeze()
        for _ in range(rounds):
            for pair in random.sample(list(pairs.values()), len(pairs)):
                for side in random.sample(pair, 2):
                    side.seconds.append(await side.batch())
    return pairs


def handlers() -> None:
    """The server's logging, and the service's, as a start makes them; written to the null device."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115
    sys.stdout, told = nowhere, sys.stdout
    sys.stderr, errors = nowhere, sys.stderr
    uvicorn.Config(plain).configure_logging()
    keep = logging.getLogger("uvicorn.access").handlers.copy()
    service()
    logging.getLogger("uvicorn.access").handlers = keep  # for the plain one
    for handler in keep:
        handler.setFormatter(
            uvicorn.logging.AccessFormatter(
                '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'
            )
        )
        handler.filters.clear()
    logging.getLogger("uvicorn.access").filters.clear()
    sys.stdout, _ = told, errors


# Over HTTP.


def serve(name: str) -> None:
    port = int(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if name == "plain":
        uvicorn.run(plain(), port=port, log_level="info")
    else:
        uvicorn.run("app.main:app", port=port, log_level="info")


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with workspace():
        handlers()
        pairs = asyncio.run(measure(rounds))
    for name, (ours, theirs) in {n: (b, a) for n, (a, b) in pairs.items()}.items():
        shares = ratios(theirs.seconds, ours.seconds)
        print(
            name,
            show(median(theirs.seconds) * 1e6, 1),
            show(median(ours.seconds) * 1e6, 1),
            f"{median(shares):.3f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
