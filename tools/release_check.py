"""Would a release work, for those who begin and for those who are there? `make release-check`

Runs the thorough suite of each flavour on the lowest and on the newest versions of what it depends
on, with each Python of this machine. Then takes projects of the release before, with their owner's
edits, keys and data, through what UPGRADING.md says. Prints a table; exits with 1 if anything would
break.

Words select rows: `database`, `env`, `lowest`, `newest`, `3.12`, `update`. BASE names another commit
than that of the last row of RELEASES.md.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import cruft

from tests.project import (
    EVERYTHING,
    FLAVOURS,
    ROOT,
    Project,
    clone_template,
    copy_template,
    get,
    keep_home_clean,
    render,
    run,
    with_tools,
)
from tools.render import silence

RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
# What was still there when nobody was asked for parts yet.
KEPT = {"database": ("/metrics", "/console", "/api-keys"), "env": ()}
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
        if version in ("3.11", "3.12", "3.13", "3.14", "3.15"):
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
            project = render(template, Path(folder) / "output", EVERYTHING[flavour])
        project.lay_thorough(flavour)
        wanted = ("--resolution", RESOLUTIONS[resolution], "--python", f"{python}")
        project.run("uv", "sync", "--quiet", *wanted, UV_PYTHON=f"{python}")
        uv, run, *rest = with_tools(flavour, "pytest", "-q")
        return last_line(project, uv, run, "--no-sync", *rest)


def releases() -> dict[str, str]:
    """The commit of each release by its version, the first one first."""
    table = (ROOT / "RELEASES.md").read_text("utf-8")
    return dict(re.findall(r"^\| (\S[^|]*?) \| [\d-]+ \| ([0-9a-f]{40}) \|", table, re.MULTILINE))


def commands_of(chapter: str) -> list[str]:
    """Those that a chapter of UPGRADING.md says, in its order."""
    text = (ROOT / "UPGRADING.md").read_text("utf-8").partition(f"# {chapter}\n")[2]
    blocks = re.findall(r"^```console\n(.*?)^```", text.partition("\n## ")[0], re.M | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def follow(project: Project, command: str) -> str:
    """Do what UPGRADING.md says, with the cruft of this environment, and answer its question."""
    words = shlex.split(command)
    if words[0] == "uvx":
        words = [*words[1:], "--skip-apply-ask"]
    return project.run(*words).stdout


def was_before_parts(base: str) -> bool:
    """Whether projects of this commit were asked for no parts, and have a database to give up."""
    last = releases()["before parts"]
    known = run("git", "merge-base", "--is-ancestor", base, last, cwd=ROOT, check=False)
    return not known.returncode


def create_before(folder: Path, flavour: str, base: str) -> Project:
    """A project of this commit that is in use: a key in its database, an edit of its owner."""
    template = clone_template(folder / "template")
    with silence():
        path = cruft.create(
            f"{template}",
            folder,
            extra_context={"key_store": flavour},
            no_input=True,
            checkout=base,
        )
    project, of_database = Project(path), flavour == "database"
    git(path, "init", "--quiet")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "As it comes")
    project.run("uv", "sync", "--quiet")
    if of_database:
        project.run("uv", "run", project.command, "db", "upgrade")
    project.manage_keys("create", *["billing"] * of_database)
    with (path / "app" / "routes.py").open("a", encoding="utf-8") as routes:
        routes.write(OF_THE_OWNER)
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "Mine")
    return project


SINCE = {"gateway", "transfer"}  # parts that no project of before had


def run_update(flavour: str, base: str, kept: bool) -> str:
    """Raises AssertionError if what UPGRADING.md says does not lead to a service that works."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        keep_home_clean(Path(name) / "home")
        project = create_before(Path(name), flavour, base)
        env_file = project.read(".env")
        switch, update, *checks = commands_of("Upgrading a generated project")
        keep, sync, *begin_anew = commands_of("From a project of before the parts")
        if kept:
            parts = EVERYTHING[flavour].keys() - {"key_store"} - SINCE
            wanted = dict.fromkeys(parts, "yes")
            words = shlex.split(keep)
            assert flavour != "database" or json.loads(words[-1]) == wanted
            update = shlex.join([*words[:-1], json.dumps(wanted)])
        for command in (switch, update):
            follow(project, command)
        left = [*project.path.rglob("*.rej")]
        assert not left, f"not taken: {left}"
        assert not git(project.path, "diff", "--name-only", "--diff-filter=U"), "conflicts"
        assert project.read(".env") == env_file, "the keys have changed"
        follow(project, sync)
        if flavour == "database":
            upgrade = ("uv", "run", project.command, "db", "upgrade")
            if was_before_parts(base):
                refused = project.run(*upgrade, check=False)
                assert refused.returncode, "the database of before is read"
                assert len(refused.stderr.splitlines()) == 1, refused.stderr
                for command in begin_anew:
                    follow(project, command)
            else:
                project.run(*upgrade)
        server = ("uv", "run", "uvicorn", "app.main:app", "--port", "{port}")
        with project.serving(*server) as url:
            for key in project.keys:
                status, _, body = get(f"{url}/of-the-owner", {"api-key": key})
                assert (status, body) == (200, '"still here"'), f"{status} {body}"
            for path in KEPT[flavour]:
                status, *_ = get(f"{url}{path}", {"api-key": project.keys[0]})
                assert (status == 200) == kept, f"{path}: {status}"
        assert checks[-1] == "uv run pytest", checks
        return last_line(project, "uv", "run", "pytest", "-q")


def git(folder: Path, *command: str) -> str:
    return run("git", *command, cwd=folder).stdout.strip()


def rows(base: str) -> Iterator[tuple[tuple[str, ...], Callable[[], str]]]:
    for flavour in FLAVOURS:
        for version, python in pythons().items():
            for resolution in RESOLUTIONS:
                row = (flavour, resolution, version)
                yield row, lambda f=flavour, r=resolution, p=python: run_suite(f, r, p)  # type: ignore[misc]
        for kept in (True, False) if was_before_parts(base) else (False,):
            parts = ", every part kept" if kept else ""
            yield (
                (flavour, "update", f"{base[:7]}{parts}"),
                lambda f=flavour, k=kept: run_update(f, base, k),  # type: ignore[misc]
            )


def main(*words: str) -> None:
    base = os.environ.get("BASE") or list(releases().values())[-1]
    try:
        git(ROOT, "cat-file", "-e", f"{base}^{{commit}}")
    except AssertionError:
        sys.exit(f"This copy of the repository has no commit {base}: fetch its whole history.")
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
