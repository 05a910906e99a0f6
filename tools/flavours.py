"""Edit the Python of both flavours where it runs: open the projects, change them, take it back.

What is the same in both is one file of the template; what differs is a file of each, whose name
renders empty in the other flavour, so that cookiecutter leaves it out.
"""

import sys
from pathlib import Path

from tests.project import FLAVOURS, ROOT, Project, copy_template, keep_home_clean, render

FOLDER = ROOT / ".cache" / "flavours"
TEMPLATE = ROOT / "{{cookiecutter.__slug}}"
RENDERED = "app/constants.py"  # the one file that has Jinja in it


def open_projects() -> None:
    """Render both flavours; what was opened before stays, so that nothing is lost."""
    if FOLDER.exists():
        sys.exit(f"{FOLDER} is open already: take it back, or delete it")
    keep_home_clean(FOLDER / "cookiecutter-home")
    template = copy_template(FOLDER / "template")
    for flavour in FLAVOURS:
        project = render(template, FOLDER / flavour, {"key_store": flavour})
        project.run("uv", "sync", "--quiet")
        print(project.path)


def sources(flavour: str) -> dict[str, bytes]:
    """What the template holds as Python, or beside it, of an opened project."""
    (path,) = (path for path in (FOLDER / flavour).iterdir() if path.is_dir())
    return {
        name: content
        for name, content in Project(path).files().items()
        if name.startswith(("app/", "tests/"))
        and name.endswith((".py", ".mako"))
        and name != RENDERED
    }


def name_in(flavour: str, name: str) -> str:
    """The name of a file that only this flavour has, or has otherwise."""
    path = Path(name)
    return f"{path.parent.as_posix()}/{{% if cookiecutter.key_store == '{flavour}' %}}{path.name}{{% endif %}}"


def take_back() -> None:
    """Write the opened projects' sources into the template, and remove what they no longer have."""
    flavours = {flavour: sources(flavour) for flavour in FLAVOURS}
    first, *others = flavours.values()
    files = {
        name: content
        for name, content in first.items()
        if all(other.get(name) == content for other in others)
    }
    for flavour, of_flavour in flavours.items():
        files |= {
            name_in(flavour, name): content
            for name, content in of_flavour.items()
            if name not in files
        }
    for path in [*TEMPLATE.glob("app/**/*"), *TEMPLATE.glob("tests/**/*")]:
        name = path.relative_to(TEMPLATE).as_posix()
        if path.is_file() and name not in files and name != RENDERED:
            path.unlink()
    for name, content in files.items():
        (TEMPLATE / name).parent.mkdir(parents=True, exist_ok=True)
        (TEMPLATE / name).write_bytes(content)


if __name__ == "__main__":
    {"open": open_projects, "take": take_back}[sys.argv[1]]()
