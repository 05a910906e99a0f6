#!/usr/bin/env bash
# Guess: with the service stopped, copying a backup over the database file restores it, and if it did not,
#   `PRAGMA integrity_check` would say so.
# Fact: after a stop without a clean close (a killed container) a `-wal` file stays beside the database. SQLite replays
#   it into whatever file has the name. Here the restored file answers with the data from before the restore, the check
#   says "ok", and the next close writes the old data into the copy for good. Copying through SQLite's backup interface,
#   or removing the -wal first, restores.
# Why it matters: a restore that is tested with a clean stop works; the one after a crash, which is when one restores,
#   silently does nothing.
# Versions: apsw 3.54.1.0 (with SQLite 3.54.1 inside).
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check apsw==3.54.1.0
venv/bin/python - <<'PY'
import os
import shutil

import apsw


def after_an_unclean_stop(name):
    """Make a database whose backup says "backup" and whose -wal says "later"."""
    connection = apsw.Connection(name)
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE state (is_from TEXT); INSERT INTO state VALUES ('backup')")
    connection.pragma("wal_checkpoint", "TRUNCATE")
    with apsw.Connection(f"{name}.bak") as copy, copy.backup("main", connection, "main") as backup:
        backup.step()
    connection.execute("UPDATE state SET is_from = 'later'")
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # leaves the -wal behind, as a kill does
    connection.close()
    assert os.path.getsize(f"{name}-wal") > 0
    return name


def read(name):
    connection = apsw.Connection(name)
    answer = connection.execute("SELECT is_from FROM state").get, connection.pragma("integrity_check")
    connection.close()
    return answer


print("apsw", apsw.apsw_version(), "SQLite", apsw.sqlite_lib_version())
copied = after_an_unclean_stop("copied.db")
shutil.copy(f"{copied}.bak", copied)
first, second = read(copied), read(copied)
print("copied over:", first, "and without a -wal now:", second, os.listdir("."))
assert first == second == ("later", "ok") and not os.path.exists(f"{copied}-wal")

removed = after_an_unclean_stop("removed.db")
os.remove(f"{removed}-wal")
shutil.copy(f"{removed}.bak", removed)
print("copied over, -wal removed first:", read(removed))
assert read(removed) == ("backup", "ok")

backed = after_an_unclean_stop("backed.db")
with apsw.Connection(backed) as target, target.backup("main", apsw.Connection(f"{backed}.bak"), "main") as backup:
    backup.step()
print("backup interface:", read(backed))
assert read(backed) == ("backup", "ok")
PY
