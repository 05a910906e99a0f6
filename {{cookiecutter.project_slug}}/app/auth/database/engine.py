"""The connection to the database of the keys, where every wait has an end, and its schema."""

import os
import socket
import sqlite3
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
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
FIRST_SCHEMA: Final = "0001"
SCHEMA: Final = "0004"  # the newest revision in `migrations`
SCHEMA_TABLE: Final = "api_keys_schema"
_LOCK: Final = int.from_bytes(b"api_keys")  # the number that PostgreSQL's lock has


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
            _cut_off_in_time(connection),
            connection.begin(),
        ):
            if write and engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection
            if engine.pool is not pool:  # let go of meanwhile: nobody would close it
                connection.detach()
    except (exc.SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        raise _out_of_reach(error, engine.url) from None


# PostgreSQL.


@contextmanager
def _cut_off_in_time(connection: sa.Connection) -> Generator[None]:
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
    file = _file(path)
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
        if file != _file(path):
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


def _file(path: Path) -> tuple[int, int] | None:
    """Which file has this name; to ask that does not open it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_file(path: Path, opened: _Connection, *_: object) -> None:
    """Another file in the place of the one that is open: open that."""
    if _file(path) != opened.file:
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


class Hold:
    """What one process has at a time, of all that use the database; it ends with the process."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._held: sqlite3.Connection | sa.Connection | None = None

    def take(self) -> bool:
        """Whether this one has it now. Raises StoreUnavailableError."""
        if isinstance(self._held, sa.Connection):
            try:
                with _cut_off_in_time(self._held):
                    self._held.exec_driver_sql("SELECT 1")
            except exc.SQLAlchemyError:  # the server has gone, and with it what was held
                self.release()
        if self._held is None:
            sqlite = self._url.get_backend_name() == "sqlite"
            try:
                self._held = (_hold_file if sqlite else _hold_lock)(self._url)
            except (exc.SQLAlchemyError, sqlite3.Error) as error:
                raise _out_of_reach(error, self._url) from None
        return self._held is not None

    def release(self) -> None:
        held, self._held = self._held, None
        if isinstance(held, sa.Connection):
            held.invalidate()  # which hangs up: who said goodbye might wait for an answer
        if held:
            held.close()


def _hold_file(url: sa.URL) -> sqlite3.Connection | None:
    """A database of its own, beside that of the keys: SQLite knows how to lock one everywhere."""
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
    """In a transaction that stays open, for a pooler may give each another server."""
    with ExitStack() as stack:
        held = stack.enter_context(connect(url).connect())
        with _cut_off_in_time(held):
            held.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            if held.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK + 1))):
                stack.pop_all()
                return held
    return None


# The schema.


def check_schema(engine: sa.Engine) -> None:
    """Raises SettingsError if the database has none, or one of an older or newer service, and
    StoreUnavailableError."""
    upgrade = f"uv run {COMMAND} db upgrade"
    if engine.dialect.name == "sqlite" and _file(Path(f"{engine.url.database}")) is None:
        raise SettingsError(
            f"DATABASE_URL: there is no {engine.url.database};"
            f" start the service, or make it with: {upgrade}"
        )
    found = schema_of(engine)
    if found is None:
        raise SettingsError(f"DATABASE_URL: no keys were ever kept there; begin with: {upgrade}")
    if found > SCHEMA:
        raise SettingsError(
            "DATABASE_URL: its schema is newer than the service; install the newer service"
        )
    if found < SCHEMA:
        raise SettingsError(
            "DATABASE_URL: its schema is older than the service;"
            f" bring it up to date with: {upgrade}"
        )


def schema_of(engine: sa.Engine) -> str | None:
    """The newest revision that it has."""
    with transaction(engine) as connection:
        inspector = sa.inspect(connection)
        if inspector.has_table(SCHEMA_TABLE):
            version = sa.column("version_num", sa.String())
            newest = sa.select(sa.func.max(version)).select_from(sa.table(SCHEMA_TABLE))
            return connection.scalar(newest)
        # Older services wrote theirs down among the revisions of everything else.
        return FIRST_SCHEMA if inspector.has_table("api_keys") else None


def _out_of_reach(error: Exception, url: sa.URL) -> StoreUnavailableError:
    """In the driver's own words, in one line, and without the password."""
    cause = getattr(error, "orig", None) or error
    said = " ".join(f"{cause}".split()).rstrip(".") or type(cause).__name__
    reason = said.replace(str(url.password), "***") if url.password else said
    return StoreUnavailableError(f"DATABASE_URL: out of reach: {reason}")
