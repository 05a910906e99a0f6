"""What comes out without a part and with every one, read as text."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.parts import ALL, NONE, Choice, files_in, settled, sources
from tests.project import EVERYTHING, ROOT, TOP, UUID4, Project, environment, run

CONSTANTS = "app/constants.py"
VENDORED = "app/docs/static/"

Rendered = Callable[..., Project]


@pytest.fixture(params=[*NONE.values(), *ALL.values()], ids=str)
def choice(request: pytest.FixtureRequest) -> Choice:
    chosen: Choice = request.param
    return chosen


@pytest.fixture
def project(rendered: Rendered, choice: Choice) -> Project:
    return rendered(choice.answers)


def test_the_files(project: Project, template: Path, choice: Choice) -> None:
    assert project.files().keys() == sources(template, choice).keys() | {".env"}
    folders = [path for path in project.path.rglob("*") if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders)
    assert not [folder for folder in folders if folder.name == "flavours"]


def test_the_default_is_the_database_without_a_part(rendered: Rendered, template: Path) -> None:
    files = rendered().files().keys()
    assert files == sources(template, NONE["database"]).keys() | {".env"}
    assert files - {".env"} < sources(template, ALL["database"]).keys()


def test_only_the_top_folder_has_jinja_in_its_name(template: Path) -> None:
    names = [path.relative_to(template).as_posix() for path in template.rglob("*")]
    assert {name for name in names if re.search(r"[{}%]", name.removeprefix(f"{TOP}/"))} == {TOP}


def test_python_is_the_templates_own(project: Project, template: Path, choice: Choice) -> None:
    for name, source in sources(template, choice).items():
        if name.startswith(VENDORED) or (
            name.endswith(".py") and b" part: " not in source.read_bytes()
        ):
            if name != CONSTANTS:
                assert (project.path / name).read_bytes() == source.read_bytes(), name
        elif name.endswith((".py", ".mako")):
            lines = [line for line in project.read(name).splitlines() if line.strip()]
            assert lines == settled(source.read_text("utf-8"), choice), name


def test_a_file_of_a_flavour_differs_from_the_one_that_it_replaces(template: Path) -> None:
    for folder in (template / TOP / "flavours").iterdir():
        if folder.is_dir():
            for name, path in files_in(folder).items():
                other = template / TOP / name
                assert not other.exists() or other.read_bytes() != path.read_bytes(), path


def test_the_small_flavour_knows_nothing_of_the_other(rendered: Rendered) -> None:
    unknown = r"\b(database|sql\b|sqlite|sqlalchemy|alembic|psycopg|postgres)"
    for name, content in rendered(EVERYTHING["env"]).files().items():
        if not name.startswith(VENDORED):
            assert not re.search(unknown, content.decode("utf-8"), re.IGNORECASE), name


def test_only_the_constants_and_no_control_flow_are_jinja_in_python(template: Path) -> None:
    for name, path in files_in(template / TOP).items():
        if name.endswith((".py", ".mako")) and name != CONSTANTS:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\{\{|\{%|\{#|cookiecutter", text), name
    assert "{%" not in (template / TOP / CONSTANTS).read_text(encoding="utf-8")


def test_it_is_clean_as_it_comes(project: Project) -> None:
    project.run("ruff", "check", "--no-cache", ".")
    project.run("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.parametrize("python", ["3.12", "3.14", "3.15"])
def test_an_owner_may_raise_the_python_and_write_for_it(project: Project, python: str) -> None:
    """The template's own files are checked for 3.11, the owner's for what the project says."""
    pyproject = project.path / "pyproject.toml"
    before = pyproject.read_text("utf-8")
    assert before.count(">=3.11") == 1
    pyproject.write_text(before.replace(">=3.11", f">={python}"), "utf-8")
    (project.path / "app" / "pairs.py").write_text("type Pair[T] = tuple[T, T]\n", "utf-8")
    project.run("ruff", "check", "--no-cache", ".")
    project.run("ruff", "format", "--no-cache", "--check", ".")


def test_pyproject(project: Project, choice: Choice) -> None:
    pyproject = tomllib.loads(project.read("pyproject.toml"))
    assert pyproject["project"]["name"] == "my-api-service"
    assert pyproject["project"]["scripts"] == {"my-api-service": "app.cli:main"}
    assert pyproject["tool"]["fastapi"]["entrypoint"] == "app.main:app"
    assert pyproject["tool"]["cruft"]["skip"] == [".env"]
    names = {re.split(r"[\[>]", line)[0] for line in pyproject["project"]["dependencies"]}
    expected = {"fastapi", "fastapi-cli", "pydantic-settings", "python-json-logger", "typer"}
    expected |= {"opentelemetry-api", "pydantic", "pydantic-core", "python-dotenv", "starlette"}
    expected |= {"uvicorn"}
    if choice.flavour == "database":
        expected |= {"alembic", "psycopg", "sqlalchemy"}
    if "metrics" in choice.parts:
        expected |= {"prometheus-client"}
    assert names == expected
    extras = pyproject["project"].get("optional-dependencies", {})
    expected = {"aws", "azure", "gcp", "vault"} if "vaults" in choice.parts else set()
    assert extras.keys() == (expected | {"valkey"} if "limits" in choice.parts else expected)
    development = pyproject["dependency-groups"]["dev"]
    groups = [pyproject["project"]["dependencies"], development, *extras.values()]
    for line in (line for group in groups for line in group):
        bounds = re.search(r">=(\d+)(?:\.\d+)*,<(\d+)$", line)
        assert bounds, line
        assert int(bounds[2]) == int(bounds[1]) + 1, f"{line}: up to the next major version"


def test_hooks_of_the_project_are_local(project: Project) -> None:
    config = yaml.safe_load(project.read(".pre-commit-config.yaml"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]


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


def test_prompts_are_for_people(template: Path, output: Path) -> None:
    answers = "Acme Gateway\ngateway\nIt opens doors.\nAnn\nX-API-Key\n2\n2\n\nn\nno\nno\n\ny\n\n"
    said = subprocess.run(
        ["cookiecutter", str(template), "--output-dir", str(output)],
        input=answers,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert len(re.findall(r"\[\d+/14\]", said)) == 14
    assert "What is the service called?" in said
    assert "401 Unauthorized, with WWW-Authenticate: APIKey" in said
    assert "Where do the keys live?" in said
    assert "Read settings from a vault" in said
    project = Project(output / "gateway")
    expected = sources(template, Choice("env", frozenset({"vaults"})))
    assert project.files().keys() == expected.keys() | {".env"}
    assert 'TITLE: Final = "Acme Gateway"' in project.read(CONSTANTS)
    assert 'COMMAND: Final = "gateway"' in project.read(CONSTANTS)
    assert 'API_KEY_HEADER: Final = "X-API-Key"' in project.read(CONSTANTS)
    assert "MISSING_KEY_STATUS: Final[int] = 401" in project.read(CONSTANTS)


def test_linters_of_workflows_agree(project: Project) -> None:
    for folder in (ROOT, project.path):
        workflows = sorted((folder / ".github" / "workflows").glob("*.yml"))
        assert workflows
        run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows, cwd=ROOT)
        run("zizmor", "--offline", "--no-progress", *workflows, cwd=ROOT)
    dependabot = str(project.path / ".github" / "dependabot.yml")
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", dependabot, cwd=ROOT)
