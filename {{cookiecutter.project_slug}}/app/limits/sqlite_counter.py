"""Limits counted in a file beside the keys' SQLite file, for all processes that use it.

The file need not survive the machine: it is never synced, and another boot has another file.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from threading import Lock
from time import monotonic, monotonic_ns, time
from typing import Final
from weakref import finalize

from app.auth.database.engine import file_of
from app.limits.limit import CALENDAR
from app.limits.limiter import TIMEOUT, Counted, OutOfReachError, Window

SECOND: Final = 1_000_000_000  # nanoseconds: sums of whole numbers are exact
EVERY: Final = 16  # charges of a key until one deletes what has left its windows
AT_ONCE: Final = 64  # requests that it deletes at most, so that no charge is slow
MADE_IN: Final = 0.5  # seconds; an empty file that is older was left by a process that was killed
YIELDS: Final = 20  # attempts before the first sleep

# Requests have running numbers, so that the first and the last in a window tell how many it has.
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS hits (
  key TEXT, time INTEGER, number INTEGER, leaves_at INTEGER, PRIMARY KEY (key, time)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS hits_leave ON hits (leaves_at);
CREATE TABLE IF NOT EXISTS quotas (
  key TEXT, period TEXT, begins_at INTEGER, used INTEGER, PRIMARY KEY (key, period, begins_at)
) WITHOUT ROWID;
"""
_LAST: Final = "SELECT number, time FROM hits WHERE key = ? ORDER BY time DESC LIMIT 1"
_FIRST: Final = (
    "SELECT number, time FROM hits WHERE key = ? AND time > ? ORDER BY time LIMIT 1 OFFSET ?"
)
_USED: Final = "SELECT used FROM quotas WHERE key = ? AND period = ? AND begins_at = ?"
_SWEEP: Final = (
    "DELETE FROM hits WHERE (key, time) IN"
    " (SELECT key, time FROM hits WHERE leaves_at <= ? ORDER BY leaves_at LIMIT ?)"
)


class _BusyError(Exception):
    """Another process writes, or has just made another file: try again."""


class SqliteCounter:
    """Counts by the machine's monotonic clock. Without a path, it counts in memory."""

    setting = "DATABASE_URL"

    def __init__(self, keys: Path | None) -> None:
        self._path = keys and Path(f"{keys.resolve()}-limits{_boot()}")
        self._opened: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._lock = Lock()  # event loops in other threads may charge too

    async def charge(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        give_up_at, attempts = monotonic() + TIMEOUT, 0
        while True:
            try:
                with self._lock:
                    return self._try(key_id, windows)
            except _BusyError:
                attempts += 1
            if monotonic() > give_up_at:
                raise OutOfReachError("another process holds the file")
            await asyncio.sleep(0 if attempts <= YIELDS else attempts * 0.0001)

    async def close(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._opened:
            self._end()
        self._opened = None

    def _try(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        problem: Exception | None = None
        for _ in range(2):  # perhaps with another connection, or in another file
            try:
                return self._transaction(key_id, windows)
            except (sqlite3.Error, OSError) as error:
                problem, code = error, getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise _BusyError
            self._close()
            is_broken = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            if is_broken and self._path and file_of(self._path) == self._file:
                with suppress(OSError):
                    self._path.unlink()
        raise OutOfReachError(f"{problem}")

    def _transaction(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        if not self._opened:
            self._opened = self._open()
            # Without a lifespan nobody calls `close`.
            self._end = finalize(self, self._opened.close)
        if self._path and file_of(self._path) != self._file:  # somebody took it away
            self._close()
            raise _BusyError
        run = self._opened.cursor().execute
        run("BEGIN IMMEDIATE")
        try:
            # The clock is read under the lock, so that times are in the order of the charges.
            counted = _charge(run, monotonic_ns(), key_id, windows)
            run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                run("ROLLBACK")
            raise
        return counted

    def _open(self) -> sqlite3.Connection:
        if self._path:
            _create(self._path)
        self._file = file_of(self._path) if self._path else None
        opened = sqlite3.connect(
            self._path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            opened.execute("PRAGMA journal_mode = WAL")
            opened.execute("PRAGMA synchronous = OFF")
            opened.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT")
        except BaseException:
            opened.close()
            if self._path and not self._path.stat().st_size:
                self._path.unlink()  # nobody has to wait for its pages
            raise
        return opened


def _create(path: Path) -> None:
    """Who creates the file removes what belonged to another one; the others wait for its pages."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_size:
                return
            if abs(time() - status.st_mtime) > MADE_IN:  # its creator was killed
                path.unlink()
        raise _BusyError from None
    stem, _, _ = path.name.rpartition("-")
    for old in path.parent.glob(f"{escape(stem)}-*"):
        if old.name != path.name:
            with suppress(OSError):
                old.unlink()


def _boot() -> str:
    """Monotonic times mean nothing after a reboot. Other systems than Linux have no such id."""
    try:
        return "-" + Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        return "-"


def _charge(
    run: Callable[..., sqlite3.Cursor], now: int, key: str, windows: Sequence[Window]
) -> Counted | None:
    number, latest = run(_LAST, (key,)).fetchone() or (0, 0)
    if latest >= now + SECOND:  # from before a reboot
        run("DELETE FROM hits WHERE key = ?", (key,))
        number = latest = 0
    now = max(now, latest + 1)
    left, frees_in = [], []
    for window in windows:
        if window.seconds:
            since = now - window.seconds * SECOND
            first = run(_FIRST, (key, since, 0)).fetchone()
            used = number - first[0] + 1 if first else 0
            if used > window.requests:  # the limit was higher
                first = run(_FIRST, (key, since, used - window.requests)).fetchone()
            frees_in.append((first[1] - since) / SECOND if first else float(window.seconds))
        else:
            quota = key, window.period, _seconds(window)
            used = max(window.used, *(run(_USED, quota).fetchone() or (-1,)))
            if used < 0:
                return None
            frees_in.append(0.0)
        left.append(window.requests - used)
    if min(left) <= 0:
        return Counted(False, left, frees_in)
    if longest := max(window.seconds for window in windows):
        leaves_at = now + longest * SECOND
        run("INSERT INTO hits VALUES (?, ?, ?, ?)", (key, now, number + 1, leaves_at))
        if number % EVERY == 0:
            run(_SWEEP, (now, AT_ONCE))
    for window, remaining in zip(windows, left, strict=True):
        if not window.seconds:
            used = window.requests - remaining + 1
            ended = _seconds(window) - 2 * CALENDAR[window.period]
            run(
                "DELETE FROM quotas WHERE key = ? AND period = ? AND begins_at < ?",
                (key, window.period, ended),
            )
            run(
                "INSERT OR REPLACE INTO quotas VALUES (?, ?, ?, ?)",
                (key, window.period, _seconds(window), used),
            )
    return Counted(True, [remaining - 1 for remaining in left], frees_in)


def _seconds(window: Window) -> int:
    return int(window.begins_at.timestamp()) if window.begins_at else 0
