"""How Alembic gets to know your tables. Modules with models are imported here."""

import app.models  # noqa: F401
from app.auth.database.owner_migrations import run_migrations
from app.database import Base

run_migrations(Base.metadata)
