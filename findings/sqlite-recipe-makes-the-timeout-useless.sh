#!/usr/bin/env bash
# Guess: on SQLite, SQLAlchemy's `connect_args={"timeout": 30}` means that a writer waits up to 30 seconds for another
#   one, and a `with engine.begin()` block is a transaction from its first line on.
# Fact: as it comes, the block begins at its first write. What it read before is not protected: another commit in
#   between is overwritten and nobody is told. With the documented recipe for real transactions (isolation_level None,
#   an explicit BEGIN) the same write fails with "database is locked" at once, whatever the timeout: a reader cannot
#   become a writer once somebody else has committed, so SQLite does not wait. BEGIN IMMEDIATE waits and is right.
# Why it matters: more timeout does not help against this error, and the error is the better of the two outcomes.
# Versions: sqlalchemy 2.1.9 with the standard library's sqlite3 (Python 3.11 and newer), WAL mode.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check sqlalchemy==2.1.9
venv/bin/python - <<'PY'
import sqlite3
import sys
import threading
import time
from importlib.metadata import version

import sqlalchemy as sa

print("sqlalchemy", version("sqlalchemy"), "SQLite", sqlite3.sqlite_version, "Python", sys.version.split()[0])


def add_one_while_another_adds_ten(begin):
    engine = sa.create_engine(f"sqlite:///{begin or 'default'}.db", connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def connect(connection, record):
        connection.execute("PRAGMA journal_mode = WAL")
        if begin:
            connection.isolation_level = None

    if begin:
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))

    def add_ten():
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE used SET n = n + 10")

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE used (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO used VALUES (0)")
    other, outcome, start = threading.Thread(target=add_ten), "ok", time.monotonic()
    try:
        with engine.begin() as connection:
            n = connection.exec_driver_sql("SELECT n FROM used").scalar()
            other.start()
            other.join(0.5)
            connection.exec_driver_sql(f"UPDATE used SET n = {n + 1}")
    except sa.exc.OperationalError as error:
        outcome = str(error.orig)
    seconds = time.monotonic() - start
    other.join()
    with engine.begin() as connection:
        n = connection.exec_driver_sql("SELECT n FROM used").scalar()
    print(f"{begin or 'as it comes'}: {outcome} after {seconds:.1f} s, n = {n}")
    return outcome, n, seconds < 5


assert add_one_while_another_adds_ten(None) == ("ok", 1, True)
assert add_one_while_another_adds_ten("BEGIN") == ("database is locked", 10, True)
assert add_one_while_another_adds_ten("BEGIN IMMEDIATE") == ("ok", 11, True)
PY
