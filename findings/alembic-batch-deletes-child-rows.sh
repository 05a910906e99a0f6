#!/usr/bin/env bash
# Guess: a migration that only drops NOT NULL from one column touches no row, in this table or another, and keeps
#   what else belongs to the table.
# Fact: SQLite cannot alter a column, so Alembic's batch mode copies the table, drops the old one and renames the copy.
#   With PRAGMA foreign_keys=ON the drop counts as a delete of every row: ON DELETE CASCADE empties the child tables.
#   Triggers are gone with the old table. Collations are not read back, so "a" no longer finds "A", in the column and
#   in the index. There is no warning and no error. Partial indexes do survive.
# Why it matters: whoever turns foreign keys on for every connection, as is good practice, also does so for migrations
#   and loses an audit trail to a harmless change. Turn them off before the migration's transaction begins.
# Versions: alembic 1.20.1, sqlalchemy 2.1.9.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check alembic==1.20.1 sqlalchemy==2.1.9
venv/bin/python - <<'PY'
import sqlite3
import warnings
from importlib.metadata import version

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

print("alembic", version("alembic"), "sqlalchemy", version("sqlalchemy"), "SQLite", sqlite3.sqlite_version)


def migrate(foreign_keys):
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")

        def ask(sql):
            return connection.exec_driver_sql(sql).scalar()

        for statement in (
            f"PRAGMA foreign_keys = {foreign_keys}",
            "CREATE TABLE keys (id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE)",
            "CREATE TABLE events (id INTEGER PRIMARY KEY, key INTEGER REFERENCES keys (id) ON DELETE CASCADE)",
            "CREATE TRIGGER touched AFTER UPDATE ON keys BEGIN SELECT 1; END",
            "CREATE INDEX live ON keys (name) WHERE id > 0",
            "INSERT INTO keys VALUES (1, 'A')",
            "INSERT INTO events VALUES (1, 1), (2, 1)",
        ):
            connection.exec_driver_sql(statement)
        connection.commit()
        assert ask("SELECT count(*) FROM keys WHERE name = 'a'") == 1
        with Operations(MigrationContext.configure(connection)).batch_alter_table("keys") as batch:
            batch.alter_column("name", nullable=True)
        after = {"keys": ask("SELECT count(*) FROM keys"), "events": ask("SELECT count(*) FROM events"),
                 "found as 'a'": ask("SELECT count(*) FROM keys WHERE name = 'a'"),
                 "triggers": ask("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'"),
                 "partial indexes": ask("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%WHERE id > 0'")}
        print("foreign_keys", foreign_keys, after, "warnings:", len(told))
        return after, told


rest = {"keys": 1, "found as 'a'": 0, "triggers": 0, "partial indexes": 1}
assert migrate("ON") == ({"events": 0, **rest}, [])
assert migrate("OFF") == ({"events": 2, **rest}, [])
PY
