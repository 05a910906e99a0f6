"""The command line: in this process, and as one of its own in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from app.cli import main
from app.settings import Settings

ROOT = Path(__file__).parents[2]
# Of the environment that commands do not inherit from the tests.
HIDDEN = {
    *(name.upper() for name in Settings.model_fields),
    *("SECRETS_DIR", "SECRETS_VAULT", "PROMETHEUS_MULTIPROC_DIR"),
    *("PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONUTF8"),
}
PATIENCE = 120  # seconds: no test is decided by how busy the machine is


def run(*arguments: str) -> Result:
    """Whatever is raised fails the test: a traceback helps nobody."""
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def keys(*arguments: str) -> Any:
    """What a command says in JSON."""
    result = run("keys", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def complaint(*arguments: str) -> str:
    """The one line of a command that could not do it; which database that was may precede it."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    *where, said = result.stderr.splitlines()
    assert [line.partition(" ")[0] for line in where] in ([], ["In"])
    return said


class Project:
    """Your application in a folder of its own, where `.env` and `keys.db` are not yours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "pyproject.toml").touch()
        self.env_file, self.database = folder / ".env", folder / "keys.db"

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int = subprocess.PIPE,
        redirected: str = "",
    ) -> "subprocess.Popen[str]":
        """A command of Python's: `-m app keys list`, perhaps redirected as a shell does it.

        The settings are those in `.env` and in `env`.
        """
        environment = {name: os.environ[name] for name in os.environ if name not in HIDDEN}
        shell = ["sh", "-c", f'exec "$@" {redirected}', "sh"] if redirected else []
        return subprocess.Popen(
            [*shell, sys.executable, *command],
            cwd=cwd or self.folder,
            env={**environment, "PYTHONPATH": str(self.folder), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *command: str, **options: Any) -> tuple[int, str, str]:
        return finish(self.start(*command, **options))


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """How it ended, and what it wrote on standard output and standard error."""
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output or "", errors or ""
