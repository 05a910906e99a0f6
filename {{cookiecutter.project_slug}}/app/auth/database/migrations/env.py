"""Alembic's environment. It uses the connection from `app.auth.database.migrate`."""

from alembic import context

from app.auth.database.engine import SCHEMA_TABLE
from app.auth.database.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=SCHEMA_TABLE,
    include_object=lambda _, __, kind, found, known: (
        # Ignore the tables of others, and the indexes that enforce rules: `models` lacks both.
        known is not None or not (found and kind in {"table", "index"})
    ),
)
with context.begin_transaction():
    context.run_migrations()
