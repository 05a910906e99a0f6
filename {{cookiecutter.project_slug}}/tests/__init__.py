"""Tests. They read neither your settings nor your keys, wherever those are."""

import os
from pathlib import Path
from tempfile import mkdtemp

from app.auth.config import sources
from app.auth.key import new_secret
from app.settings import Settings

# `app.main` reads the settings when it is imported.
sources.ENV_FILE = Path(mkdtemp()) / ".env"
for name in [*os.environ]:
    if name.lower() in {*Settings.model_fields, "secrets_dir", "secrets_vault"}:
        del os.environ[name]
os.environ["DATABASE_URL"] = f"sqlite:///{sources.ENV_FILE.with_name('keys.db')}"  # part: database
os.environ["API_KEYS"] = new_secret()
