"""Connects to the database of the keys. Every wait has a timeout."""

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

TIMEOUT: Final = 5.0  # seconds until a database that does not answer counts as out of reach
LONG_TIMEOUT: Final = 600.0  # seconds for a change to all keys, perhaps millions
SCHEMA: Final = "0006"  # the version of the tables in `models` and of their rules
SCHEMA_TABLE: Final = "api_keys_schema"
SCHEMAS: Final = sa.Table(
    SCHEMA_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
)
OPTIONS: Final[dict[str, Any]] = {  # of a connection to PostgreSQL
    "application_name": COMMAND,
    "client_encoding": "utf8",  # whatever the encoding of the database
    "connect_timeout": round(TIMEOUT),
    "tcp_user_timeout": round(TIMEOUT * 1000),
    "keepalives_idle": 5,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "target_session_attrs": "primary",  # a standby lags behind: it knows no new revocation
    "prepare_threshold": None,  # behind a pooler each transaction may have another server
}
LOCK: Final = int.from_bytes(b"api_keys")  # the number of the advisory lock in PostgreSQL


def connect(
    url: sa.URL, *, timeout: float = TIMEOUT, pooled: bool = False, **options: Any
) -> sa.Engine:
    """An engine whose transactions end after `timeout` seconds at the latest.

    Without a pool no connection outlives its transaction, so none goes stale, and processes that
    fork share none. `options` are SQLAlchemy's options of a pool. Raises SettingsError if the URL
    has an option that does not exist.
    """
    pool: dict[str, Any] = {"poolclass": sa.NullPool}
    if pooled:
        pool = {"poolclass": sa.QueuePool, "pool_size": 8, "pool_timeout": timeout, **options}
    if url.get_backend_name() == "sqlite":
        path = Path(f"{url.database}")
        engine = sa.create_engine(url, creator=lambda: _open_file(path, timeout), **pool)
        event.listen(engine, "checkout", partial(_check_file, path))
        event.listen(engine, "begin", partial(_begin_in_sqlite, timeout))
        event.listen(engine, "commit", partial(_check_file_of, path))
        return engine
    try:
        engine = sa.create_engine(
            url,
            isolation_level="READ COMMITTED",  # after a wait, see what others have committed
            connect_args={**OPTIONS},
            execution_options={"timeout": timeout},
            **pool,
        )
    except exc.ArgumentError as error:
        raise SettingsError(f"DATABASE_URL: {error}") from None

    # SQLAlchemy queries the server on the first connection, before any transaction.
    event.listen(engine, "connect", _watch_handshake, insert=True)
    event.listen(engine, "checkout", _end_handshake)
    event.listen(engine, "begin", _limit_in_postgresql)
    return engine


