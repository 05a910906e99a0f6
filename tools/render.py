"""Render into .cache/rendered the default and both flavours with every part.

`python -m tools.render FOLDER ANSWER=VALUE...` renders one project into a folder. What is there
already is written over. Edit the plain files of the template, render, and run `uv run pytest` in
the rendered project.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.project import EVERYTHING, ROOT, Project, copy_template, keep_home_clean, render

RENDERED = {"default": {}, **EVERYTHING}
# Lists what was rendered into a folder: that may be removed again, and nothing else there.
LIST = ".rendered"


@contextmanager
def silence() -> Iterator[None]:
    """The hook tells the next steps to an owner, and is a process of its own."""
    kept = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def render_over(folder: Path, answers: Mapping[str, str]) -> None:
    """Only what has changed is written, so that caches stay good; `.env` and `.venv` stay too."""
    with TemporaryDirectory() as name, silence():
        keep_home_clean(Path(name) / "home")
        template = copy_template(Path(name) / "template")
        new = render(template, Path(name) / "output", answers)
        changed = replace(folder, new)
    if "pyproject.toml" in changed or not (folder / ".venv").exists():
        Project(folder).run("uv", "sync", "--quiet")
    print(folder)


def replace(folder: Path, new: Project) -> set[str]:
    """The names of the files that were written."""
    files = new.files()
    listed = folder / LIST
    before = listed.read_text("utf-8").splitlines() if listed.exists() else []
    for name in set(before) - files.keys():
        (folder / name).unlink(missing_ok=True)
    changed = {
        name
        for name, content in files.items()
        if not (folder / name).exists()
        or (name != ".env" and (folder / name).read_bytes() != content)
    }
    for name in changed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(new.path / name, folder / name)
    listed.write_text("\n".join(files), "utf-8")
    return changed


def main(folder: str = "", *answers: str) -> None:
    if folder:
        render_over(Path(folder), dict(answer.split("=", 1) for answer in answers))
    else:
        for name in RENDERED:
            render_over(ROOT / ".cache" / "rendered" / name, RENDERED[name])


if __name__ == "__main__":
    main(*sys.argv[1:])
