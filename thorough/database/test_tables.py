"""The owner's tables: a chain of revisions of their own, migrations that lose nothing, sessions."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.runtime.migration import MigrationInfo
from alembic.util import CommandError
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.auth.database.engine import SCHEMA_TABLE, connect, transaction
from app.auth.database.migrate import upgrade
from app.auth.database.owner_migrations import configuration, upgrade_tables
from app.auth.errors import SettingsError, StoreUnavailableError
from app.cli import MIGRATIONS
from app.database import DatabaseSession, ReadOnlySession, get_engine
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.commands import run
from tests.thorough.databases import Databases, PostgreSQLDatabases, SQLiteDatabases
from tests.thorough.services import make_service

ENV = """
import sqlalchemy
from alembic import context
from app.auth.database.owner_migrations import run_migrations
from app.settings import load_settings
attributes = context.config.attributes
metadata, options = attributes.get("metadata", sqlalchemy.MetaData()), attributes.get("options", {})
run_migrations(metadata, load_settings, **options)
"""
REVISION = """
import sqlalchemy as sa
from alembic import context, op
revision, down_revision = {revision!r}, {before!r}
def upgrade():
    {steps}
"""


class Colour(sa.TypeDecorator[str]):
    """A type as an owner may have one."""

    impl = sa.String(7)
    cache_ok = True


class Chain:
    """Revisions in a folder of their own, for this database."""

    def __init__(self, folder: Path, url: sa.URL) -> None:
        self.url, self.folder = url, folder
        (folder / "versions").mkdir(parents=True)
        (folder / "env.py").write_text(ENV)
        shutil.copy(MIGRATIONS / "script.py.mako", folder)
        self.last: str | None = None

    def add(self, *steps: str) -> str:
        """A revision, of Python and of SQL. Gives its id."""
        python = ("context.", "op.", "with ")
        steps = tuple(s if s.startswith(python) else f"op.execute({s!r})" for s in steps)
        revision = f"r{len(list((self.folder / 'versions').glob('*.py')))}"
        text = REVISION.format(revision=revision, before=self.last, steps="\n    ".join(steps))
        (self.folder / "versions" / f"{revision}.py").write_text(text)
        self.last = revision
        return revision

    def upgrade(self) -> None:
        upgrade_tables(self.url, self.folder)

    def apply(self, *steps: str) -> None:
        self.add(*steps)
        self.upgrade()

    def fails(self, *steps: str) -> str:
        """What is said of a revision that is not applied."""
        self.add(*steps)
        before = self.schema()
        with pytest.raises(SettingsError) as raised:
            self.upgrade()
        assert self.schema() == before
        said = f"{raised.value}".removeprefix(f"{self.folder}: ")
        assert "\n" not in said
        return said

    def run(self, command: Callable[..., object], *arguments: Any, **attributes: Any) -> None:
        """One of Alembic's commands, with what the revisions and `env.py` need."""
        config = configuration(self.url, self.folder)
        config.attributes.update(attributes)
        command(config, *arguments)

    def generate(self, name: str, metadata: sa.MetaData) -> str:
        """What Alembic writes for these models; it is applied, and then there is no more to do."""
        self.run(command.revision, name, True, metadata=metadata)
        self.upgrade()
        self.run(command.check, metadata=metadata)
        [path] = (self.folder / "versions").glob(f"*_{name}.py")
        return path.read_text()

    def execute(self, *statements: str) -> list[Any]:
        with transaction(connect(self.url), write=True) as connection:
            results = [connection.exec_driver_sql(statement) for statement in statements]
            return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []

    def schema(self) -> list[str]:
        with transaction(connect(self.url)) as connection:
            inspector = sa.inspect(connection)
            return sorted(
                f"{table} {column}"
                for table in inspector.get_table_names()
                for column in inspector.get_columns(table)
            )


@pytest.fixture
def chain(databases: Databases, tmp_path: Path) -> Iterator[Chain]:
    with databases.empty(tmp_path) as url:
        upgrade(url)
        yield Chain(tmp_path / "chain", url)


@pytest.fixture
def sqlite_chain(sqlite_databases: SQLiteDatabases, tmp_path: Path) -> Iterator[Chain]:
    with sqlite_databases.empty(tmp_path) as url:
        upgrade(url)
        yield Chain(tmp_path / "chain", url)


