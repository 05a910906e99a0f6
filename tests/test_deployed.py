"""The generated project deployed for real: by `deploy/up.sh`, and as Kubernetes would.

The first with docker, or what ENGINE names; the second with podman, which plays the manifests.
"""

import http.client
import json
import os
import shlex
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest

from tests.project import FLAVOURS, Project, render, run

pytestmark = [pytest.mark.slow, pytest.mark.image]

ENGINE = shlex.split(os.environ.get("ENGINE", "docker"))
COMPOSE = os.environ.get("COMPOSE") or shlex.join([*ENGINE, "compose"])
REPLICAS = ("replica-1", "replica-2")
PORT = 8443  # of this machine
PROBES = 4  # seconds in which two of the proxy's fail, if there is nobody to answer; also on a busy machine

ENDPOINT = """

import asyncio

from fastapi import Request


@guarded.get("/work")
@guarded.post("/work")
async def work(request: Request, seconds: float = 0.02) -> dict[str, str]:
    await asyncio.sleep(seconds)
    return {"client": f"{request.client and request.client.host}", "scheme": request.url.scheme}
"""


@dataclass(frozen=True)
class Stack:
    """The service behind its proxy, as `deploy/up.sh` has started it."""

    project: Project

    def up(self) -> None:
        self.project.run("sh", "deploy/up.sh", COMPOSE=COMPOSE)

    def compose(self, *arguments: str) -> str:
        return self.project.run(*shlex.split(COMPOSE), *arguments).stdout.strip()

    def inside(self, service: str, *command: str) -> str:
        return self.compose("exec", "-T", service, *command)

    @property
    def secrets(self) -> Path:
        return self.project.path / "secrets"

    @property
    def key(self) -> str:
        return (self.secrets / "service" / "api_keys").read_text().strip()

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=f"{self.secrets / 'proxy' / 'tls.pem'}")
        return http.client.HTTPSConnection("localhost", PORT, context=context, timeout=60)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(self.connect()) as connection:
            connection.request("GET", path, headers=named)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@dataclass(frozen=True)
class Answer:
    method: str
    sent_at: float
    took: float  # seconds
    status: int  # 0 where the connection broke
    is_whole: bool

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.is_whole


@contextmanager
def calling(stack: Stack, key: str, *requests: tuple[str, str]) -> Iterator[list[Answer]]:
    """Four callers for each of the requests go on, each on its connection, until the block ends."""
    answers: list[Answer] = []
    is_over = threading.Event()
    give_up_at = time.monotonic() + 300

    def go_on(method: str, path: str) -> None:
        with closing(stack.connect()) as connection:
            while not is_over.wait(0.005) and time.monotonic() < give_up_at:
                sent_at, status, is_whole = time.monotonic(), 0, False
                try:
                    connection.request(method, path, headers={"api-key": key})
                    answer = connection.getresponse()
                    status = answer.status
                    answer.read()
                    is_whole = True
                except (OSError, http.client.HTTPException):
                    connection.close()
                took = time.monotonic() - sent_at
                answers.append(Answer(method, sent_at, took, status, is_whole))

    with ThreadPoolExecutor(4 * len(requests)) as pool:
        calls = [pool.submit(go_on, *request) for request in requests * 4]
        try:
            time.sleep(1)
            yield answers
            time.sleep(PROBES + 1)
        finally:
            is_over.set()
    for call in calls:
        call.result()


