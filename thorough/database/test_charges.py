"""Processes charge one key, are killed, and come again: no window is too full, and no gap opens."""

import asyncio
import os
import random
import signal
import subprocess
import time
from bisect import bisect_left, bisect_right
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from app.auth.keys.service import KeyService
from app.limits import connections, sqlite_counter
from app.limits.limit import parse_limits
from app.limits.limiter import Limiter
from app.limits.policy import open_counter
from app.limits.sqlite_counter import SqliteCounter
from tests.thorough.databases import PostgreSQLDatabases
from tests.thorough.replicas import PROCESSES, Replica, started

SECONDS = 4.0
LIMITS = parse_limits(["20/second", "60/minute"])
SLACK = 2_000_000  # nanoseconds: others have a clock of their own, in microseconds
NEVER = 1 << 62


class Asked(NamedTuple):
    began_at: int  # nanoseconds
    ended_at: int  # NEVER, if its process was killed meanwhile
    admitted: bool


class Source:
    changes = 0

    def now(self) -> float:
        return time.time()

    async def used_since(self, *_: object) -> int:
        return 0


def charge(valkey: str, url: str, log: Path, seconds: float) -> None:
    """Until it is killed. Each charge is in the log when it begins, and when it ends."""
    for module in (connections, sqlite_counter):
        vars(module)["TIMEOUT"] = 30.0  # no busy machine decides this
    asyncio.run(_charge(valkey, url, log, seconds))


async def _charge(valkey: str, url: str, log: Path, seconds: float) -> None:
    limiter = Limiter(open_counter(valkey, sa.make_url(url)), SqliteCounter(None), Source())
    written = os.open(log, os.O_WRONLY | os.O_CREAT)

    async def one(number: int) -> None:
        os.write(written, f"{number} {time.monotonic_ns()}\n".encode())
        over = (await limiter.charge("key", LIMITS)).over
        os.write(written, f"{number} {time.monotonic_ns()} {int(not over)}\n".encode())

    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        some = random.choice([1, 1, 1, 2, 5])  # noqa: S311
        await asyncio.gather(*(one(number + each) for each in range(some)))
        number += some
        await asyncio.sleep(random.random() * 0.02)  # noqa: S311
    await limiter.close()


def read(log: Path) -> list[Asked]:
    asked: dict[str, Asked] = {}
    for line in log.read_text().splitlines():
        number, at, *admitted = line.split()
        if admitted:
            asked[number] = Asked(asked[number].began_at, int(at), admitted == ["1"])
        else:
            asked[number] = Asked(int(at), NEVER, True)
    return [*asked.values()]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "valkey"])
def test_over_processes_that_are_killed_no_window_is_too_full_and_nobody_is_refused_without_need(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, valkey = f"sqlite:///{tmp_path}/keys.db", ""
    if kind == "valkey":
        valkey = request.getfixturevalue("valkey")
    elif kind == "postgresql":
        databases: PostgreSQLDatabases = request.getfixturevalue("postgresql_databases")
        with databases.fresh(tmp_path) as fresh:
            url = fresh.render_as_string(hide_password=False)
    first = PROCESSES.Process(target=time.time)  # it imports for all
    first.start()
    first.join()
    end = time.monotonic() + SECONDS
    logs: list[Path] = []

    def start() -> Any:
        logs.append(tmp_path / f"log-{len(logs)}")
        target = partial(charge, valkey, url, logs[-1], max(0.1, end - time.monotonic()))
        process = PROCESSES.Process(target=target)
        process.start()
        return process

    running = [start() for _ in range(4)]
    while time.monotonic() < end - 0.5:
        time.sleep(0.2)
        place = len(logs) % 4
        running[place].kill()
        running[place].join()
        running[place] = start()
    for each in running:
        each.join()
        assert each.exitcode == 0
    asked = [each for log in logs if log.exists() for each in read(log)]
    let_in = [each for each in asked if each.admitted]
    sure = sorted(each for each in let_in if each.ended_at != NEVER)
    starts, ends = [each.began_at for each in sure], sorted(each.ended_at for each in let_in)
    assert 20 <= len(sure) < len(asked)
    for limit in LIMITS:
        span = limit.seconds * 1_000_000_000
        for each in sure:
            last = bisect_left(starts, each.began_at + span - SLACK)
            inside = sure[bisect_left(starts, each.began_at) : last]
            assert (
                sum(it.ended_at < each.began_at + span - SLACK for it in inside) <= limit.requests
            )
    begun = sorted(each.began_at for each in let_in)
    for each in asked:
        if not each.admitted:  # one of its windows was full
            assert any(
                bisect_right(begun, each.ended_at)
                - bisect_left(ends, each.began_at - limit.seconds * 1_000_000_000 - SLACK)
                >= limit.requests
                for limit in LIMITS
            )


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX: nothing else hangs up")
def test_workers_count_together_and_are_recycled(
    database_url: sa.URL, key_service: KeyService
) -> None:
    with started(Replica("--workers", "2")) as [server]:
        bounds = {"limits": ["60/hour"]}
        key = key_service.create("key", restrictions=bounds, actor="test").key
        server.until(200, key)
        assert isinstance(server.process, subprocess.Popen)
        server.process.send_signal(signal.SIGHUP)
        for _ in range(59):
            server.until(200, key)
        server.close()  # of a worker that may be about to end
        server.until(429, key)
