"""What comes out with the default answers, read as text."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.project import FLAVOURS, ROOT, UUID4, Project, environment, run

SOURCE = ROOT / "{{cookiecutter.__slug}}"
CONSTANTS = "app/constants.py"

FILES = {
    "both": {
        ".env",
        ".gitignore",
        ".pre-commit-config.yaml",
        "README.md",
        "app/__init__.py",
        "app/access.py",
        "app/cli.py",
        CONSTANTS,
        "app/keys.py",
        "app/main.py",
        "app/routes.py",
        "app/security.py",
        "app/settings.py",
        "pyproject.toml",
        "tests/__init__.py",
        "tests/conftest.py",
        "tests/servers.py",
        "tests/test_access.py",
        "tests/test_any_bytes.py",
        "tests/test_guard.py",
        "tests/test_keys_command.py",
        "tests/test_openapi.py",
        "tests/test_routes.py",
        "tests/test_secrecy.py",
        "tests/test_settings.py",
    },
    "database": {
        "app/api_keys.py",
        "app/database.py",
        "app/doctor.py",
        "app/migrations/env.py",
        "app/migrations/script.py.mako",
        "app/migrations/versions/0001_api_keys.py",
        "app/registry.py",
        "app/store.py",
        "tests/databases.py",
        "tests/test_api_keys.py",
        "tests/test_changes.py",
        "tests/test_doctor.py",
        "tests/test_keys.py",
        "tests/test_replicas.py",
        "tests/test_store.py",
    },
    "env": {"app/env_file.py", "tests/test_env_file.py"},
}

Rendered = Callable[..., Project]


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def project(rendered: Rendered, flavour: str) -> Project:
    return rendered({"key_store": flavour})


def test_the_files(project: Project, flavour: str) -> None:
    assert set(project.files()) == FILES["both"] | FILES[flavour]
    folders = {path for path in project.path.rglob("*") if path.is_dir()}
    assert all(any(folder.iterdir()) for folder in folders)


def test_the_default_is_the_database(rendered: Rendered) -> None:
    assert "app/store.py" in rendered().files()


def test_python_is_the_templates_own_to_the_byte(project: Project, flavour: str) -> None:
    for name, content in project.files().items():
        if name.endswith((".py", ".mako")) and name != CONSTANTS:
            assert content == source_of(name, flavour).read_bytes(), name


def source_of(name: str, flavour: str) -> Path:
    plain = SOURCE / name
    if plain.exists():
        return plain
    return plain.with_name(
        f"{{% if cookiecutter.key_store == '{flavour}' %}}{plain.name}{{% endif %}}"
    )


def test_what_both_flavours_share_is_one_file(rendered: Rendered) -> None:
    database, env = (
        rendered({"key_store": flavour, "project_name": flavour}).files() for flavour in FLAVOURS
    )
    for name in database.keys() & env.keys():
        if not (SOURCE / name).exists():
            assert database[name] != env[name], f"{name} need not be there twice"


def test_the_small_flavour_knows_nothing_of_the_other(rendered: Rendered) -> None:
    for name, content in rendered({"key_store": "env"}).files().items():
        text = content.decode("utf-8").lower()
        for word in ("database", "sql", "alembic", "psycopg", "scope=", "audit", "doctor"):
            assert word not in text, f"{name}: {word}"


def test_only_the_constants_and_no_control_flow_are_jinja_in_python() -> None:
    for path in SOURCE.rglob("*"):
        if path.is_file() and ".py" in path.name and path != SOURCE / CONSTANTS:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\{\{|\{%|\{#|cookiecutter", text), path
    assert "{%" not in (SOURCE / CONSTANTS).read_text(encoding="utf-8")


def test_no_scars(project: Project) -> None:
    for name, content in project.files().items():
        text = content.decode("utf-8")
        assert not re.search(r"\{\{|\{%|cookiecutter\.", text), f"{name}: Jinja residue"
        assert "\r" not in text or name.endswith(".py"), f"{name}: carriage return"
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"{name}: trailing whitespace"
        assert not text.startswith("\n"), f"{name}: blank line at the top"
        assert text == "" or re.search(r"[^\n]\n\Z", text), f"{name}: end of file"
        if not name.endswith((".py", ".mako")):
            assert "\n\n\n" not in text, f"{name}: two blank lines"


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
    more = {"alembic", "psycopg", "sqlalchemy"} if flavour == "database" else set()
    assert names == {"fastapi", "fastapi-cli", "pydantic-settings", "typer", "uvicorn"} | more
    lines = [*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["dev"]]
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
        if name.startswith("app/") and name.endswith(".py") and name != "app/__init__.py":
            assert f"`{name}`" in readme, name


def test_two_renders_share_no_key_and_the_template_holds_none(
    template: Path, rendered: Rendered
) -> None:
    first = rendered({"project_name": "One"})
    second = rendered({"project_name": "Two"})
    assert len({*first.keys, *second.keys}) == 4
    for path in template.rglob("*"):
        if path.is_file() and UUID4.search(text := path.read_text(encoding="utf-8")):
            for line in filter(UUID4.search, text.splitlines()):
                assert "not-a-key" in line, path
    for project in (first, second):
        for name, content in project.files().items():
            if name != ".env":
                assert not any(key.encode() in content for key in project.keys), name


def test_prompts_are_for_people(template: Path, output: Path) -> None:
    answers = "Acme Gateway\nIt opens doors.\nAnn\nX-API-Key\n2\n2\n"
    said = subprocess.run(
        ["cookiecutter", str(template), "--output-dir", str(output)],
        input=answers,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert len(re.findall(r"\[\d/6\]", said)) == 6
    assert "What is the service called?" in said
    assert "401 Unauthorized, with WWW-Authenticate: APIKey" in said
    assert "Where do the keys live?" in said
    project = Project(output / "acme-gateway")
    assert "app/env_file.py" in project.files()
    assert 'API_KEY_HEADER: Final = "X-API-Key"' in project.read(CONSTANTS)
    assert "MISSING_KEY_STATUS: Final[int] = 401" in project.read(CONSTANTS)


def test_linters_of_workflows_agree() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows, cwd=ROOT)
    run("zizmor", "--offline", "--no-progress", *workflows, cwd=ROOT)
