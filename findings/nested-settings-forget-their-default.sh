#!/usr/bin/env bash
# Guess: with `database: Database = Database(url="sqlite:///own.db", pool=20)`, DATABASE__POOL=9 changes the pool and
#   leaves the rest of that default alone.
# Fact: one variable replaces the whole default. The url falls back to what the Database class says, without a word.
#   `nested_model_default_partial_update=True` gives the guess. A folder of secrets does not nest as variables do: with
#   secrets_dir a file named database__pool is ignored in silence, although the delimiter is "__".
# Why it matters: a change of one number in production can point a service at another database.
# Versions: pydantic-settings 2.16.3, pydantic 2.14.4.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check pydantic-settings==2.16.3 pydantic==2.14.4
mkdir secrets
echo 7 > secrets/database__pool
venv/bin/python - <<'PY'
import os
from importlib.metadata import version

from pydantic import BaseModel
from pydantic_settings import BaseSettings, SettingsConfigDict


class Database(BaseModel):
    url: str = "sqlite:///class.db"
    pool: int = 5


def settings(variable=None, **config):
    class Settings(BaseSettings):
        model_config = SettingsConfigDict(env_nested_delimiter="__", **config)
        database: Database = Database(url="sqlite:///own.db", pool=20)

    os.environ.pop("DATABASE__POOL", None)
    if variable:
        os.environ["DATABASE__POOL"] = variable
    read = Settings().database
    print(f"DATABASE__POOL={variable} {config}: {read!r}")
    return read.url, read.pool


print("pydantic-settings", version("pydantic-settings"))
assert settings() == ("sqlite:///own.db", 20)
assert settings("9") == ("sqlite:///class.db", 9)
assert settings("9", nested_model_default_partial_update=True) == ("sqlite:///own.db", 9)
assert settings(secrets_dir="secrets") == ("sqlite:///own.db", 20)
PY
