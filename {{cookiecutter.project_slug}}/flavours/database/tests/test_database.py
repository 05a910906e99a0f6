"""Your tables."""

import sqlalchemy as sa
from alembic import command

from app.auth.tables import configuration


def test_the_migrations_make_what_the_models_say(database_url: sa.URL) -> None:
    """Else: `uv run alembic revision --autogenerate -m "..."`, and read what it wrote."""
    command.check(configuration(database_url))
