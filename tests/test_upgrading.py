"""What UPGRADING.md says, followed to the letter."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts import NONE, Choice
from tests.project import FLAVOURS, ROOT, TOP, Project, clone_template, render, run
from tools.release_check import SINCE, commands_of, follow, releases, run_update

pytestmark = pytest.mark.slow

Created = Callable[[Choice], Project]
BEFORE_PARTS = releases()["before parts"]


def commit(folder: Path) -> None:
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Change", cwd=folder)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The template, to be changed."""
    return clone_template(tmp_path / "template")


@pytest.fixture
def created(repository: Path, tmp_path: Path) -> Created:
    """Makes a project by cruft, whose folder is a repository with nothing committed yet."""

    def create(choice: Choice) -> Project:
        answers = ("--extra-context", json.dumps(choice.answers))
        run("cruft", "create", repository, "--no-input", *answers, cwd=tmp_path)
        project = Project(tmp_path / "my-api-service")
        project.run("git", "init", "--quiet")
        return project

    return create


def rendered_files(repository: Path, output: Path, choice: Choice) -> dict[str, bytes]:
    return without_own_files(render(repository, output, choice.answers).files())


def without_own_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without those that each project has for itself."""
    own = {".cruft.json", ".env", "uv.lock"}
    return {name: content for name, content in files.items() if name not in own}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_part_is_added_later_and_taken_out_again(
    repository: Path, created: Created, tmp_path: Path, flavour: str
) -> None:
    add, sync = commands_of("Add a part later")
    part = "limits" if flavour == "database" else "vaults"
    add = add.replace("limits", part)
    none, one = NONE[flavour], Choice(flavour, frozenset({part}))
    project = created(none)
    commit(project.path)
    keys = project.read(".env")
    for command, choice in ((add, one), (add.replace("yes", "no"), none)):
        follow(project, command)
        follow(project, sync)
        expected = rendered_files(repository, tmp_path / str(choice), choice)
        assert without_own_files(project.files()) == expected
        assert project.read(".env") == keys
        commit(project.path)


def raise_version(repository: Path, package: str) -> None:
    """Let the template ask for a newer version of what the project depends on."""
    path = repository / TOP / "pyproject.toml"
    text, count = re.subn(rf'("{re.escape(package)}>=[\d.]+)', r"\g<1>9", path.read_text("utf-8"))
    assert count == 1
    path.write_text(text, "utf-8")
    commit(repository)


def without_versions(text: str) -> str:
    return re.sub(r">=[\d.]+,<\d+", "", text)


@pytest.mark.parametrize("committed_first", [True, False])
def test_a_conflict_is_left_where_the_page_says(
    repository: Path, created: Created, committed_first: bool
) -> None:
    project = created(NONE["database"])
    if committed_first:
        commit(project.path)
    pyproject = project.read("pyproject.toml")
    (typer,) = re.findall(r'^    "typer.*\n', pyproject, re.MULTILINE)
    edited = pyproject.replace(typer, f'{typer}    "rich>=15",\n')
    (project.path / "pyproject.toml").write_text(edited, "utf-8")
    commit(project.path)
    raise_version(repository, "typer")

    said = follow(project, "uvx cruft update")

    assert "Good work!" in said
    status = project.run("git", "status").stdout
    left = project.path / "pyproject.toml.rej"
    if committed_first:
        page = (ROOT / "UPGRADING.md").read_text("utf-8")
        (example,) = re.findall(r"<<<<<<< ours\n.*?>>>>>>> theirs\n", page, re.DOTALL)
        expected = without_versions(re.sub(r"^  ", "", example, flags=re.MULTILINE))
        assert expected in without_versions(project.read("pyproject.toml"))
        assert re.search(r"both modified: +pyproject.toml", status)
        assert not left.exists()
    else:
        assert "<<<" not in project.read("pyproject.toml")
        assert re.search(r'^\+ +"typer', left.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("committed_first", [True, False])
@pytest.mark.parametrize("choice", NONE.values(), ids=str)
def test_dependencies_that_uv_adds_conflict_with_no_update(
    repository: Path, created: Created, choice: Choice, committed_first: bool
) -> None:
    project = created(choice)
    if committed_first:
        commit(project.path)
    project.run("uv", "add", "--quiet", "--no-sync", "rich", "anyio")
    project.run("uv", "add", "--quiet", "--no-sync", "--dev", "rich")
    commit(project.path)
    before = project.read("pyproject.toml")
    packages = re.findall(r'^    "([\w\[\]-]+)>=[\d.]+,<\d+",$', before, re.MULTILINE)
    assert {"fastapi", "pytest", "pre-commit"} <= {*packages}
    for package in packages:
        raise_version(repository, package)

    follow(project, "uvx cruft update")

    after = project.read("pyproject.toml")
    assert without_versions(after) == without_versions(before)
    for package in packages:
        assert re.search(rf'"{re.escape(package)}>=[\d.]*9,', after), package
    assert not list(project.path.glob("*.rej"))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_project_of_before_the_parts_is_updated(flavour: str, kept: bool) -> None:
    if run("git", "cat-file", "-e", BEFORE_PARTS, cwd=ROOT, check=False).returncode:
        pytest.skip("this copy of the repository has no history")
    assert " passed" in run_update(flavour, BEFORE_PARTS, kept)


def test_the_page_names_every_part(repository: Path) -> None:
    keep, *_ = commands_of("From a project of before the parts")
    named = json.loads(shlex.split(keep)[-1])
    answers = json.loads((repository / "cookiecutter.json").read_text("utf-8"))
    parts = {part for part, answer in answers.items() if answer is False}
    assert named == dict.fromkeys(parts - SINCE, "yes")


def test_releases_are_commits_of_this_repository() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (\d+\.\d+\.\d+) - ", changelog, re.MULTILINE)
    assert {*versions} == releases().keys() - {"before parts"}
    for version in versions:
        commit = releases()[version]
        if run("git", "cat-file", "-e", commit, cwd=ROOT, check=False).returncode == 0:
            assert (
                f"## {version} - " in run("git", "show", f"{commit}:CHANGELOG.md", cwd=ROOT).stdout
            )
