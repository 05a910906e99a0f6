"""The hooks: what was chosen is left, what is the owner's stays, keys are made once and never shown."""

import ast
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException

from tests.parts import ALL, NONE, Choice, files_in, sources
from tests.project import (
    EVERYTHING,
    FLAVOURS,
    ROOT,
    TOP,
    UUID4,
    Project,
    copy_template,
    render,
    run,
)

Rendered = Callable[..., Project]
HOOKS = sorted((ROOT / "hooks").glob("*.py"))
EXTREMES = [*NONE.values(), *ALL.values()]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda path: path.name)
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


def listing(hook: Path) -> str:
    """The source of the function that lists what is there."""
    (function,) = (
        ast.unparse(node)
        for node in ast.parse(hook.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "list_files"
    )
    return function


def test_both_hooks_look_at_the_same_files_and_at_all_of_the_template(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = {listing(hook) for hook in HOOKS}
    assert len(functions) == 1
    project = rendered(EVERYTHING["database"])
    monkeypatch.chdir(project.path)
    left_alone = [".git/objects/00", ".venv/lib/app/large.py", "app/__pycache__/x.pyc", "keys.db"]
    write(project, dict.fromkeys(left_alone, ""))
    names: dict[str, object] = {"os": os, "Path": Path}
    exec(functions.pop(), names)  # noqa: S102
    listed = eval("list_files()", names)  # noqa: S307
    assert listed.keys() == project.files().keys() - {".env", *left_alone}


# What an owner may have, also where a part that was not chosen would have files.
OWNED = {
    ".env": "API_KEYS=mine\nOTHER=1\n",
    "Makefile": "all: # part: metrics\n",
    "app/reports.py": "METRICS = 1  # part: metrics\n",
    "app/metrics/ours.py": "1\n",
    "app/metrics/deep/er.py": "2\n",
    "compose.override.yaml": "services: # part: deploy\n",
    "deploy/kubernetes/ours.yaml": "3\n",
    "flavours/vanilla": "4\n",
    "flavours/env/README.md": "not this one: -f writes over it\n",
    "tests/limits/test_ours.py": "5\n",
}


def write(project: Project, files: dict[str, str]) -> None:
    for name, text in files.items():
        (project.path / name).parent.mkdir(parents=True, exist_ok=True)
        (project.path / name).write_text(text, "utf-8")


@pytest.mark.parametrize("moved_by", [-3600, 0, 3600], ids=["old", "new", "from the future"])
def test_rendering_again_keeps_the_keys_and_the_owners_files(
    rendered: Rendered, capfd: pytest.CaptureFixture[str], moved_by: int
) -> None:
    project = rendered()
    expected = project.files()
    write(project, {**OWNED, "README.md": "over", "app/constants.py": "over"})
    moment = time.time() + moved_by
    for name in OWNED:
        os.utime(project.path / name, (moment, moment))

    rendered(overwrite_if_exists=True)

    expected.update({name: text.encode() for name, text in OWNED.items()})
    del expected["flavours/env/README.md"]
    assert project.files() == expected
    assert "stay as they were" in capfd.readouterr().out


def test_a_part_that_is_not_chosen_again_goes_without_what_the_owner_added(
    rendered: Rendered,
) -> None:
    expected = rendered({"project_name": "Other"}).files().keys()
    project = rendered(EVERYTHING["database"])
    owned = ["app/metrics/ours.py", "deploy/kubernetes/ours.yaml"]
    write(project, dict.fromkeys(owned, "OURS = 1\n"))

    rendered(overwrite_if_exists=True)

    assert project.files().keys() == {*expected, *owned}
    assert not (project.path / "app" / "limits").exists()


def test_another_key_store_takes_the_place_of_the_first(rendered: Rendered) -> None:
    first, other = FLAVOURS
    expected = rendered({"key_store": other, "project_name": "Other"}).files().keys()
    project = rendered({"key_store": first, "project_name": "Both"})
    owned = "app/auth/keys/ours.py"
    write(project, {owned: "# an edit of the owner's\n"})
    keys = project.keys

    rendered({"key_store": other, "project_name": "Both"}, overwrite_if_exists=True)

    assert project.keys == keys
    assert project.files().keys() == {*expected, owned}
    assert project.read(owned) == "# an edit of the owner's\n"


@pytest.mark.parametrize("choice", EXTREMES, ids=str)
def test_what_is_to_be_skipped_is_not_touched(rendered: Rendered, choice: Choice) -> None:
    """Not even files that would go, or that a flavour would replace, or lines with a mark."""
    project = rendered({"metrics": "yes", "deploy": "yes"})
    (project.path / "README.md").unlink()
    write(project, {**OWNED, "app/main.py": "MINE = 1  # part: metrics\n"})
    before = project.files()

    rendered(choice.answers, overwrite_if_exists=True, skip_if_file_exists=True)

    after = project.files()
    assert {name: after.get(name) for name in before} == before
    assert project.read("README.md").startswith("# My API Service\n")
    assert {name for name in after if name.startswith("flavours/")} == {
        name for name in OWNED if name.startswith("flavours/")
    }


def test_a_part_that_gets_files_without_its_lines_is_named(
    rendered: Rendered, capfd: pytest.CaptureFixture[str]
) -> None:
    project = rendered({"deploy": "yes"})
    kept = {"overwrite_if_exists": True, "skip_if_file_exists": True}
    rendered({"deploy": "yes"}, **kept)
    assert "may lack" not in capfd.readouterr().out
    rendered({"deploy": "yes", "limits": "yes"}, **kept)
    assert "may lack the lines of: limits. Without -s " in capfd.readouterr().out
    assert "limits" not in project.read("app/policies.py")
    rendered({"deploy": "yes", "limits": "yes"}, overwrite_if_exists=True)
    assert "may lack" not in capfd.readouterr().out
    assert "limits" in project.read("app/policies.py")


MARKED = """top <!-- part: limits -->

all
one # part: metrics
\ttwo  // part: limits, metrics, vaults
three; # part: limits, vaults

four "# part: limits" stays
five\t<!-- part: database -->
six # part: env

last # part: limits

"""
SETTLED = """all
one
\ttwo

four "# part: limits" stays
five
"""


def test_marks_of_every_kind_are_settled(template: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(template, tmp_path / "changed")
    marked = ("deploy/marked", "tests/marked.md", "app/limits_of_ours.py")
    for name in (*marked, "app/limits/marked.py"):
        (changed / TOP / name).write_text(MARKED, "utf-8")
    binary = b"\0\1\2\n # part: limits\n"
    (changed / TOP / "app" / "binary").write_bytes(binary)
    project = render(changed, tmp_path / "output", {"metrics": "yes"})
    for name in marked:
        assert project.read(name) == SETTLED
    assert (project.path / "app" / "binary").read_bytes() == binary
    assert not (project.path / "app" / "limits").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_in_the_place_of_the_keys_is_not_followed(
    rendered: Rendered, output: Path, tmp_path: Path
) -> None:
    (output / "my-api-service").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (output / "my-api-service" / ".env").symlink_to(elsewhere)
    rendered(overwrite_if_exists=True)
    assert not elsewhere.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_what_lies_behind_a_link_of_the_owners_is_not_removed(
    rendered: Rendered, tmp_path: Path
) -> None:
    project = rendered()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ours.py").write_text("OURS = 1  # part: metrics\n")
    (project.path / "app" / "metrics").symlink_to(elsewhere)
    (project.path / "app" / "loop").symlink_to(project.path / "app")
    (project.path / "app" / "dangling.py").symlink_to(tmp_path / "nothing")
    (project.path / "compose.override.yaml").symlink_to(elsewhere / "ours.py")

    rendered(overwrite_if_exists=True)

    assert (elsewhere / "ours.py").read_text() == "OURS = 1  # part: metrics\n"
    for name in ("app/metrics", "app/loop", "app/dangling.py", "compose.override.yaml"):
        assert (project.path / name).is_symlink()


@pytest.mark.parametrize("choice", EXTREMES, ids=str)
def test_a_template_with_the_line_ends_of_windows_gives_the_same_project(
    rendered: Rendered, tmp_path: Path, choice: Choice
) -> None:
    template = copy_template(tmp_path / "windows")
    for path in template.rglob("*"):
        if path.is_file() and path.suffix != ".png" and "swagger-ui" not in path.name:
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    project = render(template, tmp_path / "output", choice.answers)
    assert {**project.files(), ".env": b""} == {**rendered(choice.answers).files(), ".env": b""}


@pytest.mark.parametrize("choice", EXTREMES, ids=str)
def test_a_template_that_may_only_be_read_gives_a_project_that_can_be_edited(
    rendered: Rendered, tmp_path: Path, choice: Choice
) -> None:
    template = copy_template(tmp_path / "read-only")
    for path in files_in(template).values():
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    project = render(template, tmp_path / "output", choice.answers)
    assert project.files().keys() == rendered(choice.answers).files().keys()
    assert all(path.stat().st_mode & stat.S_IWUSR for path in files_in(project.path).values())


def test_a_hook_that_fails_leaves_no_half_project(
    template: Path, rendered: Rendered, tmp_path: Path, output: Path
) -> None:
    project = rendered({"project_name": "Other"})
    broken = shutil.copytree(template, tmp_path / "broken")
    hook = broken / "hooks" / "post_gen_project.py"
    hook.write_text(hook.read_text("utf-8").replace("\nlay_flavour(", "\n1 / 0\nlay_flavour("))
    with pytest.raises(FailedHookException):
        render(broken, output)
    assert [path.name for path in output.iterdir()] == ["other"]

    with pytest.raises(FailedHookException):
        render(broken, output, {"project_name": "Other"}, overwrite_if_exists=True)
    assert not (project.path / ".rendering").exists()
    rendered({"project_name": "Other"}, overwrite_if_exists=True)
    assert project.files().keys() == rendered().files().keys()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_without_hooks_everything_is_on_and_a_note_says_what_to_do(
    rendered: Rendered, template: Path, flavour: str
) -> None:
    project = rendered({"key_store": flavour}, accept_hooks=False)
    files = project.files()
    kept = {name for name in files if not name.startswith("flavours/")}
    assert kept == sources(template, ALL["database"]).keys()
    note = project.read("flavours/README.md")
    assert f"uv run {project.command} keys create" in note
    if sys.platform != "win32":
        command = note.partition("```console\n")[2].partition("\n")[0]
        project.run("sh", "-e", "-c", command)
        assert project.files().keys() == kept


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


def create_by_cruft(repository: Path, folder: Path, choice: Choice) -> Project:
    answers = json.dumps({"project_name": "By Cookiecutter", **choice.answers})
    folder.mkdir()
    run("cruft", "create", repository, "--no-input", "--extra-context", answers, cwd=folder)
    return Project(folder / "by-cookiecutter")


@pytest.mark.parametrize("choice", EXTREMES, ids=str)
def test_cruft_gives_the_same_project(
    rendered: Rendered, repository: Path, tmp_path: Path, choice: Choice
) -> None:
    expected = rendered({"project_name": "By Cookiecutter", **choice.answers}).files()
    project = create_by_cruft(repository, tmp_path / "by-cruft", choice)
    files = project.files()
    assert UUID4.search(project.read(".env"))
    assert not UUID4.search(files.pop(".cruft.json").decode())
    assert {**files, ".env": b""} == {**expected, ".env": b""}

    project.run("git", "init", "--quiet")
    commit(project.path, "Start")
    assert "diff --git" not in project.run("cruft", "diff").stdout


@pytest.mark.parametrize("choice", [*NONE.values(), ALL["database"]], ids=str)
def test_a_cruft_update_keeps_the_keys_the_parts_and_the_owners_edits(
    repository: Path, tmp_path: Path, choice: Choice
) -> None:
    project = create_by_cruft(repository, tmp_path / "by-cruft", choice)
    keys, names = project.read(".env"), project.files().keys()
    write(project, {"app/reports.py": "# mine\n"})
    for name in ("pyproject.toml", "README.md"):
        (project.path / name).write_text(f"# mine\n{project.read(name)}", "utf-8")
    project.run("git", "init", "--quiet")
    commit(project.path, "Start")

    files = sources(repository, choice)
    for name in ("pyproject.toml", "README.md"):
        with files[name].open("a", encoding="utf-8") as file:
            file.write("\n# changed\n\nfor metrics # part: metrics\n")
    (repository / TOP / "flavours" / "env" / "app/new.py").write_text("NEW = 1\n", "utf-8")
    files["app/constants.py"].unlink()
    commit(repository, "Change the template")
    diff = project.run("cruft", "diff").stdout
    update = project.run("cruft", "update", "--skip-apply-ask").stdout

    assert not UUID4.search(diff + update)
    added = "\n\nfor metrics\n" if "metrics" in choice.parts else "\n"
    for name in ("pyproject.toml", "README.md"):
        assert project.read(name).startswith("# mine\n")
        assert project.read(name).endswith(f"\n# changed{added}")
    new = {"app/reports.py", *(["app/new.py"] if choice.flavour == "env" else [])}
    assert project.files().keys() == (names | new) - {"app/constants.py"}
    assert project.read("app/reports.py") == "# mine\n"
    assert project.read(".env") == keys
    assert not UUID4.search(project.read(".cruft.json"))
