"""How Alembic reaches the database: through the connection that `app.auth.database.migrate` gives it."""

from alembic import context

from app.auth.database.engine import SCHEMA_TABLE
from app.auth.database.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=SCHEMA_TABLE,
    include_object=lambda _, __, kind, found, known: (
        # Other people's tables, and the indexes that are rules, are in the database alone.
        known is not None or not (found and kind in {"table", "index"})
    ),
)
with context.begin_transaction():
    context.run_migrations()
