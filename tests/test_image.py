"""The generated Dockerfile: what gets into the image, and how it runs.

By docker, or by podman where that is all there is. PYTHON_IMAGE may name another base.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from tests.project import FLAVOURS, Project, get, render, run

pytestmark = [pytest.mark.slow, pytest.mark.image]

ENGINE = shlex.split(os.environ.get("ENGINE") or shutil.which("docker") or "podman")
# More for `run`, on a machine that lets containers do less than usual.
OPTIONS = shlex.split(os.environ.get("ENGINE_RUN_OPTIONS", ""))
PORT = 8000  # of this machine


@pytest.fixture(scope="module", params=FLAVOURS)
def project(request: pytest.FixtureRequest, template: Path) -> Iterator[Project]:
    with TemporaryDirectory() as folder:
        project = render(template, Path(folder), {"key_store": request.param})
        project.run("uv", "lock", "--quiet")
        for stray in (".env.production", "keys.db", "keys.db-wal", "app/.env", "app/notes.db"):
            (project.path / stray).write_text(f"API_KEYS={project.keys[0]}\n")
        base = os.environ.get("PYTHON_IMAGE")
        options = ["--build-arg", f"PYTHON={base}"] if base else []
        run(*ENGINE, "build", *options, "-t", project.command, ".", cwd=project.path)
        yield project


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    (folder / "api_keys").write_text(f"{uuid4()}\n")
    (folder / "database_url").write_text("sqlite:////data/keys.db\n")
    return folder


def start(project: Project, secrets: Path) -> str:
    """The id of a container that runs the service."""
    return run(
        *(*ENGINE, "run", "--detach", "--read-only", "--network", "host", *OPTIONS),
        *("-v", f"{secrets}:/run/secrets:ro", "-v", f"{secrets.parent}/data:/data"),
        *("-e", "SECRETS_DIR=/run/secrets", project.command),
        cwd=project.path,
    ).stdout.strip()


def inside(id: str, program: str) -> str:
    return run(*ENGINE, "exec", id, "python", "-c", program, cwd=Path.cwd()).stdout.strip()


def status(path: str, key: str = "") -> int:
    try:
        return get(f"http://127.0.0.1:{PORT}{path}", {"api-key": key})[0]
    except OSError:
        return 0


def test_it_serves_guards_and_stops(project: Project, secrets: Path) -> None:
    id = start(project, secrets)
    try:
        give_up_at = time.monotonic() + 60
        while status("/health/ready") != 200:
            assert time.monotonic() < give_up_at, run(*ENGINE, "logs", id, cwd=Path.cwd()).stdout
            time.sleep(0.1)
        assert status("/secure-endpoint", (secrets / "api_keys").read_text().strip()) == 200
        assert status("/secure-endpoint", f"{uuid4()}") == 403
        assert (
            status("/secure-endpoint", project.keys[0]) == 403
        )  # it lay beside, and did not enter

        assert inside(id, "import os; print(os.getuid())") == "10001"
        assert inside(id, "print(open('/proc/1/comm').read())") == project.command
        search = "import pathlib; print([f'{p}' for p in pathlib.Path('/service').rglob('*')])"
        files = inside(id, search)
        assert "/uvicorn" in files
        assert ".pyc" in files
        assert not any(f"/{stray}'" in files for stray in (".env", "keys.db", "notes.db", "uv"))

        began_at = time.monotonic()
        run(*ENGINE, "stop", "--time", "10", id, cwd=Path.cwd())
        assert time.monotonic() - began_at < 5  # the engine itself takes its time
        state = json.loads(run(*ENGINE, "inspect", id, cwd=Path.cwd()).stdout)[0]["State"]
        assert state["ExitCode"] == 0
    finally:
        run(*ENGINE, "rm", "--force", id, cwd=Path.cwd())
