"""Render and install the default project beside what it is compared with, and measure."""

import subprocess
import sys

from tests.project import ROOT, environment, render_afresh

FOLDER = ROOT / ".cache" / "bench"
# keyshield needs SQLAlchemy's asyncio part and does not ask for it.
OTHERS = ("fastapi-simple-security", "keyshield[core,fastapi]", "sqlalchemy[asyncio]")


def main() -> None:
    project = render_afresh(FOLDER)
    installed = [
        option for package in (str(project.path), *OTHERS) for option in ("--with", package)
    ]
    command = ["uv", "run", "--quiet", "--isolated", "--no-project", *installed]
    script = ROOT / "benchmarks" / "bench.py"
    sys.exit(
        subprocess.run(
            [*command, "python", script, *sys.argv[1:]], cwd=FOLDER, env=environment(), check=False
        ).returncode
    )


if __name__ == "__main__":
    main()
