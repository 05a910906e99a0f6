"""Your tables, and the sessions that endpoints work with."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from fastapi import FastAPI
from sqlalchemy.exc import InvalidRequestError
from starlette.types import Message, Receive, Scope, Send

from app.auth.database.migrate import upgrade
from app.auth.database.owner_migrations import configuration, upgrade_tables
from app.auth.errors import SettingsError
from app.cli import MIGRATIONS
from app.database import DatabaseSession, get_engine, get_read_only_session
from tests.callers import status_of

ENV = """
import sqlalchemy
from app.auth.database.owner_migrations import run_migrations
from app.settings import load_settings
run_migrations(sqlalchemy.MetaData(), load_settings)
"""
REVISION = """
from alembic import op
revision, down_revision = "first", None
def upgrade():
    op.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
    op.execute("INSERT INTO {table} VALUES (1)")
"""


def test_the_migrations_make_what_the_models_say(database_url: sa.URL) -> None:
    """Else: `uv run alembic revision --autogenerate -m "..."`, and read what it wrote."""
    command.check(configuration(database_url, MIGRATIONS))


def test_a_revision_is_applied_wholly_or_not_at_all(tmp_path: Path) -> None:
    url = sa.URL.create("sqlite", database=f"{tmp_path}/other.db")  # without revisions of yours
    upgrade(url)
    revision = tmp_path / "versions" / "first.py"
    revision.parent.mkdir()
    (tmp_path / "env.py").write_text(ENV)
    engine = sa.create_engine(url)
    revision.write_text(REVISION.format(table="no_such_table"))
    with pytest.raises(SettingsError, match="Nothing has changed: no such table: no_such_table"):
        upgrade_tables(url, tmp_path)
    assert "notes" not in sa.inspect(engine).get_table_names()
    revision.write_text(REVISION.format(table="notes"))
    assert [upgrade_tables(url, tmp_path) for _ in range(2)] == [True, False]
    assert "notes" in sa.inspect(engine).get_table_names()
    engine.dispose()


def test_a_session_has_the_settings_of_the_start(
    service: FastAPI, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "")  # a vault may not answer a second time
    assert get_engine().url == database_url


def test_a_session_that_only_reads_does_not_commit(database_url: sa.URL) -> None:
    with contextmanager(get_read_only_session)() as session, pytest.raises(InvalidRequestError):
        session.commit()


async def test_a_session_ends_before_the_answer_is_sent(database_url: sa.URL) -> None:
    app, sessions = FastAPI(), []

    @app.get("/")
    def endpoint(session: DatabaseSession) -> None:
        session.execute(sa.text("SELECT 1"))
        sessions.append(session)

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            assert not sessions[0].in_transaction()
            await send(message)

        await app(scope, receive, watch)

    assert await status_of(watching, path="/", body=b"") == 200
    assert len(sessions) == 1
