"""What does a database of keys cost? Measures the flavour `database` on SQLite and PostgreSQL.

Prints a Markdown table for each part: in process, memory and start-up, revocation, and beside
others. Exits with 1 if one of the marks is missed.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any, Final, NamedTuple

import sqlalchemy as sa
from bench import (
    PACKAGES,
    Row,
    environment,
    expect,
    markdown,
    measure_in_process,
    measure_over_http,
    ratios,
    serve,
    show,
    show_marks,
    table,
)
from fastapi import Depends
from services import SERVERS, Revocations, manage_keys, measure_revocations, running
from stores import POSTGRESQL, SQLITE, Backend, new_store, postgresql, text_of, versions_of
from variants import (
    KEYS,
    Entry,
    Variant,
    does_nothing,
    guard,
    guarded,
    new_service,
    open_route,
    plain,
    simple_security,
    workspace,
)

from app.auth.key import new_secret
from app.constants import MISSING_KEY_STATUS

BACKENDS: Final = (SQLITE, POSTGRESQL)
FEW: Final = 10  # keys
MANY: Final = 1_000_000
LEAST_SHARE_OF_UNKNOWN: Final = 1.0  # of the open route's speed
MOST_DIFFERENCE: Final = 0.015  # of a valid key's share, between few keys and many
MOST_MEGABYTES: Final = 60  # that many keys take more than few
MOST_WAIT: Final = 1.2  # seconds from the commit of a revocation to its return: 0.2 over the bound
LEAST_RATIO: Final = 10  # of this template's requests per second to the others'
REQUESTS: Final = 1000  # before the memory is looked at
THIS: Final = "**This template**"
SIMPLE_SECURITY: Final = "fastapi-simple-security"
KEYSHIELD: Final = "keyshield, cached"
COMPARED: Final = (SIMPLE_SECURITY, KEYSHIELD)  # with their defaults
MORE_PACKAGES: Final = ("sqlalchemy", "psycopg", "aiosqlite")

Marks = dict[str, bool]


class Effort(NamedTuple):
    rounds: int  # in process
    starts: int  # of a process, for its memory
    revocations: int
    passes: int  # over HTTP
    seconds: int  # of wrk, each time


FULL: Final = Effort(rounds=200, starts=3, revocations=100, passes=3, seconds=2)
QUICK: Final = Effort(rounds=60, starts=1, revocations=10, passes=1, seconds=2)

# In process.


class Stranger(Variant):
    """Sends another unknown key with each request."""

    def scope(self) -> dict[str, Any]:
        self.key = new_secret()
        return super().scope()


@asynccontextmanager
async def started(url: sa.URL, label: str) -> AsyncGenerator[tuple[Row, Row]]:
    """Rows for a valid key and for unknown ones, while the store follows its database."""
    service = new_service(database_url=url)
    app = guard(service)

    async def valid() -> Variant:
        return Variant(app)

    async def unknown() -> Variant:
        # Long batches: there must be several of the questions that strangers make the store ask.
        return Stranger(app, status=MISSING_KEY_STATUS, batch_seconds=0.06)

    async with service.keys.follow():
        yield (
            Row(Entry(f"{label}, valid key", valid)),
            Row(Entry(f"{label}, unknown keys", unknown)),
        )


@dataclass
class Shares:
    """The open route's row, that of a dependency which does nothing, and those of valid and of
    unknown keys by how many keys there are."""

    base: Row
    nothing: Row
    valid: dict[int, Row] = field(default_factory=dict)
    unknown: dict[int, Row] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        return [self.base, self.nothing, *self.valid.values(), *self.unknown.values()]


async def measure_shares(label: str, urls: dict[int, sa.URL], rounds: int) -> Shares:
    shares = Shares(
        Row(Entry(f"{label}: open route", open_route)),
        Row(Entry(f"{label}: a dependency that does nothing", does_nothing)),
    )
    async with AsyncExitStack() as stack:
        for count, url in urls.items():
            rows = await stack.enter_async_context(started(url, f"{label}: {count:,} keys"))
            shares.valid[count], shares.unknown[count] = rows
        await measure_in_process(shares.rows(), rounds)
    return shares


def marks_of_shares(label: str, shares: Shares) -> Marks:
    marks = {}
    for count, row in shares.valid.items():
        cost = median(shares.nothing.shares) / median(row.shares)
        text = f"a valid key costs less than a dependency that does nothing: {cost:.3f} of its time"
        marks[f"{label}, {count:,} keys: {text}"] = cost < 1
    for count, row in shares.unknown.items():
        share = median(row.shares)
        text = f"unknown keys have at least {LEAST_SHARE_OF_UNKNOWN:.2f} of the open route's speed"
        marks[f"{label}, {count:,} keys: {text}: {share:.3f}"] = share >= LEAST_SHARE_OF_UNKNOWN
    few, many = (median(shares.valid[count].shares) for count in (FEW, MANY))
    text = f"{label}: {MANY:,} keys change a valid key's share by at most {MOST_DIFFERENCE}"
    marks[f"{text}: {many - few:+.3f}"] = abs(many - few) <= MOST_DIFFERENCE
    return marks


# Memory and start-up.


class Resident(NamedTuple):
    """What a process takes, in MB, and how many seconds passed until its first answer."""

    memory: float
    peak: float
    start_up: float


def start_and_ask(url: sa.URL) -> Resident:
    with running(url) as service:
        expect(service.get(KEYS[0]), 200)
        start_up = service.age()
        for _ in range(REQUESTS - 1):
            expect(service.get(KEYS[0]), 200)
        return Resident(service.memory("VmRSS"), service.memory("VmHWM"), start_up)


def measure_memory(urls: dict[int, sa.URL], starts: int) -> dict[int, Resident]:
    measured: dict[int, list[Resident]] = {count: [] for count in urls}
    for _ in range(starts):
        for count, url in urls.items():
            measured[count].append(start_and_ask(url))
    return {
        count: Resident(*(median(values) for values in zip(*residents, strict=True)))
        for count, residents in measured.items()
    }


def table_of_memory(measured: dict[str, dict[int, Resident]]) -> str:
    head = ["Store", "Keys", "Resident memory, MB", "Its peak, MB", "Start-up, s"]
    lines = [
        [label, f"{count:,}", f"{of.memory:.1f}", f"{of.peak:.1f}", f"{of.start_up:.2f}"]
        for label, by_count in measured.items()
        for count, of in by_count.items()
    ]
    return markdown(head, lines)


def marks_of_memory(label: str, measured: dict[int, Resident]) -> Marks:
    more = measured[MANY].memory - measured[FEW].memory
    text = f"{label}: {MANY:,} keys take at most {MOST_MEGABYTES} MB more than {FEW}"
    return {f"{text}: {more:.1f} MB": more <= MOST_MEGABYTES}


# Revocation.


def most_of_100(numbers: Sequence[float]) -> float:
    """The 99th percentile."""
    return quantiles(numbers, n=100, method="inclusive")[-1]


def table_of_revocations(measured: dict[str, Revocations]) -> str:
    head = ["Store", "Revocations", "Last let in: median, ms", "Longest, ms"]
    head += ["Returned: median, ms", "Longest, ms"]
    head += ["Requests let in afterwards", "A request every, ms", "Other answers"]
    lines = []
    for label, of in measured.items():
        times = (median(of.lags), max(of.lags), median(of.waits), max(of.waits))
        line = [label, f"{len(of.lags)}", *(f"{time * 1000:.0f}" for time in times)]
        every = f"{median(of.intervals) * 1000:.1f}"
        lines.append([*line, f"{of.accepted:,}", every, f"{of.others}"])
    return markdown(head, lines)


def marks_of_revocations(backend: Backend, measured: Revocations) -> Marks:
    accepted = f"{backend.label}: no request is let in that was sent after a revocation returned"
    wait = most_of_100(measured.waits)
    returned = f"{backend.label}: 99 of 100 revocations return within {MOST_WAIT:g} s"
    return {
        f"{accepted}: {measured.accepted}": measured.accepted == 0,
        f"{returned}: {wait:.3f} s": wait <= MOST_WAIT,
    }


# Beside others.


async def keyshield(backend: Backend, **delays: Any) -> Variant:
    """As its documentation has it: a session for each request, and a cache that they share."""
    from aiocache import SimpleMemoryCache
    from keyshield.api import create_depends_api_key
    from keyshield.hasher.argon2 import Argon2ApiKeyHasher
    from keyshield.repositories.sql import SqlAlchemyApiKeyRepository
    from keyshield.services.cached import CachedApiKeyService
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

    driver = "sqlite+aiosqlite" if backend is SQLITE else "postgresql+psycopg"
    engine = create_async_engine(backend.new().set(drivername=driver))
    new_session = async_sessionmaker(engine, expire_on_commit=False)
    hasher, cache = Argon2ApiKeyHasher(pepper=secrets.token_hex()), SimpleMemoryCache()

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with new_session() as session, session.begin():
            yield session

    async def get_service(
        session: Annotated[AsyncSession, Depends(get_session)],
    ) -> CachedApiKeyService:
        return CachedApiKeyService(SqlAlchemyApiKeyRepository(session), hasher, cache, **delays)

    async with new_session() as session, session.begin():
        await SqlAlchemyApiKeyRepository(session).ensure_table(engine)
        _, key = await (await get_service(session)).create(name="bench")
    await engine.dispose()  # its connections belong to this event loop, not to the server's
    return Variant(plain(create_depends_api_key(get_service)), f"Bearer {key}", "authorization")


def entries(backend: Backend) -> dict[str, Entry]:
    """What is compared on that kind of store; each makes a fresh one."""

    async def this() -> Variant:
        os.environ["DATABASE_URL"] = text_of(new_store(backend))
        return await guarded()

    async def cached() -> Variant:
        return await keyshield(backend)

    async def undelayed() -> Variant:
        return await keyshield(backend, min_delay=0, max_delay=0)

    builds = {
        THIS: this,
        SIMPLE_SECURITY: simple_security,
        KEYSHIELD: cached,
        f"{KEYSHIELD}, its delay switched off": undelayed,
    }
    return {
        name: Entry(f"{backend.label}: {name}", build, foreign=build is not this)
        for name, build in builds.items()
    }


def measure_beside_others(backend: Backend, effort: Effort) -> dict[str, Row]:
    rows = {name: Row(entry) for name, entry in entries(backend).items()}
    if backend is not SQLITE:
        rows[SIMPLE_SECURITY].problem = "does not run: it opens an SQLite file"
    by_label = {row.entry.label: row for row in rows.values()}
    measure_over_http(by_label, effort.seconds, effort.passes)
    return rows


def serve_labelled(label: str) -> None:
    served = {entry.label: entry for each in BACKENDS for entry in entries(each).values()}
    serve(served[label])


def cells_beside(row: Row, this: Row) -> list[str]:
    if row.problem:
        return [row.entry.label, row.problem, "", ""]
    times = ratios(this.rates, row.rates)
    errors = f" ({row.errors} errors)" if row.errors else ""
    spread = f"{show(min(times), 1)} to {show(max(times), 1)}"
    return [row.entry.label, show(median(row.rates), 0) + errors, show(median(times), 1), spread]


def table_beside_others(measured: dict[str, dict[str, Row]]) -> str:
    head = ["Guard", "HTTP: requests/s", "This template's, times as many", "Range"]
    lines = [cells_beside(row, rows[THIS]) for rows in measured.values() for row in rows.values()]
    return markdown(head, lines)


def marks_beside_others(label: str, rows: dict[str, Row]) -> Marks:
    marks = {}
    for name in COMPARED:
        if not rows[name].problem:
            times = median(ratios(rows[THIS].rates, rows[name].rates))
            text = f"{label}: at least {LEAST_RATIO} times the requests per second of {name}"
            marks[f"{text}: {times:.1f}"] = times >= LEAST_RATIO
    return marks


# All of it.


@dataclass
class Results:
    """What was measured, by the stores' labels."""

    shares: dict[str, Shares] = field(default_factory=dict)
    memory: dict[str, dict[int, Resident]] = field(default_factory=dict)
    revocations: dict[str, Revocations] = field(default_factory=dict)
    others: dict[str, dict[str, Row]] = field(default_factory=dict)

    def tables(self) -> dict[str, str]:
        shares = [table(of.rows(), over_http=False) for of in self.shares.values()]
        return {
            "In process": "\n\n".join(shares),
            "Memory and start-up": table_of_memory(self.memory),
            "Revocation": table_of_revocations(self.revocations),
            "Beside others": table_beside_others(self.others),
        }

    def marks(self) -> Marks:
        marks: Marks = {}
        for backend in BACKENDS:
            label = backend.label
            marks |= marks_of_shares(label, self.shares[label])
            marks |= marks_of_memory(label, self.memory[label])
            marks |= marks_of_revocations(backend, self.revocations[label])
            marks |= marks_beside_others(label, self.others[label])
        return marks

    def measurements(self) -> dict[str, Any]:
        in_process = [row for of in self.shares.values() for row in of.rows()]
        over_http = [row for rows in self.others.values() for row in rows.values()]
        return {
            "rows": [{**vars(row), "entry": row.entry.label} for row in in_process + over_http],
            "memory": {
                label: {count: resident._asdict() for count, resident in by_count.items()}
                for label, by_count in self.memory.items()
            },
            "revocations": {
                label: {**vars(of), "intervals": median(of.intervals)}
                for label, of in self.revocations.items()
            },
        }


