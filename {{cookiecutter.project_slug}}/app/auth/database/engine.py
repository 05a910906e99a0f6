"""The connection to the database of the keys, where every wait has an end."""

import os
import socket
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Timer
from time import monotonic, sleep
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event, exc

from app.auth.errors import SettingsError, StoreUnavailableError
from app.constants import COMMAND

PATIENCE: Final = 5.0  # seconds until a database that does not answer counts as out of reach
LONG_PATIENCE: Final = 600.0  # for what changes all keys, of which there may be millions
LOCK: Final = int.from_bytes(b"api_keys")  # the number that PostgreSQL's lock has


def connect(
    url: sa.URL, *, patience: float = PATIENCE, pooled: bool = False, **options: Any
) -> sa.Engine:
    """An engine whose transactions take no longer than that, in seconds.

    Without a pool no connection outlives its transaction: nothing is shared by processes that
    fork, and nothing goes stale. The options are SQLAlchemy's, for a pool. Raises SettingsError
    for options in the URL that there are not.
    """
    pool: dict[str, Any] = {"poolclass": sa.NullPool}
    if pooled:
        pool = {"poolclass": sa.QueuePool, "pool_size": 8, "pool_timeout": patience, **options}
    if url.get_backend_name() == "sqlite":
        path = Path(f"{url.database}")
        engine = sa.create_engine(url, creator=lambda: _open_file(path, patience), **pool)
        event.listen(engine, "checkout", partial(_check_file, path))
        event.listen(engine, "begin", partial(_begin_in_sqlite, patience))
        event.listen(engine, "commit", partial(_check_file_of, path))
        return engine
    try:
        engine = sa.create_engine(
            url,
            isolation_level="READ COMMITTED",  # who has waited for others is to see what they did
            connect_args={
                "application_name": COMMAND,
                "client_encoding": "utf8",  # whatever the database has: text comes as text
                "connect_timeout": round(PATIENCE),
                "tcp_user_timeout": round(PATIENCE * 1000),
                "keepalives_idle": 5,
                "keepalives_interval": 1,
                "keepalives_count": 3,
                "prepare_threshold": None,  # a pooler may give each transaction another server
            },
            execution_options={"patience": patience},
            **pool,
        )
    except exc.ArgumentError as error:
        raise SettingsError(f"DATABASE_URL: {error}") from None

    # SQLAlchemy asks each first connection who is there, before any transaction.
    event.listen(engine, "connect", _watch_first_words, insert=True)
    event.listen(engine, "checkout", _end_first_watch)
    event.listen(engine, "begin", _limit_in_postgresql)
    return engine