NULLABLE = (
    "with op.batch_alter_table('parents') as batch:"
    " batch.alter_column('name', existing_type=sa.Text(), nullable=True)"
)
PARENTS = "CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"
CHILDREN = (
    "CREATE TABLE children (id INTEGER PRIMARY KEY,"
    " parent INTEGER NOT NULL REFERENCES parents ON DELETE CASCADE)"
)


def test_they_are_a_chain_of_their_own(chain: Chain) -> None:
    before = chain.execute("SELECT version_num FROM api_keys_schema")
    chain.apply(PARENTS)
    revision = chain.add(CHILDREN)
    chain.upgrade()
    assert chain.execute("SELECT version_num FROM alembic_version") == [(revision,)]
    assert chain.execute("SELECT version_num FROM api_keys_schema") == before


def test_what_is_generated_is_of_the_models_alone(chain: Chain) -> None:
    def models(nullable: bool) -> sa.MetaData:
        metadata = sa.MetaData()
        colour = sa.Column("colour", Colour, nullable=nullable, index=True)
        sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True), colour)
        return metadata

    chain.execute("CREATE TABLE somebody_elses (id INTEGER)")
    first = chain.generate("first", models(nullable=False))
    assert f"import {__name__}\n" in first
    chain.execute("INSERT INTO parents VALUES (1, 'red')")
    second = chain.generate("second", models(nullable=True))
    chain.execute("INSERT INTO parents VALUES (2, NULL)")
    assert "somebody_elses" not in first + second
    assert "api_key" not in first + second
    with pytest.raises(CommandError, match="parents"):
        chain.run(command.check, metadata=models(nullable=False))
    chain.execute("DELETE FROM parents WHERE id = 2")
    chain.run(command.downgrade, "-1")
    assert chain.execute("SELECT * FROM parents") == [(1, "red")]
    with pytest.raises(StoreUnavailableError, match="colour"):
        chain.execute("INSERT INTO parents VALUES (2, NULL)")


def test_tables_of_a_schema_are_yours_too(
    postgresql_databases: PostgreSQLDatabases, tmp_path: Path
) -> None:
    def models(nullable: bool) -> sa.MetaData:
        metadata = sa.MetaData()
        for schema in (None, "shop"):
            table = sa.Table("orders", metadata, sa.Column("id", sa.Integer), schema=schema)
            table.append_column(sa.Column("note", sa.Text, nullable=nullable))
        return metadata

    with postgresql_databases.empty(tmp_path) as url:
        upgrade(url)
        chain = Chain(tmp_path / "chain", url)
        others = ("DROP SCHEMA IF EXISTS shop, other CASCADE", "CREATE SCHEMA other")
        chain.execute(*others, "CREATE TABLE other.orders (id INTEGER)", "CREATE SCHEMA shop")
        chain.execute("CREATE TABLE shop.somebody_elses (id INTEGER)")
        first = chain.generate("first", models(nullable=True))
        second = chain.generate("second", models(nullable=False))
        assert "somebody_elses" not in first + second
        assert "other" not in first + second
        assert second.count("nullable=False") == 2
        chain.execute("DROP SCHEMA shop, other CASCADE")


def test_alembics_options_are_the_owners(chain: Chain) -> None:
    applied = list[str]()

    def note(step: MigrationInfo, **_: object) -> None:
        applied.append(f"{step.up_revision_id}")

    options = {
        "on_version_apply": note,
        "render_as_batch": False,
        "include_name": lambda name, kind, _: kind != "table" or name == "mine",
        "version_table": "mine_version",
    }
    metadata = sa.MetaData()
    sa.Table("mine", metadata, sa.Column("id", sa.Integer))
    sa.Table("not_mine", metadata, sa.Column("id", sa.Integer))
    chain.run(command.revision, "first", True, metadata=metadata, options=options)
    chain.run(command.upgrade, "head", options=options)
    assert len(applied) == 1
    assert len(chain.execute("SELECT * FROM mine_version")) == 1


