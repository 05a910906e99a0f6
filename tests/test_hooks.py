"""The hooks: the first keys are made once, and never lost or shown."""

import ast
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import FLAVOURS, ROOT, TOP, UUID4, Project, copy_template, run

Rendered = Callable[..., Project]


@pytest.mark.parametrize("hook", sorted((ROOT / "hooks").glob("*.py")), ids=lambda path: path.name)
def test_hooks_need_the_standard_library_alone(hook: Path) -> None:
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(hook.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (
            node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")]
        )
    }
    assert imported <= sys.stdlib_module_names
    assert not imported & {"socket", "ssl", "subprocess", "urllib", "http"}


def test_two_keys_for_their_owner_alone(rendered: Rendered) -> None:
    project = rendered()
    assert project.read(".env") == f"API_KEYS={','.join(project.keys)}\n"
    assert len(set(project.keys)) == 2
    assert all(UUID4.fullmatch(key) for key in project.keys)
    if sys.platform != "win32":
        assert stat.S_IMODE((project.path / ".env").stat().st_mode) == 0o600


def test_the_next_steps_show_no_key(rendered: Rendered, capfd: pytest.CaptureFixture[str]) -> None:
    project = rendered({"api_key_header": "X-API-Key"})
    said = capfd.readouterr().out
    assert "uv run fastapi dev" in said
    assert 'curl -H "X-API-Key: $(sed ' in said
    assert not UUID4.search(said)
    if sys.platform != "win32":
        command = said[said.index("$(sed") : said.index(')"')].removeprefix("$(")
        assert project.run("sh", "-c", command).stdout == f"{project.keys[0]}\n"


def test_rendering_again_keeps_the_keys_and_the_owners_files(
    rendered: Rendered, capfd: pytest.CaptureFixture[str]
) -> None:
    project = rendered()
    expected = project.files()
    owned = {".env": "API_KEYS=mine\nOTHER=1\n", "app/reports.py": "1", "flavours/vanilla": "2"}
    (project.path / "flavours").mkdir()
    for name, text in {**owned, "README.md": "over", "app/constants.py": "over"}.items():
        (project.path / name).write_text(text)

    rendered(overwrite_if_exists=True)

    expected.update({name: text.encode() for name, text in owned.items()})
    assert project.files() == expected
    assert "stay as they were" in capfd.readouterr().out


def test_another_key_store_takes_the_place_of_the_first(rendered: Rendered) -> None:
    first, other = FLAVOURS
    expected = rendered({"key_store": other, "project_name": "Other"}).files().keys()
    project = rendered({"key_store": first, "project_name": "Both"})
    kept, removed, *_ = sorted(
        name for name in project.files().keys() - expected if name.startswith("app/")
    )
    (project.path / kept).write_text("# an edit of the owner's\n")
    keys = project.keys

    rendered({"key_store": other, "project_name": "Both"}, overwrite_if_exists=True)

    assert project.keys == keys
    assert project.files().keys() == expected | {kept}
    assert removed not in project.files()
    assert project.read(kept) == "# an edit of the owner's\n"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_to_be_skipped_is_not_touched(rendered: Rendered, flavour: str) -> None:
    project = rendered()
    (project.path / "README.md").unlink()
    (project.path / "app/main.py").write_text("# mine\n")
    before = project.files()

    rendered({"key_store": flavour}, overwrite_if_exists=True, skip_if_file_exists=True)

    after = project.files()
    assert {name: after.get(name) for name in before} == before
    assert project.read("README.md").startswith("# My API Service\n")
    assert not [name for name in after if name.startswith("flavours/")]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_in_the_place_of_the_keys_is_not_followed(
    rendered: Rendered, output: Path, tmp_path: Path
) -> None:
    (output / "my-api-service").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (output / "my-api-service" / ".env").symlink_to(elsewhere)
    rendered(overwrite_if_exists=True)
    assert not elsewhere.exists()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_without_hooks_there_is_no_key_and_a_note_says_what_to_do(
    rendered: Rendered, flavour: str
) -> None:
    expected = rendered({"key_store": flavour}).files()
    project = rendered({"key_store": flavour, "project_name": "No hooks"}, accept_hooks=False)
    assert ".env" not in project.files()
    note = project.read("flavours/README.md")
    assert f"Yours is\n`{flavour}`." in note
    assert f"uv run {project.command} keys create" in note
    if sys.platform != "win32":
        project.run("sh", "-e", "-c", note.partition("```console\n")[2].partition("```")[0])
        assert project.files().keys() == expected.keys() - {".env"}


