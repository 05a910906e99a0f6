"""Your tables, and the sessions that endpoints work with."""

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic import command
from fastapi import FastAPI
from sqlalchemy.exc import InvalidRequestError
from starlette.types import Message

from app.auth.database.owner_migrations import configuration
from app.cli import MIGRATIONS
from app.database import DatabaseSession, get_read_only_session


def test_the_migrations_make_what_the_models_say(database_url: sa.URL) -> None:
    """Else: `uv run alembic revision --autogenerate -m "..."`, and read what it wrote."""
    command.check(configuration(database_url, MIGRATIONS))


def test_a_session_that_only_reads_does_not_commit(database_url: sa.URL) -> None:
    with contextmanager(get_read_only_session)() as session, pytest.raises(InvalidRequestError):
        session.commit()


async def test_a_session_ends_before_the_answer_is_sent(database_url: sa.URL) -> None:
    app, sessions = FastAPI(), []

    @app.get("/")
    def endpoint(session: DatabaseSession) -> None:
        session.execute(sa.text("SELECT 1"))
        sessions.append(session)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        assert not sessions[0].in_transaction()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert len(sessions) == 1
