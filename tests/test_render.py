"""What comes out with the default answers, read as text."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.project import ROOT, UUID4, Project, environment, run

SOURCE = ROOT / "{{cookiecutter.__slug}}"
CONSTANTS = "app/constants.py"

Rendered = Callable[..., Project]


def test_the_files(rendered: Rendered) -> None:
    assert set(rendered().files()) == {
        ".env",
        ".gitignore",
        ".pre-commit-config.yaml",
        "README.md",
        "app/__init__.py",
        "app/cli.py",
        CONSTANTS,
        "app/env_file.py",
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
        "tests/test_env_file.py",
        "tests/test_guard.py",
        "tests/test_keys_command.py",
        "tests/test_openapi.py",
        "tests/test_routes.py",
        "tests/test_secrecy.py",
        "tests/test_settings.py",
    }


def test_python_is_the_templates_own_to_the_byte(rendered: Rendered) -> None:
    for name, content in rendered().files().items():
        if name.endswith(".py") and name != CONSTANTS:
            assert content == (SOURCE / name).read_bytes(), name


def test_only_the_constants_and_no_control_flow_are_jinja_in_python() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path != SOURCE / CONSTANTS:
            assert not re.search(r"\{\{|\{%|\{#|cookiecutter", text), path
    assert "{%" not in (SOURCE / CONSTANTS).read_text(encoding="utf-8")


def test_no_scars(rendered: Rendered) -> None:
    for name, content in rendered().files().items():
        text = content.decode("utf-8")
        assert not re.search(r"\{\{|\{%|cookiecutter\.", text), f"{name}: Jinja residue"
        assert "\r" not in text or name.endswith(".py"), f"{name}: carriage return"
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"{name}: trailing whitespace"
        assert not text.startswith("\n"), f"{name}: blank line at the top"
        assert text == "" or re.search(r"[^\n]\n\Z", text), f"{name}: end of file"
        if not name.endswith(".py"):
            assert "\n\n\n" not in text, f"{name}: two blank lines"


def test_it_is_clean_as_it_comes(rendered: Rendered) -> None:
    project = rendered()
    project.run("ruff", "check", "--no-cache", ".")
    project.run("ruff", "format", "--no-cache", "--check", ".")


def test_pyproject(rendered: Rendered) -> None:
    pyproject = tomllib.loads(rendered().read("pyproject.toml"))
    assert pyproject["project"]["name"] == "my-api-service"
    assert pyproject["project"]["scripts"] == {"my-api-service": "app.cli:main"}
    assert pyproject["tool"]["fastapi"]["entrypoint"] == "app.main:app"
    assert pyproject["tool"]["cruft"]["skip"] == [".env"]
    names = {re.split(r"[\[>]", line)[0] for line in pyproject["project"]["dependencies"]}
    assert names == {"fastapi", "fastapi-cli", "pydantic-settings", "typer", "uvicorn"}
    lines = [*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["dev"]]
    for line in lines:
        bounds = re.search(r">=(\d+)(?:\.\d+)*,<(\d+)$", line)
        assert bounds, line
        assert int(bounds[2]) == int(bounds[1]) + 1, f"{line}: up to the next major version"


def test_hooks_of_the_project_are_local(rendered: Rendered) -> None:
    config = yaml.safe_load(rendered().read(".pre-commit-config.yaml"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]


def test_the_readme_lists_promises_with_their_tests(rendered: Rendered) -> None:
    project = rendered()
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


def test_the_readme_names_every_module(rendered: Rendered) -> None:
    project = rendered()
    readme = project.read("README.md")
    for name in project.files():
        if name.startswith("app/") and name != "app/__init__.py":
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
    answers = "Acme Gateway\nIt opens doors.\nAnn\nX-API-Key\n2\n"
    said = subprocess.run(
        ["cookiecutter", str(template), "--output-dir", str(output)],
        input=answers,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert len(re.findall(r"\[\d/5\]", said)) == 5
    assert "What is the service called?" in said
    assert "401 Unauthorized, with WWW-Authenticate: APIKey" in said
    project = Project(output / "acme-gateway")
    assert 'API_KEY_HEADER: Final = "X-API-Key"' in project.read(CONSTANTS)
    assert "MISSING_KEY_STATUS: Final[int] = 401" in project.read(CONSTANTS)


def test_linters_of_workflows_agree() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows, cwd=ROOT)
    run("zizmor", "--offline", "--no-progress", *workflows, cwd=ROOT)
