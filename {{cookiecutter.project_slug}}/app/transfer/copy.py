"""Copies the database into an empty one, of the other kind as well, in one transaction."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc

from app.auth.cli.context import Wiring
from app.auth.cli.output import note
from app.auth.config.settings import AuthSettings
from app.auth.database import migrate
from app.auth.database.engine import SCHEMA_TABLE, check_schema, connect, transaction
from app.auth.database.models import api_key_servers, metadata
from app.auth.database.owner_migrations import TIMEOUT, upgrade_tables
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.keys.views import AT_ONCE
from app.database import Base

WAIT: Final = 2.0  # seconds for others who write to the target
REVISION: Final = sa.table("alembic_version", sa.column("version_num"))

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def copy(
    settings: AuthSettings, to: sa.URL, wiring: Wiring, progress: Progress
) -> Mapping[str, int]:
    """Returns how many rows each table has. Raises SettingsError or StoreUnavailableError."""
    source, target = (connect(url, timeout=TIMEOUT) for url in (settings.database_url, to))
    check_schema(source)
    if to == settings.database_url:
        raise SettingsError("--to: this is the database itself; name an empty one")
    with _errors_of_target():
        is_new = migrate.upgrade(to)
        for policy in wiring.make_policies(settings.model_copy(update={"database_url": to})):
            policy.upgrade()
        upgrade_tables(to, wiring.migrations)  # which imports every module with models
    # A transaction that writes holds off all others that change keys.
    with transaction(source, write=True) as old:
        with _errors_of_target(), transaction(connect(to, timeout=WAIT), write=True):
            pass  # nobody can, if it is the same database under another name
        with transaction(target, write=True) as new:
            return _copy(old, new, is_new, progress)


@contextmanager
def _errors_of_target() -> Generator[None]:
    try:
        yield
    except StoreUnavailableError as error:
        reason = f"{error}".replace("DATABASE_URL", "--to", 1)
        raise SettingsError(f"{reason}; name an empty database that nobody else uses") from None


def _copy(
    old: sa.Connection, new: sa.Connection, is_new: bool, progress: Progress
) -> Mapping[str, int]:
    tables = _tables(old)
    _check_target(old, new, tables, is_new=is_new)
    if old.dialect.name == "postgresql":  # others may write the owner's tables there
        names = ", ".join(map(old.dialect.identifier_preparer.format_table, tables))
        old.exec_driver_sql(f"SET LOCAL TIME ZONE 'UTC'; LOCK TABLE {names} IN SHARE MODE")
    elif orphan := old.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise SettingsError(f"DATABASE_URL: a row of {orphan[0]} refers to one that is not there")
    counts = {table.fullname: _count(old, table) for table in tables}
    steps = sum(-(-rows // AT_ONCE) for rows in counts.values())
    for _ in progress(_work(old, new, tables), 2 * steps):
        pass
    return counts


def _tables(old: sa.Connection) -> list[sa.Table]:
    """Those of the keys, and those of the owner. Servers write their own rows."""
    inspector = sa.inspect(old)
    every = Base.metadata.tables.values()
    yours = [each for each in every if inspector.has_table(each.name, schema=each.schema)]
    tables = [*(each for each in metadata.sorted_tables if each is not api_key_servers), *yours]
    known = {SCHEMA_TABLE, REVISION.name, *(table.name for table in tables)}
    names = (name for name in inspector.get_table_names() if not name.startswith("api_key_"))
    if others := sorted({*names} - known):
        note(f"Not copied, since no model declares them: {', '.join(others)}")
    return tables


def _check_target(
    old: sa.Connection, new: sa.Connection, tables: Sequence[sa.Table], *, is_new: bool
) -> None:
    here, there = (
        sorted(side.scalars(sa.select(REVISION.c.version_num)))
        if sa.inspect(side).has_table(REVISION.name)
        else []
        for side in (old, new)
    )
    if here != there:
        raise SettingsError("DATABASE_URL: your tables there are older; run `db upgrade` first")
    for table in tables:
        if is_new and table.metadata is not metadata:
            new.execute(sa.delete(table))  # what your migrations have put there just now
        elif _count(new, table):
            raise SettingsError(f"--to: {table.fullname} has rows (a broken copy?); name another")


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def _work(old: sa.Connection, new: sa.Connection, tables: Sequence[sa.Table]) -> Iterator[None]:
    """Copy and check some rows at a time."""
    constraints = [*_defer_foreign_keys(new, tables)]
    written = dict.fromkeys(tables, 0)
    for table in tables:
        computed = {column.key for column in table.c if column.computed is not None}
        for rows in _rows(old, table):
            written[table] += sum(map(_fingerprint, rows))
            values = [{name: row[name] for name in row if name not in computed} for row in rows]
            try:
                new.execute(sa.insert(table), values)
            except exc.SQLAlchemyError as error:
                reason = f"{getattr(error, 'orig', error)}".partition("\n")[0]
                raise SettingsError(f"--to: {table.fullname}: {reason}; none is there") from None
            yield
    for table in tables:
        read = 0
        for rows in _rows(new, table):
            read += sum(map(_fingerprint, rows))
            yield
        if read != written[table]:
            raise SettingsError(f"--to: {table.fullname} came out otherwise; none is there")
    if new.dialect.name == "postgresql":
        new.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        for constraint in constraints:
            new.exec_driver_sql(f"{constraint} NOT DEFERRABLE")
        _move_sequences(new, tables)


def _defer_foreign_keys(new: sa.Connection, tables: Sequence[sa.Table]) -> Iterator[str]:
    """They are checked when all rows are there. Yields what is to be put back."""
    if new.dialect.name == "sqlite":
        new.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        return
    new.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
    quoted = new.dialect.identifier_preparer
    for table in tables:
        for key in sa.inspect(new).get_foreign_keys(table.name, schema=table.schema):
            if not key["options"].get("deferrable"):
                name = quoted.quote(f"{key['name']}")
                constraint = f"ALTER TABLE {quoted.format_table(table)} ALTER CONSTRAINT {name}"
                new.exec_driver_sql(f"{constraint} DEFERRABLE INITIALLY DEFERRED")
                yield constraint


def _move_sequences(new: sa.Connection, tables: Sequence[sa.Table]) -> None:
    """The next number is behind the largest one."""
    for table in tables:
        name = new.dialect.identifier_preparer.format_table(table)
        for column in table.c:
            sequence = new.scalar(sa.select(sa.func.pg_get_serial_sequence(name, column.name)))
            latest = new.scalar(sa.select(sa.func.max(column))) if sequence else None
            if latest is not None:
                new.execute(sa.select(sa.func.setval(sequence, latest)))


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    """In SQL, NULL is not the null of JSON, but SQLAlchemy reads both as None."""
    in_json = [column.key for column in table.c if isinstance(column.type, sa.JSON)]
    columns = [column.label(column.key) for column in table.c]
    nulls = [table.c[name].is_(sa.null()).label(f"{name} null") for name in in_json]
    query = sa.select(*columns, *nulls)
    with connection.execute(query, execution_options={"yield_per": AT_ONCE}) as found:
        for some in found.mappings().partitions():
            rows = [{**row} for row in some]
            for row in rows:
                row |= {name: sa.null() for name in in_json if row.pop(f"{name} null")}
            yield rows


def _fingerprint(row: Mapping[str, Any]) -> int:
    """The sum over a table says whether it has the same rows, in any order."""
    text = repr([(name, _as_text(row[name])) for name in row])
    return int.from_bytes(sha256(text.encode()).digest())


def _as_text(value: Any) -> str:
    """The same for what each database has of a value."""
    if isinstance(value, datetime) and value.tzinfo:
        value = value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(value, dict | list):
        value = json.dumps(value, sort_keys=True)
    return repr(value.normalize() if isinstance(value, Decimal) else value)
