"""A lock that only one of the processes on a database can hold."""

import sqlite3
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from app.auth.database.engine import LOCK, connect, cut_off_in_time, out_of_reach


class ProcessLock:
    """Held by one process that uses the database. It is freed when the process ends."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._held: sqlite3.Connection | sa.Connection | None = None

    def take(self) -> bool:
        """True if this process holds the lock or can take it. Raises StoreUnavailableError."""
        if isinstance(self._held, sa.Connection):
            try:
                with cut_off_in_time(self._held):
                    self._held.exec_driver_sql("SELECT 1")
            except exc.SQLAlchemyError:  # the connection is lost, and the lock with it
                self.release()
        if self._held is None:
            sqlite = self._url.get_backend_name() == "sqlite"
            try:
                self._held = (_hold_file if sqlite else _hold_lock)(self._url)
            except (exc.SQLAlchemyError, sqlite3.Error) as error:
                raise out_of_reach(error, self._url) from None
        return self._held is not None

    def release(self) -> None:
        held, self._held = self._held, None
        if isinstance(held, sa.Connection):
            held.invalidate()  # drops the connection: a clean end might wait for an answer
        if held:
            held.close()


def _hold_file(url: sa.URL) -> sqlite3.Connection | None:
    """Lock a separate database file beside the keys: SQLite's file locks work everywhere."""
    path = Path(f"{url.database}").resolve()  # a link is another name of the same
    held = sqlite3.connect(
        f"{path}-limits", timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        held.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        held.close()
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return None
        raise
    return held


def _hold_lock(url: sa.URL) -> sa.Connection | None:
    """Keep a transaction open, because a pooler may give the next one another server."""
    with ExitStack() as stack:
        held = stack.enter_context(connect(url).connect())
        with cut_off_in_time(held):
            held.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            if held.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK + 1))):
                stack.pop_all()
                return held
    return None
