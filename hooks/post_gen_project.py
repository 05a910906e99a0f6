"""Lay the chosen flavour in place, write the first keys into `.env`, and tell what comes next."""

import contextlib
import filecmp
import os
import shutil
import uuid
from pathlib import Path

SLUG = "{{ cookiecutter.project_slug }}"
HEADER = "{{ cookiecutter.api_key_header }}"
CHOSEN = Path("flavours/{{ cookiecutter.key_store }}")
FLAVOURS = (Path("flavours/database"), Path("flavours/env"))
NOTE = Path("flavours/README.md")


def files_of(flavour):
    """Where they belong in the project, and where they are now."""
    paths = (path for path in flavour.rglob("*") if path.is_file())
    return {path.relative_to(flavour): path for path in paths}


def lay_in_place():
    # The first hook has emptied the note, and cookiecutter has left it: --skip-if-file-exists.
    keep_what_is_there = NOTE.stat().st_size == 0
    chosen = files_of(CHOSEN)
    for target, source in chosen.items():
        if not (keep_what_is_there and target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    if not keep_what_is_there:
        remove_leftovers(chosen)
    for flavour in FLAVOURS:
        shutil.rmtree(flavour)
    NOTE.unlink()
    with contextlib.suppress(OSError):  # the owner has a folder of this name
        os.rmdir("flavours")


def remove_leftovers(chosen):
    """What another answer has left here, unless its owner has changed it since."""
    for flavour in FLAVOURS:
        for target, source in files_of(flavour).items():
            if target not in chosen and target.is_file() and filecmp.cmp(target, source, False):
                target.unlink()
                with contextlib.suppress(OSError):  # its folder is not empty
                    os.removedirs(target.parent)


def write_keys():
    """Whether the keys were written; a file that is there already stays as it is."""
    try:
        # O_EXCL: created here or not touched at all. 0600: for its owner only.
        descriptor = os.open(".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"API_KEYS={uuid.uuid4()},{uuid.uuid4()}\n")
    return True


lay_in_place()
if write_keys():
    print(f"Two API keys are in {SLUG}/.env. Keep that file to yourself.")
else:
    print(f"The API keys in {SLUG}/.env stay as they were.")
print(
    rf"""
Start the service:

    cd {SLUG}
    uv run fastapi dev

Call it from a second terminal in the same folder (bash, zsh or Git Bash):

    curl -H "{HEADER}: $(sed -n 's/^API_KEYS=\([^,]*\).*/\1/p' .env)" http://127.0.0.1:8000/secure-endpoint

README.md has the rest."""
)
