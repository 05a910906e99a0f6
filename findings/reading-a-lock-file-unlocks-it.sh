#!/usr/bin/env bash
# Guess: a process holds a lock file until it lets go, and reading that file (to show who holds it, say) changes nothing.
# Fact: fasteners uses POSIX record locks. They belong to the process and the file, not to the descriptor, and closing
#   any descriptor of the file ends them. One open(path).read() in the holder, in any thread or library, and another
#   process gets the lock, while the holder still believes that it has it (`acquired` is True). filelock and
#   portalocker take the other kind of lock, and keep it.
# Why it matters: three libraries with one purpose and nearly one interface differ in whether two workers can run the
#   same migration or clean-up at once. SQLite's files have the same kind of lock: do not open them beside it.
# Versions: fasteners 0.20, filelock 4.3.1, portalocker 4.4.2, on Linux.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check fasteners==0.20 filelock==4.3.1 portalocker==4.4.2
cat > lock.py <<'PY'
import sys

import fasteners
import filelock
import portalocker


def take(kind, path):
    """Return a held lock, or None if another process has it."""
    try:
        if kind == "fasteners":
            lock = fasteners.InterProcessLock(path)
            return lock if lock.acquire(blocking=False) else None
        if kind == "filelock":
            lock = filelock.FileLock(path)
            lock.acquire(timeout=0)
            return lock
        lock = portalocker.Lock(path, timeout=0)
        lock.acquire()
        return lock
    except (filelock.Timeout, portalocker.LockException):
        return None


if __name__ == "__main__":
    print(take(*sys.argv[1:]) is not None)
PY
venv/bin/pip freeze | grep -E '^(fasteners|filelock|portalocker)='
venv/bin/python - <<'PY'
import subprocess
import sys

from lock import take

for kind, lost in (("fasteners", True), ("filelock", False), ("portalocker", False)):
    path = f"{kind}.lock"
    held = take(kind, path)
    another = [sys.executable, "lock.py", kind, path]
    before = subprocess.check_output(another, text=True).strip()
    with open(path) as file:
        file.read()
    after = subprocess.check_output(another, text=True).strip()
    print(f"{kind}: another process gets it: {before}; after the holder has read the file: {after}")
    assert (before, after) == ("False", str(lost))
    if kind == "fasteners":
        assert held.acquired
PY