@contextmanager
def transaction(
    engine: sa.Engine, *, write: bool = False, patience: float | None = None
) -> Generator[sa.Connection]:
    """Committed at the end of the block, or not at all. Of those that write, one at a time runs.

    Raises StoreUnavailableError.
    """
    options: dict[str, Any] = {"begin": "BEGIN IMMEDIATE" if write else "BEGIN"}
    if patience is not None:
        options["patience"] = patience
    pool = engine.pool
    try:
        with (
            engine.connect().execution_options(**options) as connection,
            cut_off_in_time(connection),
            connection.begin(),
        ):
            if write and engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield connection
            if engine.pool is not pool:  # let go of meanwhile: nobody would close it
                connection.detach()
    except (exc.SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        raise out_of_reach(error, engine.url) from None


# PostgreSQL.


@contextmanager
def cut_off_in_time(connection: sa.Connection) -> Generator[None]:
    if connection.dialect.name == "sqlite":  # there is nobody that could keep silent
        yield
        return
    patience = connection.get_execution_options()["patience"]
    call_off = _watch(connection.connection.driver_connection, patience)
    try:
        yield
    finally:
        call_off()


def _watch(opened: Any, patience: float) -> Callable[[], None]:
    """Let a PostgreSQL that keeps silent be as good as one that hangs up; gives what ends that.

    What its kernel still acknowledges no timeout of TCP ends.
    """
    try:
        line = socket.fromfd(opened.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise exc.OperationalError(None, None, error) from None

    def hang_up() -> None:
        with line, suppress(OSError):  # it has ended by itself just now
            line.shutdown(socket.SHUT_RDWR)

    timer = Timer(patience, hang_up)
    timer.daemon = True
    timer.start()

    def call_off() -> None:
        timer.cancel()
        line.close()

    return call_off


def _watch_first_words(opened: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    record.info[_watch] = _watch(opened, PATIENCE)


def _end_first_watch(_: object, record: sa.pool.ConnectionPoolEntry, __: object) -> None:
    if call_off := record.info.pop(_watch, None):
        call_off()


def _limit_in_postgresql(connection: sa.Connection) -> None:
    milliseconds = round(connection.get_execution_options()["patience"] * 1000)
    # For this transaction alone: that much a pooler lets through.
    connection.exec_driver_sql(
        f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds}"
    )


# SQLite.


class _Connection(sqlite3.Connection):
    file: tuple[int, int] | None = None


def _open_file(path: Path, patience: float) -> _Connection:
    file = file_of(path)
    # A database is made by those who are told to, never by looking for one.
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute().as_posix()))}?mode=rw",
        uri=True,
        timeout=patience,
        isolation_level=None,  # transactions begin where `_begin_in_sqlite` says
        check_same_thread=False,
        factory=_Connection,
    )
    try:
        # Readers never wait for a writer, and a commit survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if _holds_keys(connection) and _switch_to_wal(connection, patience) != "wal":
            raise sqlite3.OperationalError(
                "SQLite cannot share memory there; keep the file on a local disk"
            )
        if file != file_of(path):
            raise sqlite3.OperationalError(f"{path} was replaced just now")
    except BaseException:
        connection.close()
        raise
    connection.file = file
    return connection


def _holds_keys(connection: sqlite3.Connection) -> bool:
    """Any other file stays as it is: nobody changes one by looking into it."""
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'api_keys'")
    return tables.fetchone() is not None


def _switch_to_wal(connection: sqlite3.Connection, patience: float) -> Any:
    """The mode that the file is in then."""
    give_up_at = monotonic() + patience
    while True:
        try:
            return connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            # Another process does the same to a new file: the one thing SQLite does not wait for.
            if "locked" not in f"{error}" or monotonic() > give_up_at:
                raise
            sleep(0.01)


def file_of(path: Path) -> tuple[int, int] | None:
    """Which file has this name; to ask that does not open it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_file(path: Path, opened: _Connection, *_: object) -> None:
    """Another file in the place of the one that is open: open that."""
    if file_of(path) != opened.file:
        raise exc.DisconnectionError(f"{path} was replaced")


def _check_file_of(path: Path, ending: sa.Connection) -> None:
    opened: Any = ending.connection.dbapi_connection  # which one that is detached still has
    _check_file(path, opened)


def _begin_in_sqlite(patience: float, connection: sa.Connection) -> None:
    begin = connection.get_execution_options().get("begin", "BEGIN")
    if begin == "BEGIN":
        connection.exec_driver_sql(begin)
        return
    # SQLite itself looks less and less often whether it may: who waits longest would wait on.
    opened: Any = connection.connection.driver_connection
    run = opened.execute
    give_up_at = monotonic() + patience
    run("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                run(begin)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or monotonic() > give_up_at:
                    raise exc.OperationalError(begin, None, error) from None
            sleep(0.002)
    finally:
        run(f"PRAGMA busy_timeout = {round(patience * 1000)}")


def out_of_reach(error: Exception, url: sa.URL) -> StoreUnavailableError:
    """In the driver's own words, in one line, and without the password."""
    cause = getattr(error, "orig", None) or error
    said = " ".join(f"{cause}".split()).rstrip(".") or type(cause).__name__
    reason = said.replace(str(url.password), "***") if url.password else said
    return StoreUnavailableError(f"DATABASE_URL: out of reach: {reason}")
