"""What comes out with the default answers, read as text."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.project import FLAVOURS, ROOT, TOP, UUID4, Project, environment, run

CONSTANTS = "app/constants.py"
VENDORED = "app/docs/static/"

Rendered = Callable[..., Project]


def files_in(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Sources:
    """The files of a copied template by the names that they get in a project."""

    common: dict[str, Path]
    flavours: dict[str, dict[str, Path]]

    @classmethod
    def of(cls, template: Path) -> "Sources":
        common = {
            name: path
            for name, path in files_in(template / TOP).items()
            if not name.startswith("flavours/")
        }
        flavours = {
            flavour: files_in(template / TOP / "flavours" / flavour) for flavour in FLAVOURS
        }
        return cls(common, flavours)

    def of_project(self, flavour: str) -> dict[str, Path]:
        return self.common | self.flavours[flavour]


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def project(rendered: Rendered, flavour: str) -> Project:
    return rendered({"key_store": flavour})


@pytest.fixture(scope="session")
def sources(template: Path) -> Sources:
    return Sources.of(template)


def test_the_files(project: Project, sources: Sources, flavour: str) -> None:
    assert project.files().keys() == sources.of_project(flavour).keys() | {".env"}
    folders = [path for path in project.path.rglob("*") if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders)
    assert not [folder for folder in folders if folder.name == "flavours"]


def test_the_default_is_the_database(rendered: Rendered, sources: Sources) -> None:
    files = rendered().files().keys()
    assert files == sources.of_project("database").keys() | {".env"}
    assert files != sources.of_project("env").keys() | {".env"}


def test_only_the_top_folder_has_jinja_in_its_name(template: Path) -> None:
    names = [path.relative_to(template).as_posix() for path in template.rglob("*")]
    assert {name for name in names if re.search(r"[{}%]", name.removeprefix(f"{TOP}/"))} == {TOP}


def test_python_is_the_templates_own_to_the_byte(
    project: Project, sources: Sources, flavour: str
) -> None:
    for name, source in sources.of_project(flavour).items():
        if name.startswith(VENDORED) or (name.endswith((".py", ".mako")) and name != CONSTANTS):
            assert (project.path / name).read_bytes() == source.read_bytes(), name


def test_what_both_flavours_share_is_one_file(sources: Sources) -> None:
    database, env = (sources.flavours[flavour] for flavour in FLAVOURS)
    for name in database.keys() & env.keys():
        assert database[name].read_bytes() != env[name].read_bytes(), f"{name} is there twice"
        assert name not in sources.common, f"{name} is never used"
    for files in (database, env):
        for name in files.keys() & sources.common.keys():
            assert files[name].read_bytes() != sources.common[name].read_bytes(), name


def test_the_small_flavour_knows_nothing_of_the_other(rendered: Rendered) -> None:
    for name, content in rendered({"key_store": "env"}).files().items():
        text = content.decode("utf-8").lower()
        for word in (
            "database",
            r"sql\b",
            "sqlite",
            "sqlalchemy",
            "alembic",
            "psycopg",
            "postgres",
        ):
            assert not re.search(rf"\b{word}", text), f"{name}: {word}"


def test_only_the_constants_and_no_control_flow_are_jinja_in_python(template: Path) -> None:
    for name, path in files_in(template / TOP).items():
        if name.endswith((".py", ".mako")) and name != CONSTANTS:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\{\{|\{%|\{#|cookiecutter", text), name
    assert "{%" not in (template / TOP / CONSTANTS).read_text(encoding="utf-8")


def test_no_scars(project: Project) -> None:
    for name, content in project.files().items():
        if name.startswith(VENDORED):
            continue
        text = content.decode("utf-8")
        assert not re.search(r"\{\{|\{%|cookiecutter\.", text), f"{name}: Jinja residue"
        assert "\r" not in text or name.endswith(".py"), f"{name}: carriage return"
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"{name}: trailing whitespace"
        assert not text.startswith("\n"), f"{name}: blank line at the top"
        assert text == "" or re.search(r"[^\n]\n\Z", text), f"{name}: end of file"
        if not name.endswith((".py", ".mako")):
            text = re.sub(r"^```python\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
            assert "\n\n\n" not in text.replace("\n\n\n\n", "\n\n"), f"{name}: two blank lines"


def test_it_is_clean_as_it_comes(project: Project) -> None:
    project.run("ruff", "check", "--no-cache", ".")
    project.run("ruff", "format", "--no-cache", "--check", ".")


def test_pyproject(project: Project, flavour: str) -> None:
    pyproject = tomllib.loads(project.read("pyproject.toml"))
    assert pyproject["project"]["name"] == "my-api-service"
    assert pyproject["project"]["scripts"] == {"my-api-service": "app.cli:main"}
    assert pyproject["tool"]["fastapi"]["entrypoint"] == "app.main:app"
    assert pyproject["tool"]["cruft"]["skip"] == [".env"]
    names = {re.split(r"[\[>]", line)[0] for line in pyproject["project"]["dependencies"]}
    web, more = (
        {"fastapi", "fastapi-cli", "uvicorn"},
        {"alembic", "prometheus-client", "psycopg", "sqlalchemy"},
    )
    both = {*web, "pydantic-settings", "python-json-logger", "typer"}
    assert names == (both | more if flavour == "database" else both)
    extras = pyproject["project"]["optional-dependencies"].values()
    groups = [pyproject["project"]["dependencies"], pyproject["dependency-groups"]["dev"], *extras]
    lines = [line for group in groups for line in group]
    for line in lines:
        bounds = re.search(r">=(\d+)(?:\.\d+)*,<(\d+)$", line)
        assert bounds, line
        assert int(bounds[2]) == int(bounds[1]) + 1, f"{line}: up to the next major version"


def test_hooks_of_the_project_are_local(project: Project) -> None:
    config = yaml.safe_load(project.read(".pre-commit-config.yaml"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]


def test_the_readme_lists_promises_with_their_tests(project: Project) -> None:
    promises = project.read("README.md").partition("## What it promises")[2]
    named = set(re.findall(r"`(test_\w+)`", promises))
    assert len(named) > 10
    defined = {
        node.name
        for name, content in project.files().items()
        if name.startswith("tests/") and name.endswith(".py")
        for node in ast.parse(content).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert named <= defined
    for row in re.findall(r"^\| (?!promise|---)(.*) \|$", promises, re.MULTILINE):
        assert "`test_" in row, f"a promise without a test: {row}"


def test_the_readme_names_every_module(project: Project) -> None:
    readme = project.read("README.md")
    for name in project.files():
        if name.startswith("app/") and name.endswith(".py") and "__" not in name:
            name = re.sub(r"(migrations/).*", r"\1", name.removeprefix("app/auth/"))
            assert f"`{name}`" in readme, name


def test_two_renders_share_no_key_and_the_template_holds_none(
    template: Path, rendered: Rendered
) -> None:
    first = rendered({"project_name": "One"})
    second = rendered({"project_name": "Two"})
    assert len({*first.keys, *second.keys}) == 4
    for path in template.rglob("*"):
        if path.is_file() and path.suffix != ".png" and VENDORED not in path.as_posix():
            for line in filter(UUID4.search, path.read_text(encoding="utf-8").splitlines()):
                assert "not-a-key" in line, path
    for project in (first, second):
        for name, content in project.files().items():
            if name != ".env":
                assert not any(key.encode() in content for key in project.keys), name


def test_prompts_are_for_people(template: Path, output: Path, sources: Sources) -> None:
    answers = "Acme Gateway\ngateway\nIt opens doors.\nAnn\nX-API-Key\n2\n2\n"
    said = subprocess.run(
        ["cookiecutter", str(template), "--output-dir", str(output)],
        input=answers,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert len(re.findall(r"\[\d/7\]", said)) == 7
    assert "What is the service called?" in said
    assert "401 Unauthorized, with WWW-Authenticate: APIKey" in said
    assert "Where do the keys live?" in said
    project = Project(output / "gateway")
    assert project.files().keys() == sources.of_project("env").keys() | {".env"}
    assert 'TITLE: Final = "Acme Gateway"' in project.read(CONSTANTS)
    assert 'COMMAND: Final = "gateway"' in project.read(CONSTANTS)
    assert 'API_KEY_HEADER: Final = "X-API-Key"' in project.read(CONSTANTS)
    assert "MISSING_KEY_STATUS: Final[int] = 401" in project.read(CONSTANTS)


def test_linters_of_workflows_agree(rendered: Rendered) -> None:
    project = rendered()
    for folder in (ROOT, project.path):
        workflows = sorted((folder / ".github" / "workflows").glob("*.yml"))
        assert workflows
        run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows, cwd=ROOT)
        run("zizmor", "--offline", "--no-progress", *workflows, cwd=ROOT)
    dependabot = str(project.path / ".github" / "dependabot.yml")
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", dependabot, cwd=ROOT)
