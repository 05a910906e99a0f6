"""Your tables, and the sessions that endpoints work with."""

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic import command
from fastapi import FastAPI
from sqlalchemy.exc import InvalidRequestError
from starlette.types import Message, Receive, Scope, Send

from app.auth.database.owner_migrations import configuration
from app.cli import MIGRATIONS
from app.database import DatabaseSession, get_engine, get_read_only_session
from tests.callers import status_of


def test_the_migrations_make_what_the_models_say(database_url: sa.URL) -> None:
    """Else: `uv run alembic revision --autogenerate -m "..."`, and read what it wrote."""
    command.check(configuration(database_url, MIGRATIONS))


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
