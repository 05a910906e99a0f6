"""Tests. They read neither your settings nor your keys, wherever those are."""

import os
import sys
from pathlib import Path
from tempfile import mkdtemp

from app.auth.config import sources
from app.auth.key import new_secret
from app.settings import Settings

# `app.main` reads the settings when it is imported. A server that tests start has its own.
if "pytest" in sys.modules:
    folder = mkdtemp()
    sources.ENV_FILE = Path(folder) / ".env"
    for name in [*os.environ]:
        if name.lower() in {*Settings.model_fields, "secrets_dir", "secrets_vault"}:
            del os.environ[name]
    os.environ["DATABASE_URL"] = f"sqlite:///{folder}/keys.db"  # part: database
    os.environ["API_KEYS"] = new_secret()
