"""Would a release work, for those who begin and for those who are there? `make release-check`

Runs the suite of each flavour on the lowest and on the newest versions of what it depends on, with
each Python of this machine; then takes a service of the release before, with its owner's edits, keys
and data, through `cruft update`. Prints a table; exits with 1 if anything would break.

Words select rows: `database`, `env`, `lowest`, `newest`, `3.12`, `update`. BASE names another release
than the last tag.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import cruft

from tests.project import FLAVOURS, ROOT, Project, copy_template, get, keep_home_clean, render, run
from tools.render import silence

RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
OF_THE_OWNER = """

@guarded.get("/of-the-owner")
async def of_the_owner() -> str:
    return "still here"
"""


def pythons() -> dict[str, Path]:
    """The interpreters of this machine that the template is for, by their minor versions."""
    listed = json.loads(
        run("uv", "python", "list", "--only-installed", "--output-format=json", cwd=ROOT).stdout
    )
    paths = [Path(each["path"]) for each in listed if each["implementation"] == "cpython"]
    paths += Path.home().glob(".pyenv/versions/*/bin/python3")
    found: dict[str, Path] = {}
    for path in paths:
        asked = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
        version, _, itself = run(path, "-c", asked, cwd=ROOT, check=False).stdout.partition(" ")
        if version in ("3.11", "3.12", "3.13", "3.14"):
            found.setdefault(version, Path(itself.strip()))  # not a shim of pyenv's
    return dict(sorted(found.items()))


def last_line(project: Project, *command: str) -> str:
    """What pytest says in the end. Raises AssertionError, with all it has said, if that is bad."""
    return project.run(*command).stdout.strip().splitlines()[-1].strip("= ")


def run_suite(flavour: str, resolution: str, python: Path) -> str:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        keep_home_clean(Path(folder) / "home")
        template = copy_template(Path(folder) / "template")
        with silence():
            project = render(template, Path(folder) / "output", {"key_store": flavour})
        wanted = ("--resolution", RESOLUTIONS[resolution], "--python", f"{python}")
        project.run("uv", "sync", "--quiet", *wanted, UV_PYTHON=f"{python}")
        return last_line(project, "uv", "run", "--no-sync", "pytest", "-q")


def run_update(flavour: str, base: str) -> str:
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        keep_home_clean(folder / "home")
        template = folder / "template"
        git(folder, "clone", "--quiet", f"{ROOT}", f"{template}")
        copy_template(template)
        git(template, "add", "--all")
        git(template, "commit", "--quiet", "--allow-empty", "--message", "As it is here")
        answers = {"key_store": flavour}
        with silence():
            path = cruft.create(
                f"{template}", folder, extra_context=answers, no_input=True, checkout=base
            )
        project, of_database = Project(path), flavour == "database"
        project.run("uv", "sync", "--quiet")
        if of_database:
            project.run("uv", "run", project.command, "db", "upgrade")
        made = project.manage_keys("create", *["billing"] * of_database)
        with (path / "app" / "routes.py").open("a", encoding="utf-8") as routes:
            routes.write(OF_THE_OWNER)
        env_file = (path / ".env").read_bytes()
        for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "-m", "Mine")):
            git(path, *command)

        with silence():
            assert cruft.update(path, skip_apply_ask=True), "cruft update failed"
        assert not list(path.rglob("*.rej")), "some changes were not taken"
        assert (path / ".env").read_bytes() == env_file, "the keys have changed"
        project.run("uv", "sync", "--quiet")
        if of_database:
            project.run("uv", "run", project.command, "db", "upgrade")
        server = ("uv", "run", "uvicorn", "app.main:app", "--port", "{port}")
        with project.serving(*server) as url:
            for key in (made["key"], *project.keys):
                status, _, body = get(f"{url}/of-the-owner", {"api-key": key})
                assert (status, body) == (200, '"still here"'), f"{status} {body}"
        return last_line(project, "uv", "run", "pytest", "-q")


def git(folder: Path, *command: str) -> str:
    return run("git", *command, cwd=folder).stdout.strip()


def rows(base: str) -> Iterator[tuple[tuple[str, ...], Callable[[], str]]]:
    for flavour in FLAVOURS:
        for version, python in pythons().items():
            for resolution in RESOLUTIONS:
                row = (flavour, resolution, version)
                yield row, lambda f=flavour, r=resolution, p=python: run_suite(f, r, p)  # type: ignore[misc]
        if base:
            yield (flavour, "update", base), lambda f=flavour: run_update(f, base)  # type: ignore[misc]


def main(*words: str) -> None:
    tags = git(ROOT, "tag", "--list", "v*", "--sort=-version:refname").split()
    base = os.environ.get("BASE") or next(iter(tags), "")
    if not base:
        print("There is no tag yet, so that nobody is on a release; BASE=COMMIT tries one.\n")
    print(
        "| flavour | versions | Python, or update from | |\n| --- | --- | --- | --- |", flush=True
    )
    broken = False
    for row, check in rows(base):
        if not set(words) <= {*row}:
            continue
        try:
            said = check()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            sys.stderr.write(f"{row}: {error}\n")
            said, broken = "**breaks**", True
        print(f"| {' | '.join(row)} | {said} |", flush=True)
    sys.exit(broken)


if __name__ == "__main__":
    main(*sys.argv[1:])