def filled(backend: Backend) -> dict[int, sa.URL]:
    """Stores with few and many keys, filled by another process, as those of a server are."""
    counts = (FEW, MANY)
    with ProcessPoolExecutor(1) as pool:
        return dict(zip(counts, pool.map(new_store, [backend] * len(counts), counts), strict=True))


def measure(effort: Effort) -> Results:
    results = Results()
    for backend in BACKENDS:
        label = backend.label
        report(f"{label}: filling")
        urls = filled(backend)
        report(f"{label}: in process")
        results.shares[label] = asyncio.run(measure_shares(label, urls, effort.rounds))
        report(f"{label}: memory")
        results.memory[label] = measure_memory(urls, effort.starts)
        report(f"{label}: revocation")
        results.revocations[label] = measure_revocations(urls[FEW], effort.revocations)
        report(f"{label}: beside others")
        results.others[label] = measure_beside_others(backend, effort)
    return results


def report(progress: str) -> None:
    print(progress, file=sys.stderr)


def notes(effort: Effort) -> str:
    return f"""\
- In process: as with `bench.py`, {effort.rounds} batches, while the store follows its database. Each
  request of an unknown key brings another one. Requests come one at a time, so one that asks the
  database keeps the next one waiting.
- Memory: of `python -m uvicorn app.main:app` after {REQUESTS:,} requests. Start-up: from the start
  of the interpreter to the first answer. Median of {effort.starts}.
- Revocation: {SERVERS} such processes, each asked without pause by one client over one connection;
  another process revokes the key. Times are from the commit of the revocation: to when the last
  request was sent that was still let in, by any of them; and to the return.
- HTTP: `wrk -t1 -c16 -d{effort.seconds}s` against one uvicorn worker with a fresh store; all callers
  have the same key. Median of {effort.passes}, each time in another order.
- fastapi-simple-security counts every request in its SQLite file; it has no other store.
- keyshield writes to its database with every request, also of a key in its cache. With its default
  delay of 0.1 to 0.3 s it sleeps before it commits, so callers with the same key wait for each
  other. It has a mark with its defaults, and none with the delay switched off."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less: two minutes, not eight")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the measurements there")
    parser.add_argument("--serve", metavar="LABEL", help=argparse.SUPPRESS)
    parser.add_argument("--manager", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("`wrk` is not on the PATH")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.manager:
        manage_keys()
        return 0
    effort = QUICK if arguments.quick else FULL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server must stay behind
    with workspace():
        if arguments.serve:
            serve_labelled(arguments.serve)
            return 0
        with postgresql() as server_version:
            results = measure(effort)
    measured_in = environment(PACKAGES + MORE_PACKAGES, versions_of(server_version))
    marks = results.marks()
    print(measured_in)
    for title, text in results.tables().items():
        print("", f"{title}:", "", text, sep="\n")
    print("", notes(effort), "", show_marks(marks), sep="\n")
    if arguments.json:
        result = {"environment": measured_in, **results.measurements(), "marks": marks}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(marks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