def test_migrations_are_printed_as_sql(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.add(PARENTS, "op.execute(\"INSERT INTO parents VALUES (1, '100%')\")")
    before = chain.schema()
    chain.run(partial(command.upgrade, sql=True), "head")
    printed = capsys.readouterr().out
    assert "CREATE TABLE parents" in printed
    assert "'100%'" in printed
    assert "INSERT INTO alembic_version" in printed
    assert chain.schema() == before
    chain.add(NULLABLE)
    if chain.url.get_backend_name() == "sqlite":  # it has to look at the table
        with pytest.raises(CommandError, match=r"^This operation cannot proceed in --sql mode"):
            chain.run(partial(command.upgrade, sql=True), "head")
    else:
        chain.run(partial(command.upgrade, sql=True), "head")
        assert "ALTER COLUMN name DROP NOT NULL" in capsys.readouterr().out


def test_a_revision_that_fails_changes_nothing(chain: Chain) -> None:
    chain.apply(PARENTS)
    assert "no_such_table" in chain.fails(CHILDREN, "INSERT INTO no_such_table VALUES (1)")


def test_while_one_migrates_no_other_does(chain: Chain) -> None:
    tried = []

    def meanwhile() -> None:
        with (
            pytest.raises(StoreUnavailableError),
            transaction(connect(chain.url, timeout=0.2), write=True),
        ):
            pass
        tried.append(True)

    chain.add("context.config.attributes['meanwhile']()")
    chain.run(command.upgrade, "head", meanwhile=meanwhile)
    assert tried


def test_rows_that_refer_to_a_changed_table_stay(chain: Chain) -> None:
    chain.apply(PARENTS, CHILDREN)
    chain.execute("INSERT INTO parents VALUES (1, 'a')", "INSERT INTO children VALUES (1, 1)")
    chain.apply(NULLABLE)
    chain.execute("INSERT INTO parents VALUES (2, NULL)")
    assert chain.execute("SELECT * FROM children") == [(1, 1)]
    chain.execute("DELETE FROM parents")
    assert chain.execute("SELECT * FROM children") == []


def test_a_row_that_would_refer_to_nothing_stops_the_revision(chain: Chain) -> None:
    chain.apply(PARENTS, CHILDREN)
    chain.execute("INSERT INTO parents VALUES (1, 'a')", "INSERT INTO children VALUES (1, 1)")
    said = chain.fails("UPDATE children SET parent = 2")
    assert said.startswith("Nothing has changed: ")
    assert "children" in said
    assert "parents" in said


# What SQLite would lose with the old table, when Alembic rebuilds one.

BORN = "CREATE TRIGGER born AFTER INSERT ON parents BEGIN INSERT INTO log VALUES (NEW.name); END"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("lost", "steps"),
    [
        ("trigger born", [PARENTS, "CREATE TABLE log (name TEXT)", BORN]),
        ("trigger other", [PARENTS, BORN.replace("born", "other").replace("parents", "Parents")]),
        ("view names", [PARENTS, "CREATE VIEW names AS SELECT name FROM parents"]),
        ("index small", [PARENTS, "CREATE UNIQUE INDEX small ON parents (lower(name))"]),
        ("CHECK", ["CREATE TABLE parents (name TEXT NOT NULL CHECK (name <> ''))"]),
        ("COLLATE", ["CREATE TABLE parents (name TEXT NOT NULL COLLATE NOCASE UNIQUE)"]),
        (
            "AUTOINCREMENT",
            ["CREATE TABLE parents (name TEXT NOT NULL, id INTEGER PRIMARY KEY AUTOINCREMENT)"],
        ),
    ],
)
def test_what_would_be_lost_stops_the_revision(
    sqlite_chain: Chain, lost: str, steps: list[str]
) -> None:
    sqlite_chain.apply(*steps)
    said = sqlite_chain.fails(NULLABLE)
    assert said.startswith("Nothing has changed: ")
    assert lost in said


def test_what_the_revision_drops_and_creates_again_stays(sqlite_chain: Chain) -> None:
    index = "CREATE UNIQUE INDEX small ON parents (lower(name))"
    view = "CREATE VIEW names AS SELECT name FROM parents"
    autoincrement = "id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL"
    sqlite_chain.apply(f"CREATE TABLE parents ({autoincrement})", "CREATE TABLE log (name TEXT)")
    sqlite_chain.apply(BORN, index, view)
    keep = NULLABLE.replace("'parents'", "'parents', table_kwargs={'sqlite_autoincrement': True}")
    drop = ["DROP TRIGGER born", "DROP INDEX small", "DROP VIEW names"]
    sqlite_chain.apply(*drop, keep, BORN, index, view)
    sqlite_chain.execute("INSERT INTO parents VALUES (7, 'a')", "DELETE FROM parents")
    sqlite_chain.execute("INSERT INTO parents (name) VALUES (NULL)")
    assert sqlite_chain.execute("SELECT * FROM log") == [("a",), (None,)]
    assert sqlite_chain.execute("SELECT id FROM parents") == [(8,)]
    sqlite_chain.apply(*drop, keep)  # for good
    triggers = "SELECT * FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'parents'"
    assert sqlite_chain.execute(triggers) == []


