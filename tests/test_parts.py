"""Every choice of parts leaves a whole project, and none of the parts that were not chosen."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.parts import (
    ALL,
    CHOICES,
    NONE,
    PATHS,
    SOME_CHOICES,
    VENDORED,
    Choice,
    files_in,
    marked_lines,
    settled,
    sources,
)
from tests.project import TOP, Project, get, render

Rendered = Callable[..., Project]
Chosen = Callable[[Choice], Project]
Workshop = Callable[[Project], Project]


@pytest.fixture(params=SOME_CHOICES)
def choice(request: pytest.FixtureRequest) -> Choice:
    chosen: Choice = request.param
    return chosen


@pytest.fixture
def project(chosen: Chosen, choice: Choice) -> Project:
    return chosen(choice)


@pytest.mark.parametrize("choice", [*NONE.values(), *ALL.values()], ids=str)
def test_the_quick_way_of_these_tests_gives_what_cookiecutter_gives(
    project: Project, rendered: Rendered, choice: Choice
) -> None:
    files = rendered(choice.answers).files()
    assert {**project.files(), ".env": b""} == {**files, ".env": b""}


def test_the_files_and_lines_are_those_that_were_chosen(
    project: Project, template: Path, choice: Choice
) -> None:
    expected = sources(template, choice)
    assert project.files().keys() == expected.keys() | {".env"}
    for name, source in expected.items():
        text = source.read_text("utf-8")
        lines = [line for line in project.read(name).splitlines() if line.strip()]
        if "{%" not in text or name.startswith("app/docs/"):
            kept = settled(text, choice)
            assert len(lines) == len(kept), name
            assert not [pair for pair in zip(kept, lines, strict=True) if differ(*pair)], name


def differ(template: str, line: str) -> bool:
    return template != line and "{{" not in template


def test_no_scars(project: Project) -> None:
    for name, content in project.files().items():
        if name.startswith("app/docs/static/"):
            continue
        text = content.decode("utf-8")
        assert not re.search(r"\{\{|\{%|cookiecutter\.", text), f"{name}: Jinja residue"
        assert not re.search(r"(#|//|<!--) part: ", text), f"{name}: a mark"
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


# Words that only a part has a reason to say, in what is not prose.
WORDS = {
    "limits": r"new-(limits|networks)|key\.(limits|networks)|rate_limit|valkey|\bquota",
    "management": r"/api-keys|/console|app[./](management|console)",
    "metrics": r"prometheus|/metrics|app[./]metrics",
    "gateway": r"gateway|/verify\b",
    "transfer": r"app[./]transfer|import_keys",
    "vaults": r"hvac|boto3|azure|app[./]vaults|vault_",
    "deploy": r"compose\.yaml|docker-compose|haproxy|deploy/(kubernetes|up)",
}


@pytest.mark.parametrize("part", WORDS)
def test_nothing_speaks_of_a_part_that_is_not_there(chosen: Chosen, part: str) -> None:
    others = frozenset(WORDS) - {part}
    files = chosen(Choice("database", others)).files()
    said = [
        f"{name}:{number}: {line}"
        for name in files.keys() - VENDORED
        if not name.endswith((".md", ".txt", ".json"))
        for number, line in enumerate(files[name].decode().splitlines(), 1)
        if re.search(WORDS[part], line, re.IGNORECASE)
    ]
    assert not said, "\n".join(sorted(said))


def test_a_mark_names_parts_and_is_in_a_file_that_has_comments(template: Path) -> None:
    for name, path in files_in(template / TOP).items():
        text = path.read_text("utf-8")
        marks = list(marked_lines(text))
        assert len(re.findall(r"(?:#|//|<!--) part: ", text)) == len(marks), name
        for number, parts, line in marks:
            assert line.strip(), f"{name}:{number}: a mark of nothing"
            assert {*parts.split(", ")} <= PATHS.keys(), f"{name}:{number}: {parts}"
            assert not name.endswith((".json", ".cfg", "Dockerfile")), (
                f"{name} has no such comments"
            )


def test_every_path_of_a_part_is_there(template: Path) -> None:
    for part, paths in PATHS.items():
        for path in paths:
            assert (template / TOP / path).exists(), f"{part}: {path}"


# Installed, checked and tested.


def check(project: Project) -> None:
    """All that a project's workflow does, on the versions that were installed last."""
    project.run("uv", "sync", "--quiet")
    project.run("uv", "run", "ruff", "check", "--no-cache", ".")
    project.run("uv", "run", "ruff", "format", "--no-cache", "--check", ".")
    project.run("uv", "run", "mypy")
    project.run("uv", "run", "pytest", "-q")


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    """A folder in which projects take turns, so that each finds what is installed and cached."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as around:
        folder = Path(around) / "my-api-service"
        folder.mkdir()

        def take_turn(project: Project) -> Project:
            for path in folder.iterdir():
                if path.is_file() and path.name != "uv.lock":
                    path.unlink()
                elif path.is_dir() and path.name not in (".venv", ".mypy_cache"):
                    shutil.rmtree(path)
            shutil.copytree(project.path, folder, dirs_exist_ok=True)
            return Project(folder)

        yield take_turn


def is_tried_always(choice: Choice) -> bool:
    return choice in ALL.values() or len(choice.parts) < 2


def installed(choice: Choice) -> Any:
    marks = [pytest.mark.slow, pytest.mark.xdist_group(f"parts of {choice.flavour}")]
    if not is_tried_always(choice):
        marks.append(pytest.mark.matrix)
    return pytest.param(choice, marks=marks, id=str(choice))


@pytest.mark.parametrize("choice", [installed(choice) for choice in CHOICES])
def test_its_checks_and_tests_pass(chosen: Chosen, workshop: Workshop, choice: Choice) -> None:
    check(workshop(chosen(choice)))


def by_hand(project: Project, template: Path, part: str) -> None:
    """Take out a part as its README says: its paths, and the lines that the template has marked."""
    everything = sources(template, ALL["database"])
    for path in PATHS[part]:
        target = project.path / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    for name, source in everything.items():
        marked = [
            line for _, parts, line in marked_lines(source.read_text("utf-8")) if parts == part
        ]
        if marked and (project.path / name).exists():
            lines = project.read(name).splitlines()
            for line in marked:
                lines.remove(line)
            (project.path / name).write_text("\n".join([*lines, ""]), "utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("parts of database")
@pytest.mark.parametrize("part", sorted(ALL["database"].parts))
def test_a_part_can_be_taken_out_by_hand(
    template: Path, chosen: Chosen, workshop: Workshop, part: str
) -> None:
    project = workshop(chosen(ALL["database"]))
    by_hand(project, template, part)
    project.run("ruff", "format", "--no-cache", ".")
    check(project)


@pytest.mark.slow
@pytest.mark.xdist_group("no hooks")
def test_without_hooks_comes_a_project_that_works(template: Path) -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), accept_hooks=False)
        commands = re.findall(
            r"^(rm|uv run) (.*)$", project.read("flavours/README.md"), re.MULTILINE
        )
        assert [command for command, _ in commands] == ["rm", "uv run", "uv run"]
        for command, arguments in commands:
            project.run(*command.split(), *arguments.split())
        key = project.manage_keys("create", "billing")["key"]
        with project.serving("uv", "run", "fastapi", "run", "--port", "{port}") as url:
            assert get(f"{url}/secure-endpoint", {"api-key": key})[0] == 200
            assert get(f"{url}/secure-endpoint")[0] == 403
        check(project)
