"""The page about tables of one's own, followed to the letter."""

import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.project import Project, postgresql, render
from tests.reader import Reader, page

pytestmark = pytest.mark.slow

CHAPTERS = ("Example", "Streams", "Tests", "Change a table")
# What the models do not know of: a table of somebody else's, and a trigger.
REMOVED = "CREATE TABLE removed (title TEXT)"
TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER remember AFTER DELETE ON notebooks"
        " BEGIN INSERT INTO removed VALUES (OLD.title); END"
    ],
    "postgresql": [
        "CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO removed VALUES (OLD.title); RETURN OLD; END $$",
        "CREATE TRIGGER remember AFTER DELETE ON notebooks"
        " FOR EACH ROW EXECUTE FUNCTION remember()",
    ],
}
EXECUTE = """
import sys
from app.database import get_engine
with get_engine().begin() as connection:
    for statement in sys.argv[1:]:
        result = connection.exec_driver_sql(statement)
        if result.returns_rows:
            print(*result.scalars())
"""


class TableReader(Reader):
    def __init__(self, project: Project, kind: str, **variables: str) -> None:
        super().__init__(project, page("own-tables.md"), *CHAPTERS, **variables)
        self.kind = kind

    def execute(self, *statements: str) -> str:
        return self.run("uv", "run", "python", "-c", EXECUTE, *statements).strip()

    def files(self) -> list[Path]:
        return list((self.project.path / "app" / "migrations" / "versions").glob("*.py"))

    def revisions(self) -> list[str]:
        return [path.read_text("utf-8") for path in self.files()]

    def keep_the_trigger(self) -> None:
        """The newest revision drops it before the table changes, and creates it again."""
        (path,) = (path for path in self.files() if "alter_column" in path.read_text("utf-8"))
        head, changes, rest = re.split(
            r"(?<=def upgrade\(\) -> None:\n)(.*?)(?=\n\n\ndef )",
            path.read_text("utf-8"),
            flags=re.DOTALL,
        )
        (create,) = TRIGGERS["sqlite"]
        drop = "DROP TRIGGER remember"
        lines = [f"    op.execute({drop!r})", changes, f"    op.execute({create!r})"]
        path.write_text(head + "\n".join(lines) + rest, "utf-8")

    @contextmanager
    def serving(self) -> Iterator[str]:
        command = "uv run uvicorn app.main:app --workers 2 --port {port}"
        with self.project.serving(*command.split(), **self.variables) as url:
            yield url


def call(method: str, url: str, key: str, body: object = None) -> Any:
    """The answer's JSON; whatever is not a success is raised."""
    headers = {"api-key": key, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, headers, method=method)  # noqa: S310
    with urlopen(request, timeout=60) as response:  # noqa: S310
        return json.loads(response.read() or b"null")


@pytest.fixture(
    params=[pytest.param(each, marks=pytest.mark.xdist_group(each)) for each in TRIGGERS]
)
def reader(request: pytest.FixtureRequest, template: Path) -> Iterator[TableReader]:
    # Not in pytest's folder: each pytest that starts closes that to the user PostgreSQL runs as.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder))
        project.run("uv", "sync", "--quiet")
        if request.param == "sqlite":
            yield TableReader(project, "sqlite")
            return
        with postgresql(Path(folder) / "pg") as url:
            yield TableReader(project, "postgresql", DATABASE_URL=url)


def test_the_page_holds(reader: TableReader) -> None:
    *first, change, (console, migrate) = reader.blocks
    assert len(first) > 5
    for block in first:
        reader.follow(*block)
    [revision] = reader.revisions()
    assert "notebooks" in revision
    assert "api_key" not in revision
    arguments = ("--scope", "notes:*", "--owner", "acme")
    first, second = (
        reader.project.manage_keys("create", name, *arguments, **reader.variables)
        for name in ("writer", "reader")
    )
    key = first["key"]

    with reader.serving() as url:
        id = call("POST", f"{url}/notebooks", key, {"title": "Ideas"})["id"]

        def write(number: int) -> int:
            note = call("POST", f"{url}/notebooks/{id}/notes", key, {"text": f"{number}"})
            return int(note["number"])

        # Each reads the notebook, changes it and commits, and so does the other worker.
        with ThreadPoolExecutor(8) as threads:
            numbers = sorted(threads.map(write, range(200)))
    assert numbers == list(range(1, 201))

    reader.execute(REMOVED, *TRIGGERS[reader.kind])
    reader.follow(*change)
    generate, upgrade = migrate.splitlines()
    reader.follow(console, generate)
    assert not re.search("api_key|removed", "".join(reader.revisions()))
    if reader.kind == "sqlite":
        refused = reader.project.run(*shlex.split(upgrade), check=False, **reader.variables)
        assert refused.returncode == 1
        assert "trigger remember" in refused.stderr
        reader.keep_the_trigger()
        reader.run("uv", "run", "ruff", "format", "--quiet")
    with ThreadPoolExecutor(3) as threads:  # of several servers that are deployed, one migrates
        list(threads.map(lambda _: reader.follow(console, upgrade), range(3)))
    assert len(reader.revisions()) == 2
    for command in ("alembic check", "ruff check", "ruff format --check", "mypy"):
        reader.run("uv", "run", *command.split())

    reader.project.manage_keys("revoke", first["id"], **reader.variables)
    key = second["key"]  # the rows belong to the owner, and outlive the key
    with reader.serving() as url:
        notebook = call("GET", f"{url}/notebooks/{id}", key)
        assert [note["number"] for note in notebook["notes"]] == numbers
        call("DELETE", f"{url}/notebooks/{id}", key)
    assert reader.execute("SELECT count(*) FROM notes") == "0"
    assert reader.execute("SELECT title FROM removed") == "Ideas"
