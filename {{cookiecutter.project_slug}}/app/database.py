"""The database of your tables: the base class of models, and sessions for endpoints."""

from collections.abc import Iterator
from functools import cache
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Engine, MetaData
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Session

from app import settings
from app.auth.database.engine import connect

TIMEOUT = 30.0  # seconds for a statement or a lock; after that the request fails


class Base(DeclarativeBase):
    """The base class of your models. Constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


class ReadOnly(Session):
    """A session that saves no changes. On SQLite it does not wait for writers."""

    def commit(self) -> None:
        raise InvalidRequestError("This session only reads: ask for a DatabaseSession")


@cache
def get_engine() -> Engine:
    """The engine for DATABASE_URL. The keys use connections of their own."""
    url = (settings.latest or settings.load_settings()).database_url  # a vault answers once
    engine = connect(url, timeout=TIMEOUT, pooled=True, pool_pre_ping=True)
    # SQLite allows one writer at a time. Taking the lock before the first read keeps that data
    # current until the commit, so no commit fails.
    return engine.execution_options(begin="BEGIN IMMEDIATE")


def get_session() -> Iterator[Session]:
    """A session whose uncommitted changes are rolled back. It cannot be used after the end."""
    with Session(get_engine(), expire_on_commit=False, close_resets_only=False) as session:
        yield session


def get_read_only_session() -> Iterator[ReadOnly]:
    engine = get_engine().execution_options(begin="BEGIN")
    with ReadOnly(engine, close_resets_only=False) as session:
        yield session


# Sessions end before the answer is sent, so that a slow client blocks nobody. Who waits for one
# takes no thread.
DatabaseSession = Annotated[Session, Depends(get_session, scope="function", max_concurrency=8)]
ReadOnlySession = Annotated[ReadOnly, Depends(get_read_only_session, scope="function")]
