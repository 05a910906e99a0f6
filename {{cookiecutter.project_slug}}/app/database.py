"""Your tables' database: the base of your models, and the sessions that endpoints ask for."""

from collections.abc import Iterator
from functools import cache
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Engine, MetaData
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Session

from app.auth.database.engine import connect
from app.settings import load_settings

TIMEOUT = 30.0  # seconds for a statement and for whoever is in its way, or the request fails


class Base(DeclarativeBase):
    """What every model inherits from. Each constraint has a name, so that it can be changed."""

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
    """Keeps nothing that is changed in it, and waits for nobody; on SQLite the others do."""

    def commit(self) -> None:
        raise InvalidRequestError("This session only reads: ask for a DatabaseSession")


@cache
def get_engine() -> Engine:
    """The database of DATABASE_URL, with connections apart from those that the keys have."""
    url = load_settings().database_url
    engine = connect(url, timeout=TIMEOUT, pooled=True, pool_pre_ping=True)
    # For SQLite, where one may write at a time: who it is, is settled before anything is read. So
    # nobody has read what has changed since, and no commit fails.
    return engine.execution_options(begin="BEGIN IMMEDIATE")


def get_session() -> Iterator[Session]:
    """What is not committed is undone. It stays closed then, whoever still has it."""
    with Session(get_engine(), expire_on_commit=False, close_resets_only=False) as session:
        yield session


def get_read_only_session() -> Iterator[ReadOnly]:
    engine = get_engine().execution_options(begin="BEGIN")
    with ReadOnly(engine, close_resets_only=False) as session:
        yield session


# They end before the answer is sent: a client that takes its time keeps nobody else waiting.
DatabaseSession = Annotated[Session, Depends(get_session, scope="function")]
ReadOnlySession = Annotated[ReadOnly, Depends(get_read_only_session, scope="function")]
