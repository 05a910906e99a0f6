"""Reads settings from one secret of a vault. Its fields have the names and the form of settings.

The vendor's library finds the login by itself: in the environment, in files or on the machine.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from app.auth.errors import SettingsError

TIMEOUT = 10.0  # seconds for the whole answer when the settings are loaded
IO_TIMEOUT: Final = 3.0  # seconds for a connection, and for each part of an answer
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

Fetch = Callable[[], str | bytes | Mapping[str, Any]]
"""Requests the secret. Returns its fields, or a JSON object with them."""

_URL: Final = re.compile(r"(aws|azure|gcp|vault)://([^/?]+)/([^?]+?)/?(?:\?role=([^&]+))?")


def vault_source(url: str, _: object) -> dict[str, str]:
    """The fields of the secret, by their names in capitals. Raises SettingsError."""
    return read(url)


class Vault:
    """One secret. The vendor's client stays open, so that the secret can be read again."""

    def __init__(self, url: str) -> None:
        """Raises SettingsError if the URL names no secret."""
        if not (match := _URL.fullmatch(url)):
            known = "aws://REGION/SECRET, azure://HOST/SECRET, gcp://PROJECT/SECRET"
            raise SettingsError(f"SECRETS_VAULT: write {known} or vault://MOUNT/PATH")
        self._vendor, self._place, self._name, self._role = match.groups()
        self._fetch: Fetch | None = None

    def read(self) -> dict[str, str]:
        """The fields, by their names in capitals.

        Raises SettingsError, whose text holds no part of the secret.
        """
        try:
            self._fetch = self._fetch or _CLIENTS[self._vendor](self._place, self._name, self._role)
            secret = self._fetch()
        except ImportError as error:
            problem = f"{error.name} is not installed; run: uv sync --extra {self._vendor}"
        except Exception as error:
            problem = f"{_kind(error)}; check the secret's name, the login and the network"
        else:
            if (fields := _fields(secret)) is not None:
                return fields
            problem = "the secret is not the text of a JSON object with a field for each setting"
        self._fetch = None  # the next read logs in again
        raise SettingsError(f"SECRETS_VAULT: {problem}")


def read(url: str) -> dict[str, str]:
    """Read the secret once, within TIMEOUT seconds. Raises SettingsError."""
    vault, answers = Vault(url), SimpleQueue[dict[str, str] | SettingsError]()

    def ask() -> None:
        try:
            answers.put(vault.read())
        except SettingsError as error:
            answers.put(error)

    Thread(target=ask, name="vault", daemon=True).start()  # a daemon does not delay the exit
    try:
        answer = answers.get(timeout=TIMEOUT)
    except Empty:
        answer = SettingsError(f"SECRETS_VAULT: no answer within {TIMEOUT:g} s")
    if isinstance(answer, SettingsError):
        raise answer
    return answer


def _kind(error: Exception) -> str:
    """The name of the error only, because its text may hold a token."""
    response = getattr(error, "response", None)
    # AWS has one type for nearly all errors, and a code in it.
    name = response["Error"]["Code"] if isinstance(response, dict) else type(error).__name__
    return f"{name} (or its engine is KV version 1)" if name == "InvalidPath" else name


def _fields(secret: str | bytes | Mapping[str, Any]) -> dict[str, str] | None:
    try:
        fields = json.loads(secret) if isinstance(secret, str | bytes) else secret
        return {
            name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
    except (AttributeError, ValueError):
        return None


def _aws(region: str, name: str, _: str | None) -> Fetch:
    boto3, config = import_module("boto3"), import_module("botocore.config")
    _keep_answers_out_of_the_log("botocore.parsers")
    tries = {"total_max_attempts": 2}
    timeouts = config.Config(connect_timeout=IO_TIMEOUT, read_timeout=IO_TIMEOUT, retries=tries)
    client = boto3.client("secretsmanager", region_name=region, config=timeouts)
    return lambda: client.get_secret_value(SecretId=name).get("SecretString", b"")


def _azure(host: str, name: str, _: str | None) -> Fetch:
    identity, secrets = import_module("azure.identity"), import_module("azure.keyvault.secrets")
    timeouts = {"connection_timeout": IO_TIMEOUT, "read_timeout": IO_TIMEOUT, "retry_total": 1}
    login = identity.DefaultAzureCredential(**timeouts)
    client = secrets.SecretClient(f"https://{host}", login, **timeouts)
    return lambda: client.get_secret(name).value


def _gcp(project: str, name: str, _: str | None) -> Fetch:
    secretmanager = import_module("google.cloud.secretmanager")
    _keep_answers_out_of_the_log("google.cloud.secretmanager_v1")
    client = secretmanager.SecretManagerServiceClient(transport="rest")  # gRPC breaks after a fork
    ask = partial(client.access_secret_version, retry=None, timeout=IO_TIMEOUT)
    version = client.secret_version_path(project, name, "latest")
    return lambda: ask(name=version).payload.data


def _hashicorp(mount: str, path: str, role: str | None) -> Fetch:
    """Also for OpenBao. With a role, the login is the service account of Kubernetes."""
    hvac = import_module("hvac")
    client = hvac.Client(timeout=IO_TIMEOUT, namespace=os.environ.get("VAULT_NAMESPACE"))
    if role:
        client.auth.kubernetes.login(role, SERVICE_ACCOUNT.read_text())
    ask = partial(client.secrets.kv.v2.read_secret_version, raise_on_deleted_version=True)
    return lambda: ask(path=path, mount_point=mount)["data"]["data"]


def _keep_answers_out_of_the_log(logger: str) -> None:
    logging.getLogger(logger).setLevel(logging.INFO)  # at DEBUG it logs answers


_CLIENTS: Final[dict[str, Callable[[str, str, str | None], Fetch]]] = {
    "aws": _aws,
    "azure": _azure,
    "gcp": _gcp,
    "vault": _hashicorp,
}