def test_no_key_in_the_replay_file(rendered: Rendered, cookiecutter_home: Path) -> None:
    project = rendered()
    replays = list((cookiecutter_home / "replay").iterdir())
    assert replays
    for replay in replays:
        text = replay.read_text(encoding="utf-8")
        assert "my-api-service" in text
        assert not any(key in text for key in project.keys)
        assert not UUID4.search(text)


def commit(repository: Path, message: str) -> None:
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", message, cwd=repository)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The template as a repository of its own, which can be changed."""
    repository = copy_template(tmp_path / "template")
    run("git", "init", "--quiet", "--initial-branch", "main", cwd=repository)
    commit(repository, "Start")
    return repository


def create_by_cruft(repository: Path, folder: Path, flavour: str) -> Project:
    answers = json.dumps({"project_name": "By Cookiecutter", "key_store": flavour})
    folder.mkdir()
    run("cruft", "create", repository, "--no-input", "--extra-context", answers, cwd=folder)
    return Project(folder / "by-cookiecutter")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cruft_gives_the_same_project(
    rendered: Rendered, repository: Path, tmp_path: Path, flavour: str
) -> None:
    expected = rendered({"project_name": "By Cookiecutter", "key_store": flavour}).files()
    project = create_by_cruft(repository, tmp_path / "by-cruft", flavour)
    files = project.files()
    assert UUID4.search(project.read(".env"))
    assert not UUID4.search(files.pop(".cruft.json").decode())
    assert {**files, ".env": b""} == {**expected, ".env": b""}

    project.run("git", "init", "--quiet")
    commit(project.path, "Start")
    assert "diff --git" not in project.run("cruft", "diff").stdout


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_cruft_update_keeps_the_keys_and_the_owners_edits(
    repository: Path, tmp_path: Path, flavour: str
) -> None:
    project = create_by_cruft(repository, tmp_path / "by-cruft", flavour)
    keys = project.read(".env")
    (project.path / "app/reports.py").write_text("# mine\n", "utf-8")
    for name in ("pyproject.toml", "README.md"):
        (project.path / name).write_text(f"# mine\n{project.read(name)}", "utf-8")
    project.run("git", "init", "--quiet")
    commit(project.path, "Start")

    common, of_flavour = "pyproject.toml", f"flavours/{flavour}/README.md"
    for name in (common, of_flavour):
        with (repository / TOP / name).open("a", encoding="utf-8") as file:
            file.write("\n# changed\n")
    (repository / TOP / "flavours" / flavour / "app/new.py").write_text("NEW = 1\n", "utf-8")
    (repository / TOP / "app/constants.py").unlink()
    commit(repository, "Change the template")
    diff = project.run("cruft", "diff").stdout
    update = project.run("cruft", "update", "--skip-apply-ask").stdout

    assert not UUID4.search(diff + update)
    for name in ("pyproject.toml", "README.md"):
        assert project.read(name).startswith("# mine\n")
        assert project.read(name).endswith("\n# changed\n")
    assert project.read("app/new.py") == "NEW = 1\n"
    assert not (project.path / "app/constants.py").exists()
    assert project.read("app/reports.py") == "# mine\n"
    assert project.read(".env") == keys
    assert not [name for name in project.files() if name.endswith((".rej", ".orig"))]
    assert not UUID4.search(project.read(".cruft.json"))
