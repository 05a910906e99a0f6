"""Keep what was chosen, write the first keys into `.env`, and tell what comes next."""

import json
import os
import re
import stat
import uuid
from pathlib import Path

# What goes if a part is not chosen: these paths, and the lines that end in its mark, `# part: NAME`.
# A path that needs two parts stands with both. `database` and `env` are answers to `key_store`.
PARTS = {
    "limits": "app/limits tests/limits",
    "management": "app/console app/management tests/management",
    "metrics": "app/metrics deploy/grafana deploy/prometheus tests/metrics",
    "gateway": "app/gateway tests/gateway",
    "transfer": "app/transfer tests/transfer",
    "vaults": "app/vaults tests/vaults",
    "deploy": """
        compose.yaml deploy/README.md deploy/haproxy.cfg deploy/kubernetes
        deploy/prometheus/kubernetes.yaml deploy/up.sh
    """,
    "database": """
        app/auth/cli/changes.py app/auth/cli/context.py app/auth/cli/database.py
        app/auth/cli/output.py app/auth/database app/auth/keys
        app/auth/store/cache.py app/auth/store/queries.py app/auth/store/usage_writer.py
        app/auth/usage app/database.py app/migrations app/models.py app/policies.py
        deploy/kubernetes/migration.yaml
        tests/auth/test_keys.py tests/auth/test_scopes.py
        tests/test_database.py
    """,
    "env": "",
}
MARK = re.compile(rb"[ \t]*(?:#|//|<!--) part: ([a-z, ]+?)(?: -->)?(?=\r?\n|\Z)")

# As JSON in a raw string an answer stays data, whatever it holds.
# fmt: off
ANSWERS = json.loads(r'''{{ dict(key_store=cookiecutter.key_store, limits=cookiecutter.limits, management=cookiecutter.management, metrics=cookiecutter.metrics, gateway=cookiecutter.gateway, transfer=cookiecutter.transfer, vaults=cookiecutter.vaults, deploy=cookiecutter.deploy) | tojson }}''')
# fmt: on
SLUG = "{{ cookiecutter.project_slug }}"
HEADER = "{{ cookiecutter.api_key_header }}"


# The other hook has this function as well: hooks cannot import each other.
def list_files():
    """When each file was last changed, in the places where the template has files."""
    files = """
        .dockerignore .env.example .gitignore .pre-commit-config.yaml Dockerfile README.md
        compose.yaml pyproject.toml
    """
    paths = [Path(name) for name in files.split()]
    for top in (".github", "app", "deploy", "flavours", "tests"):
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = {*subfolders} - {"__pycache__"}  # which changes while a server runs
            paths += [Path(folder, name) for name in names]
    return {path.as_posix(): path.stat().st_mtime_ns for path in paths if path.is_file()}


def list_written():
    """The names of the files of this run. All others belong to the owner."""
    listed = Path(".rendering")  # by the other hook, before anything was written
    before = json.loads(listed.read_text("utf-8"))
    listed.unlink()
    return {name for name, changed in list_files().items() if before.get(name) != changed}


def remove_empty(folder):
    """The folder and those around it, up to one with something in it."""
    for each in (folder, *folder.parents)[:-1]:
        try:
            each.rmdir()
        except OSError:
            break


def lay_flavour(written, flavour):
    """Put its files over those of the project, but for files that the owner keeps."""
    folder = f"flavours/{flavour}/"
    for name in [name for name in written if name.startswith(folder)]:
        source, target = Path(name), Path(name[len(folder) :])
        if target.as_posix() in written or not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            remove_empty(source.parent)
            written.remove(name)
            written.add(target.as_posix())


def remove_parts(written, chosen):
    left_out = " ".join(paths for part, paths in PARTS.items() if part not in chosen)
    for path in ["flavours", *left_out.split()]:
        for name in [name for name in written if f"{name}/".startswith(f"{path}/")]:
            Path(name).unlink()
            remove_empty(Path(name).parent)
            written.remove(name)


def settle_marks(written, chosen):
    """Drop the lines of parts that were not chosen, and the marks of those that were."""
    for path in map(Path, written):
        content = path.read_bytes()
        if b" part: " in content and b"\0" not in content:
            path.write_bytes(b"".join(settle(content.splitlines(keepends=True), chosen)))


def settle(lines, chosen):
    kept, dropped = [], False
    for line in lines:
        mark = MARK.search(line)
        if mark and chosen.isdisjoint(mark[1].decode().split(", ")):
            dropped = True
            continue
        if mark:
            line = line[: mark.start()] + line[mark.end() :]
        # Of the blank lines around what was dropped, those before it are enough.
        if not dropped or line.strip() or (kept and kept[-1].strip()):
            kept.append(line)
            dropped = False
    while dropped and kept and not kept[-1].strip():
        kept.pop()
    return kept


def added_without_lines(written, chosen):
    """The parts that got files while --skip-if-file-exists kept those that need lines of theirs."""
    if "pyproject.toml" in written:
        return []
    firsts = {part: PARTS[part].split()[:1] for part in sorted(chosen)}
    return [
        part
        for part, first in firsts.items()
        if any(f"{name}/".startswith(f"{path}/") for name in written for path in first)
    ]


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


flavour = ANSWERS.pop("key_store")
chosen = {flavour, *(part for part in ANSWERS if ANSWERS[part])}
written = list_written()
for path in map(Path, written):  # a template that may only be read gives files like it
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
lay_flavour(written, flavour)
remove_parts(written, chosen)
settle_marks(written, chosen)
if write_keys():
    keys = f"Two API keys are in {SLUG}/.env. Keep that file to yourself."
else:
    keys = f"The API keys in {SLUG}/.env stay as they were."
if added := ", ".join(added_without_lines(written, chosen)):
    keys += f"\nFiles that were kept may lack the lines of: {added}. Without -s they get them; then look at"
    keys += " `git diff`."
try:
    print(
        rf"""{keys}

Start the service:

    cd {SLUG}
    uv run fastapi dev

Call it from a second terminal in the same folder (bash, zsh or Git Bash):

    curl -H "{HEADER}: $(sed -n 's/^API_KEYS=\([^,]*\).*/\1/p' .env)" http://127.0.0.1:8000/secure-endpoint

README.md has the rest.""",
        flush=True,
    )
except OSError:  # nobody reads it: the project is there all the same
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