@contextmanager
def transaction(
    engine: sa.Engine, *, write: bool = False, timeout: float | None = None
) -> Generator[sa.Connection]:
    """Commits at the end of the block, or not at all. One transaction writes at a time.

    Raises StoreUnavailableError.
    """
    options: dict[str, Any] = {"begin": "BEGIN IMMEDIATE" if write else "BEGIN"}
    if timeout is not None:
        options["timeout"] = timeout
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
            if engine.pool is not pool:  # disposed of meanwhile: the new pool would not close it
                connection.detach()
    except (exc.SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        raise out_of_reach(error, engine.url) from None


# PostgreSQL.


@contextmanager
def cut_off_in_time(connection: sa.Connection) -> Generator[None]:
    """Ends the connection if the block takes longer than the transaction may."""
    if connection.dialect.name == "sqlite":  # it has no server that could hang
        yield
        return
    timeout = connection.get_execution_options()["timeout"]
    cancel = _watch(connection.connection.driver_connection, timeout)
    try:
        yield
    finally:
        cancel()


def _watch(opened: Any, timeout: float) -> Callable[[], None]:
    """Shuts the socket down after this many seconds, unless the returned function is called.

    TCP has no timeout for a frozen server, because its kernel still acknowledges everything.
    """
    try:
        line = socket.fromfd(opened.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise exc.OperationalError(None, None, error) from None

    def hang_up() -> None:
        with line, suppress(OSError):  # it may be closed already
            line.shutdown(socket.SHUT_RDWR)

    timer = Timer(timeout, hang_up)
    timer.daemon = True
    timer.start()

    def cancel() -> None:
        timer.cancel()
        line.close()

    return cancel


def _watch_handshake(opened: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    record.info[_watch] = _watch(opened, TIMEOUT)


def _end_handshake(_: object, record: sa.pool.ConnectionPoolEntry, __: object) -> None:
    if cancel := record.info.pop(_watch, None):
        cancel()


def _limit_in_postgresql(connection: sa.Connection) -> None:
    milliseconds = round(connection.get_execution_options()["timeout"] * 1000)
    # LOCAL: behind a pooler, each transaction may have another server.
    connection.exec_driver_sql(
        f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds}"
    )


# SQLite.


class _Connection(sqlite3.Connection):
    file: tuple[int, int] | None = None  # device and inode


def uri_of(path: Path, mode: str) -> str:
    """SQLite's URI of a file. In the modes ro and rw, opening it never creates the file."""
    return f"file:{quote(os.fsencode(path.absolute().as_posix()))}?mode={mode}"


def _open_file(path: Path, timeout: float) -> _Connection:
    file = file_of(path)
    # Not the device: its number may be another one after a reboot.
    inode = f"{file[1]}" if file else ""
    is_noted = _refuse_strange_wal(path, inode)
    connection = sqlite3.connect(
        uri_of(path, "rw"),
        uri=True,
        timeout=timeout,
        isolation_level=None,  # `_begin_in_sqlite` begins the transactions
        check_same_thread=False,
        factory=_Connection,
    )
    try:
        # A commit survives a power cut. In WAL mode readers do not wait for a writer.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if _holds_keys(connection):
            if _insist(connection, "PRAGMA journal_mode = WAL", timeout).fetchone() != ("wal",):
                raise sqlite3.OperationalError(
                    "SQLite cannot share memory there; keep the file on a local disk"
                )
            if not is_noted:
                _note_owner_of_wal(path, inode)
        if file != file_of(path):
            raise sqlite3.OperationalError(f"{path} was replaced just now")
    except BaseException:
        connection.close()
        raise
    connection.file = file
    return connection


def _holds_keys(connection: sqlite3.Connection) -> bool:
    """A file without keys stays as it is: opening it must not change it."""
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'api_keys'")
    return tables.fetchone() is not None


def _insist(opened: sqlite3.Connection, statement: str, timeout: float) -> sqlite3.Cursor:
    """Execute it as soon as other processes let it. SQLite itself does not wait for a change of
    the mode, and looks less and less often when it waits to write, so the first would be last."""
    give_up_at = monotonic() + timeout
    while True:
        try:
            return opened.execute(statement)
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or monotonic() > give_up_at:
                raise
        sleep(0.002)


def _owner_of_wal(path: Path) -> Path:
    """It has the inode of the file that the -wal belongs to."""
    return Path(f"{path.resolve()}-inode")


def _refuse_strange_wal(path: Path, inode: str) -> bool:
    """SQLite adds a -wal to whichever file has the name. Returns whether its owner is noted."""
    note, wal = _owner_of_wal(path), Path(f"{path.resolve()}-wal")
    try:
        owner = note.read_text(encoding="ascii")
        is_strange = owner not in ("", inode) and wal.stat().st_size > 0
    except OSError:
        return False
    if is_strange:
        raise sqlite3.OperationalError(
            f"{path} was put there, and {wal.name} may be of another file, as {note.name} says:"
            " move all three away, side by side only if they belong together, and run"
            f" `{COMMAND} db restore FILE`"
        )
    return owner == inode


def _note_owner_of_wal(path: Path, inode: str) -> None:
    note = _owner_of_wal(path)
    with suppress(OSError):
        note.unlink(missing_ok=True)  # it may be another user's
        note.touch(mode=0o600)
        note.write_text(inode, encoding="ascii")


def file_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file with this name. Does not open it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_file(path: Path, opened: _Connection, *_: object) -> None:
    """If another file has taken the place of the open one, SQLAlchemy opens the new one."""
    if file_of(path) != opened.file:
        raise exc.DisconnectionError(f"{path} was replaced")


def _check_file_of(path: Path, ending: sa.Connection) -> None:
    opened: Any = ending.connection.dbapi_connection  # also of a detached connection
    _check_file(path, opened)


def _begin_in_sqlite(timeout: float, connection: sa.Connection) -> None:
    begin = connection.get_execution_options().get("begin", "BEGIN")
    if begin == "BEGIN":
        connection.exec_driver_sql(begin)
        return
    opened: Any = connection.connection.driver_connection
    opened.execute("PRAGMA busy_timeout = 0")
    try:
        _insist(opened, begin, timeout)
    except sqlite3.OperationalError as error:
        raise exc.OperationalError(begin, None, error) from None
    finally:
        opened.execute(f"PRAGMA busy_timeout = {round(timeout * 1000)}")


# The schema.


def check_schema(engine: sa.Engine) -> None:
    """Raises SettingsError if the database has no schema or another one, and
    StoreUnavailableError."""
    upgrade = f"uv run {COMMAND} db upgrade"
    if engine.dialect.name == "sqlite" and file_of(Path(f"{engine.url.database}")) is None:
        raise SettingsError(
            f"DATABASE_URL: there is no {engine.url.database};"
            f" start the service, or make it with: {upgrade}"
        )
    with transaction(engine) as connection:
        found = schema_of(connection)
    if found is None:
        raise SettingsError(f"DATABASE_URL: no keys were ever kept there; begin with: {upgrade}")
    if found > SCHEMA:
        raise SettingsError(
            "DATABASE_URL: its schema is newer than the service; install the newer service"
        )
    if found < SCHEMA:
        raise SettingsError(
            "DATABASE_URL: a version that was never released made its tables;"
            f" name a new database, and begin with: {upgrade}"
        )


def schema_of(connection: sa.Connection) -> str | None:
    """The version of the tables; None if there are none, "" if they have no version."""
    inspector = sa.inspect(connection)
    if inspector.has_table(SCHEMA_TABLE):
        newest: str | None = connection.scalar(sa.select(sa.func.max(SCHEMAS.c.version_num)))
        return newest
    return "" if inspector.has_table("api_keys") else None


def out_of_reach(error: Exception, url: sa.URL) -> StoreUnavailableError:
    """The driver's message in one line, without the password."""
    cause = getattr(error, "orig", None) or error
    message = " ".join(f"{cause}".split()).rstrip(".") or type(cause).__name__
    reason = message.replace(str(url.password), "***") if url.password else message
    return StoreUnavailableError(f"DATABASE_URL: out of reach: {reason}")