def test_a_table_that_is_renamed_is_followed_by_what_refers_to_it(sqlite_chain: Chain) -> None:
    sqlite_chain.apply(PARENTS, CHILDREN)
    sqlite_chain.apply(NULLABLE, "op.rename_table('parents', 'people')")
    sqlite_chain.execute("INSERT INTO people VALUES (1, 'a')", "INSERT INTO children VALUES (1, 1)")


# Which database.


def test_an_upgrade_brings_both_up_to_date(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with databases.empty(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        assert run("db", "upgrade").exit_code == 0
        tables = sa.inspect(connect(url)).get_table_names()
    assert {"api_keys", SCHEMA_TABLE, "alembic_version"} <= set(tables)


@pytest.mark.filterwarnings("default")
def test_a_chain_that_cannot_be_applied_is_told_in_one_line(chain: Chain) -> None:
    chain.last = "0001"  # which somebody has deleted
    assert chain.fails(PARENTS).startswith("Nothing has changed: Revision 0001 ")


def test_where_there_is_no_chain_there_is_nothing_to_do(chain: Chain, tmp_path: Path) -> None:
    before = chain.schema()
    upgrade_tables(chain.url, tmp_path)
    assert chain.schema() == before


def test_alembic_changes_no_database_that_is_not_up_to_date(
    databases: Databases, tmp_path: Path
) -> None:
    with databases.empty(tmp_path) as url:
        chain = Chain(tmp_path / "chain", url)
        with pytest.raises(CommandError, match="db upgrade"):
            chain.run(command.upgrade, "head")
        with pytest.raises(CommandError, match="db upgrade"):
            chain.run(command.check)


def test_alembic_tells_a_bad_setting_in_one_line(
    sqlite_chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://localhost")
    with pytest.raises(CommandError, match=r"^DATABASE_URL: .*$"):
        sqlite_chain.run(command.current, url=None)  # as on Alembic's own command line


def test_the_service_that_starts_brings_the_keys_up_to_date_and_no_more(
    sqlite_databases: SQLiteDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_databases.empty(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string())
        make_service(load_settings())
        tables = sa.inspect(connect(url)).get_table_names()
    assert SCHEMA_TABLE in tables
    assert "alembic_version" not in tables


def test_whoever_waits_to_write_looks_often(
    sqlite_chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own pauses get longer; then others who write without a pause always come first."""
    engine, pauses = connect(sqlite_chain.url), list[float]()
    with ExitStack() as other:
        other.enter_context(transaction(engine, write=True))

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 9:
                other.close()

        monkeypatch.setattr("app.auth.database.engine.sleep", pause)
        sqlite_chain.execute("CREATE TABLE mine (id INTEGER)")
    assert len(pauses) == 9
    assert max(pauses) < 0.01


# Sessions.


async def test_writers_that_wait_hold_no_other_endpoint_up(database_url: sa.URL) -> None:
    """More of them than there are threads: a reader and an endpoint without a database answer."""
    api = FastAPI()

    @api.post("/numbers")
    def write(session: DatabaseSession) -> None:
        session.execute(sa.text("INSERT INTO numbers VALUES (1)"))
        session.commit()

    @api.get("/numbers")
    def read(session: ReadOnlySession) -> None:
        session.execute(sa.text("SELECT count(*) FROM numbers")).one()

    @api.get("/plain")
    def plain() -> None: ...

    is_sqlite = database_url.get_backend_name() == "sqlite"
    with Session(get_engine()) as holder:
        holder.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))
        holder.commit()
        lock = "INSERT INTO numbers VALUES (0)" if is_sqlite else "LOCK numbers IN EXCLUSIVE MODE"
        holder.execute(sa.text(lock))
        writers = [
            asyncio.create_task(status_of(api, path="/numbers", method="POST", body=b""))
            for _ in range(60)
        ]
        async with asyncio.timeout(10):
            await asyncio.sleep(0.1)  # they have come
            for path in ("/numbers", "/plain"):
                assert await status_of(api, path=path, body=b"") == 200
        assert not any(writer.done() for writer in writers)
        holder.rollback()
    assert await asyncio.gather(*writers) == [200] * 60
