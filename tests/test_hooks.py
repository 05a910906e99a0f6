"""The hooks: the first keys are made once, and never lost or shown."""

import ast
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import ROOT, UUID4, Project, copy_template, run

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


def test_rendering_again_keeps_the_keys(
    rendered: Rendered, capfd: pytest.CaptureFixture[str]
) -> None:
    project = rendered()
    (project.path / ".env").write_text("API_KEYS=mine\nOTHER=1\n")
    (project.path / "README.md").write_text("overwritten")

    rendered(overwrite_if_exists=True)

    assert project.read(".env") == "API_KEYS=mine\nOTHER=1\n"
    assert project.read("README.md").startswith("# My API Service")
    assert "stay as they were" in capfd.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_in_the_place_of_the_keys_is_not_followed(
    rendered: Rendered, output: Path, tmp_path: Path
) -> None:
    (output / "my-api-service").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (output / "my-api-service" / ".env").symlink_to(elsewhere)
    rendered(overwrite_if_exists=True)
    assert not elsewhere.exists()


def test_without_hooks_there_is_no_key(rendered: Rendered) -> None:
    assert ".env" not in rendered(accept_hooks=False).files()


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


def test_cruft_gives_the_same_project_and_keeps_its_keys(
    rendered: Rendered, tmp_path: Path
) -> None:
    expected = rendered({"project_name": "By Cookiecutter"}).files()
    repository = copy_template(tmp_path / "template")
    run("git", "init", "--quiet", "--initial-branch", "main", cwd=repository)
    commit(repository, "Start")

    answers = '{"project_name": "By Cookiecutter"}'
    home = tmp_path / "by-cruft"
    home.mkdir()
    run("cruft", "create", repository, "--no-input", "--extra-context", answers, cwd=home)
    project = Project(home / "by-cookiecutter")
    keys = project.read(".env")
    assert UUID4.search(keys)
    files = project.files()
    assert not UUID4.search(files.pop(".cruft.json").decode())
    assert {**files, ".env": b""} == {**expected, ".env": b""}

    project.run("git", "init", "--quiet")
    commit(project.path, "Start")
    assert "diff --git" not in project.run("cruft", "diff").stdout
    for name in ("pyproject.toml", "app/security.py"):
        changed = repository / "{{cookiecutter.__slug}}" / name
        changed.write_text(changed.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    commit(repository, "Change the template")
    diff = project.run("cruft", "diff").stdout
    update = project.run("cruft", "update", "--skip-apply-ask").stdout
    assert not UUID4.search(diff + update)
    assert project.read("app/security.py").endswith("# changed\n")
    assert project.read("pyproject.toml").endswith("# changed\n")
    assert project.read(".env") == keys
    assert not [name for name in project.files() if name.endswith((".rej", ".orig"))]
    assert not UUID4.search(project.read(".cruft.json"))
