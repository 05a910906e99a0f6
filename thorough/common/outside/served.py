"""For `uvicorn --factory`. The package `tests`, once it is imported, hides the settings."""

import os

from app.auth.config import sources

environment, env_file = {**os.environ}, sources.ENV_FILE

from tests.thorough.services import start  # noqa: E402

os.environ.clear()
os.environ.update(environment)
sources.ENV_FILE = env_file

__all__ = ["start"]
