"""Tells Alembic your tables. Import here every module that has models."""

import app.models  # noqa: F401
from app.auth.database.owner_migrations import run_migrations
from app.database import Base
from app.settings import load_settings

run_migrations(Base.metadata, load_settings)
