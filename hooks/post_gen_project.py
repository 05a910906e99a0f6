"""Keep what was chosen, write the first keys into `.env`, and tell what comes next."""

import json
import os
import re
import uuid
from pathlib import Path

SLUG = "{{ cookiecutter.project_slug }}"
HEADER = "{{ cookiecutter.api_key_header }}"
# fmt: off
PARTS = json.loads(r'''{{ cookiecutter._parts | tojson }}''')
ANSWERS = json.loads(r'''{{ cookiecutter | tojson }}''')
# fmt: on
FLAVOURS = Path("flavours")
STARTED = Path(".rendering")  # the first hook has written it before anything was rendered
MARK = re.compile(rb"[ \t]*(?:#|//|<!--) part: ([a-z, ]+?)(?: -->)?(?=\r?\n|\Z)")


def is_new(path):
    """Whether this run has written the file. What else is there belongs to the owner."""
    return path.stat().st_mtime_ns >= STARTED.stat().st_mtime_ns


def files_in(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def remove(path):
    """The file, and each folder that it leaves empty."""
    path.unlink()
    for folder in path.parents[:-1]:
        if any(folder.iterdir()):
            break
        folder.rmdir()


def lay_flavour(flavour):
    """Put its files over those of the project, but for files that the owner keeps."""
    for source in files_in(FLAVOURS / flavour):
        target = source.relative_to(FLAVOURS / flavour)
        if not target.exists() or is_new(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)


def remove_parts(parts):
    for name in parts:
        path = Path(name)
        for file in files_in(path) if path.is_dir() else [path]:
            if file.is_file() and is_new(file):
                remove(file)


def settle_marks(chosen):
    """Drop the lines of parts that were not chosen, and the marks of those that were."""
    for path in filter(is_new, files_in(Path())):
        content = path.read_bytes()
        if b"part: " in content:
            path.write_bytes(b"".join(settled(content.splitlines(keepends=True), chosen)))


def settled(lines, chosen):
    before, dropped = b"", False
    for line in lines:
        mark = MARK.search(line)
        if mark:
            if chosen.isdisjoint(mark[1].decode().split(", ")):
                dropped = True
                continue
            line = line[: mark.start()] + line[mark.end() :]
        if dropped and not (before.strip() or line.strip()):
            continue  # one of the two blank lines around what was dropped
        before, dropped = line, False
        yield line


def write_keys():
    """Whether the keys were written. A file that is there already stays as it is."""
    try:
        # O_EXCL: created here or not touched at all. 0600: for its owner only.
        descriptor = os.open(".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"API_KEYS={uuid.uuid4()},{uuid.uuid4()}\n")
    return True


flavour = ANSWERS["key_store"]
chosen = {part for part in PARTS if ANSWERS.get(part) is True} | {flavour}
lay_flavour(flavour)
for part in PARTS:
    if part not in chosen:
        remove_parts(PARTS[part])
for file in filter(is_new, files_in(FLAVOURS)):
    remove(file)
settle_marks(chosen)
STARTED.unlink()
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