def wait_for(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


@pytest.fixture(scope="module", params=FLAVOURS)
def clone(request: pytest.FixtureRequest, template: Path) -> Iterator[Project]:
    """Of the repository that somebody has made of a generated project."""
    with TemporaryDirectory() as folder:
        original = render(template, Path(folder), {"key_store": request.param})
        routes = original.path / "app" / "routes.py"
        routes.write_text(routes.read_text() + ENDPOINT)
        original.run("uv", "lock", "--quiet")
        original.run("git", "init", "--quiet")
        original.run("git", "add", "--all")
        original.run("git", "commit", "--quiet", "--message", "Begin")
        clone = Project(Path(folder) / "clone" / original.command)
        run("git", "clone", "--quiet", original.path, clone.path, cwd=Path(folder))
        yield clone


@pytest.fixture(scope="module")
def stack(clone: Project) -> Iterator[Stack]:
    stack = Stack(clone)
    try:
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes")


def test_one_command_leads_from_a_clone_to_200(stack: Stack) -> None:
    assert stack.get("/")[0] == 200
    assert stack.get("/secure-endpoint", api_key=stack.key)[0] == 200
    assert stack.get("/secure-endpoint", api_key=f"{uuid4()}")[0] == 403
    files = stack.inside("replica-1", "find", "/service", "-not", "-path", "*/.venv/*")
    assert files.split() == ["/service", "/service/.venv"]


def test_what_callers_say_of_themselves_is_not_believed(stack: Stack) -> None:
    forged = {"X_Forwarded_For": "192.0.2.1", "X_Forwarded_Proto": "http"}
    status, seen = stack.get("/work", api_key=stack.key, **forged)
    assert (status, seen["scheme"]) == (200, "https")
    assert seen["client"] not in ("192.0.2.1", "10.213.47.2")

    program = f"""
import json, urllib.request
headers = {{"api-key": {stack.key!r}, "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}}
request = urllib.request.Request("http://replica-1:8000/work", headers=headers)
print(urllib.request.urlopen(request).read().decode())
"""
    neighbour = json.loads(stack.inside("replica-2", "python", "-c", program))
    assert neighbour == {"client": "10.213.47.4", "scheme": "http"}


def test_a_rolling_restart_loses_no_request(stack: Stack) -> None:
    before = {stack.compose("ps", "--quiet", replica) for replica in REPLICAS}
    busy = [("POST", "/work?seconds=0")] * 4  # enough that without care some would be lost
    with calling(stack, stack.key, *busy, ("GET", "/work"), ("POST", "/work?seconds=4")) as answers:
        stack.up()
    assert not before & {stack.compose("ps", "--quiet", replica) for replica in REPLICAS}
    lost = [answer for answer in answers if not answer.is_good]
    print(f"rolling restart: {len(answers)} requests, {len(lost)} lost")
    assert not lost
    assert len(answers) > 1000


def test_a_reload_of_the_proxy_loses_no_request(stack: Stack) -> None:
    """As for a new certificate."""
    with calling(stack, stack.key, ("GET", "/work"), ("POST", "/work")) as answers:
        stack.compose("kill", "--signal", "HUP", "proxy")
    assert not [answer for answer in answers if not answer.is_good]


def test_a_replica_that_dies_is_missed_by_nobody_for_longer_than_a_probe(stack: Stack) -> None:
    try:
        with calling(stack, stack.key, ("GET", "/work"), ("POST", "/work")) as answers:
            stack.compose("kill", "--signal", "KILL", "replica-1")
            killed_by = time.monotonic()
    finally:
        stack.compose("start", "replica-1")
    lost = [answer for answer in answers if not answer.is_good]
    slow = [answer for answer in answers if answer.took > 0.2]
    print(
        f"killed: {len(answers)} requests, lost {[each.method for each in lost]}, slow {len(slow)},"
        f" the last one sent {max((each.sent_at for each in slow), default=killed_by) - killed_by:.2f} s after,"
        f" the longest took {max(each.took for each in answers):.2f} s"
    )
    # What it was at work on when it died is repeated if that is safe, and no answer has begun.
    assert all(each.method == "POST" or each.status == 200 for each in lost)
    assert all(each.sent_at < killed_by for each in lost)
    assert len(lost) <= 4
    assert all(each.sent_at < killed_by + PROBES for each in slow)
    assert all(each.took < 2 for each in answers)
    assert len([each for each in answers if each.sent_at > killed_by]) > 100
    wait_for(lambda: ",UP," in state_of(stack, "replica-1"))


def state_of(stack: Stack, replica: str) -> str:
    told = stack.inside("proxy", "sh", "-c", "echo show stat | nc 127.0.0.1 9999")
    return next(line for line in told.splitlines() if line.startswith(f"service,{replica},"))


def test_a_revocation_reaches_every_replica(stack: Stack) -> None:
    if "migration" in stack.project.read("compose.yaml"):
        command = ("replica-1", stack.project.command, "keys")
        made = json.loads(stack.inside(*command, "create", "caller", "--json"))
        revoke = partial(stack.inside, *command, "revoke", made["id"])
        check_revocation(stack, made["key"], revoke, within=0)
    else:
        file = stack.secrets / "service" / "api_keys"
        check_revocation(stack, stack.key, lambda: replace(file, f"{uuid4()}\n"), within=0.25)


def check_revocation(
    stack: Stack, key: str, revoke: Callable[[], object], *, within: float
) -> None:
    with calling(stack, key, ("GET", "/work?seconds=0")) as answers:
        began_at = time.monotonic()
        revoke()
        revoked_at = time.monotonic()
    accepted = [answer.sent_at for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 403]
    assert len(accepted) + len(refused) == len(answers)
    print(
        f"revoked in {revoked_at - began_at:.2f} s:"
        f" the last one that got in was sent {max(accepted) - revoked_at:+.3f} s after"
    )
    assert len(accepted) > 100
    assert len(refused) > 100
    assert max(accepted) <= revoked_at + within
    ask = f"""
import urllib.request, urllib.error
request = urllib.request.Request("http://127.0.0.1:8000/work", headers={{"api-key": {key!r}}})
try: print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error: print(error.code)
"""
    assert [stack.inside(replica, "python", "-c", ask) for replica in REPLICAS] == ["403", "403"]


def replace(path: Path, text: str) -> None:
    """As an editor does, or a vault's agent: by another file."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_where_no_replica_is_ready_callers_hear_that_at_once(stack: Stack) -> None:
    stack.compose("stop", *REPLICAS)
    try:
        wait_for(lambda: stack.get("/")[0] == 503)
        assert stack.get("/") == (503, {"detail": "No replica is ready; try again"})
        lines = stack.compose("logs", "proxy")
        assert "DOWN" in lines or "503" in lines
        assert "/work" not in lines
        assert stack.key not in lines
    finally:
        stack.compose("start", *REPLICAS)
    wait_for(lambda: stack.get("/")[0] == 200)


@pytest.mark.skipif(not shutil.which("podman"), reason="nothing else plays manifests")
def test_the_manifests_play(clone: Project, tmp_path: Path) -> None:
    """All at once: the service starts again until the database has been migrated."""
    id = uuid4().hex
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "api_keys").write_text(f"{uuid4()}\n")
    played = tmp_path / "played.yaml"
    podman = partial(run, "podman", cwd=clone.path)
    podman("build", "--quiet", "--tag", f"registry.example/{clone.command}:0.1.0", ".")
    podman("network", "create", id)
    try:
        if "migration.yaml" in clone.read("deploy/kubernetes/kustomization.yaml"):
            (tmp_path / "password").write_text("of-this-test-alone\n")
            url = "postgresql://service:of-this-test-alone@database/service"
            (settings / "database_url").write_text(f"{url}\n")
            podman(
                *("run", "--detach", "--network", id, "--network-alias", "database", "--name", id),
                *("--env", "POSTGRES_USER=service", "--env", "POSTGRES_DB=service"),
                *("--env", "POSTGRES_PASSWORD_FILE=/password"),
                *("--volume", f"{tmp_path}/password:/password:ro", "postgres:18"),
            )
        files = ("create", "secret", "generic", "settings", f"--from-file={settings}")
        secret = run("kubectl", *files, "--dry-run=client", "--output=yaml", cwd=tmp_path).stdout
        base = clone.run("kubectl", "kustomize", "deploy/kubernetes").stdout
        played.write_text(f"{secret}---\n{base}")
        podman("kube", "play", "--network", id, played)

        def inside(*command: str) -> str:
            return podman("exec", "api-pod-api", *command, check=False).stdout.strip()

        ready = "from urllib.request import urlopen as get; print(get('http://127.0.0.1:8000/{}').status)"
        wait_for(lambda: inside("python", "-c", ready.format("health/ready")) == "200")
        guarded = """
from urllib.request import Request, urlopen
key = open("/run/secrets/api_keys").read().strip()
request = Request("http://127.0.0.1:8000/secure-endpoint", headers={"api-key": key})
print(urlopen(request).status)
"""
        assert inside("python", "-c", guarded) == "200"
        assert inside("id", "-u") == "10001"
        rights = dict(line.split(":\t") for line in inside("cat", "/proc/1/status").splitlines())
        assert int(rights["CapEff"], 16) == 0
        assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
        attempts = (
            "for folder in / /service /run/secrets /tmp; do touch $folder/x && echo $folder; done"
        )
        assert inside("sh", "-c", attempts) == "/tmp"  # noqa: S108
    finally:
        podman("kube", "down", "--force", played, check=False)
        podman("rm", "--force", "--volumes", "--time", "5", id, check=False)
        podman("secret", "rm", "settings", check=False)
        podman("network", "rm", id, check=False)
