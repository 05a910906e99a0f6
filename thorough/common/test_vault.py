"""Settings from a vault: how each vendor is asked, and what an error says.

The libraries of the vendors have stand-ins. The secret is `swordfish`.
"""

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.auth.config.sources import load
from app.auth.errors import SettingsError
from app.vaults import client as vault
from app.vaults.client import Vault, read

SECRET = {"Title": "swordfish", "pages": [2, 3], "COLOUR": "red", "unknown": None}
URLS = {
    "aws": "aws://eu-central-1/prod/my-service",
    "azure": "azure://my-vault.vault.azure.net/my-service",
    "gcp": "gcp://my-project/my-service",
    "vault": "vault://secret/prod/my-service",
}


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True)

    title: str = "none"
    pages: list[int] = Field([1])
    hue: str = Field("none", validation_alias="colour")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.env").write_text("TITLE=of the file\n")  # does not count
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / "settings.env")
    for name in ("TITLE", "PAGES", "COLOUR", "SECRETS_DIR", "SECRETS_VAULT", "VAULT_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """Of all vendors. Their vaults hold the secret."""
    all = Mock()
    text = json.dumps(SECRET)
    all.boto3.client().get_secret_value.return_value = {"SecretString": text}
    all.secrets.SecretClient().get_secret.return_value = SimpleNamespace(value=text)
    google = all.secretmanager.SecretManagerServiceClient()
    google.secret_version_path = "projects/{}/secrets/{}/versions/{}".format
    payload = SimpleNamespace(data=text.encode())
    google.access_secret_version.return_value = SimpleNamespace(payload=payload)
    kv = all.hvac.Client().secrets.kv.v2
    kv.read_secret_version.return_value = {"data": {"data": SECRET}}
    all.reset_mock()
    modules = {
        "azure.identity": all.identity,
        "azure.keyvault.secrets": all.secrets,
        "boto3": all.boto3,
        "botocore.config": all.config,
        "google.cloud.secretmanager": all.secretmanager,
        "hvac": all.hvac,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    loggers = [logging.getLogger(name) for name in ("botocore.parsers", "google.cloud")]
    levels = [logger.level for logger in loggers]
    yield all
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The answer of a vendor's client."""
    fetch = Mock(return_value=json.dumps(SECRET))
    monkeypatch.setitem(vault._CLIENTS, "vault", Mock(return_value=fetch))
    monkeypatch.setenv("SECRETS_VAULT", URLS["vault"])
    return fetch


def problem(url: str = URLS["vault"]) -> str:
    with pytest.raises(SettingsError) as error:
        read(url)
    # Neither in the line nor where a debugger or an error tracker looks.
    assert "swordfish" not in f"{error.value} {error.value.__cause__} {error.value.__context__}"
    assert "\n" not in f"{error.value}"
    return f"{error.value}"


# How each vendor is asked.


@pytest.mark.parametrize("vendor", URLS)
def test_every_vendor_has_the_secret(vendor: str) -> None:
    fields = {"TITLE": "swordfish", "PAGES": "[2, 3]", "COLOUR": "red", "UNKNOWN": "null"}
    assert read(URLS[vendor]) == fields
    assert read(URLS[vendor] + "/") == fields


def test_aws_is_asked_in_a_region(libraries: Mock) -> None:
    read(URLS["aws"])
    config = libraries.config.Config
    tries = {"total_max_attempts": 2}
    assert config.call_args == call(connect_timeout=3.0, read_timeout=3.0, retries=tries)
    client = call("secretsmanager", region_name="eu-central-1", config=config.return_value)
    assert libraries.boto3.client.call_args == client
    asked = libraries.boto3.client().get_secret_value
    assert asked.call_args == call(SecretId="prod/my-service")


def test_azure_is_asked_at_a_host(libraries: Mock) -> None:
    read(URLS["azure"])
    login = libraries.identity.DefaultAzureCredential
    patience = {"connection_timeout": 3.0, "read_timeout": 3.0, "retry_total": 1}
    assert login.call_args == call(**patience)
    client = call("https://my-vault.vault.azure.net", login.return_value, **patience)
    assert libraries.secrets.SecretClient.call_args == client
    assert libraries.secrets.SecretClient().get_secret.call_args == call("my-service")


def test_google_is_asked_for_the_latest_version(libraries: Mock) -> None:
    read(URLS["gcp"])
    assert libraries.secretmanager.SecretManagerServiceClient.call_args == call(transport="rest")
    asked = libraries.secretmanager.SecretManagerServiceClient().access_secret_version
    version = "projects/my-project/secrets/my-service/versions/latest"
    assert asked.call_args == call(name=version, retry=None, timeout=3.0)


def test_vault_is_asked_in_a_namespace(libraries: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_NAMESPACE", "team")
    read(URLS["vault"])
    assert libraries.hvac.Client.call_args == call(timeout=3.0, namespace="team")
    client = libraries.hvac.Client()
    asked = call(path="prod/my-service", mount_point="secret", raise_on_deleted_version=True)
    assert client.secrets.kv.v2.read_secret_version.call_args == asked
    assert not client.auth.kubernetes.login.called


def test_in_kubernetes_the_service_account_logs_in(
    libraries: Mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("swordfish")
    monkeypatch.setattr(vault, "SERVICE_ACCOUNT", tmp_path / "token")
    read(URLS["vault"] + "?role=my-role")
    client = libraries.hvac.Client()
    assert client.auth.kubernetes.login.call_args == call("my-role", "swordfish")
    [asked] = client.secrets.kv.v2.read_secret_version.call_args_list
    assert asked.kwargs["path"] == "prod/my-service"


@pytest.mark.parametrize(
    ("vendor", "logger"),
    [("aws", "botocore.parsers"), ("gcp", "google.cloud.secretmanager_v1.services")],
)
def test_no_library_logs_what_it_reads(vendor: str, logger: str) -> None:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    try:
        read(URLS[vendor])
        assert not logging.getLogger(logger).isEnabledFor(logging.DEBUG)
    finally:
        root.setLevel(before)


# What its answer means.


def test_settings_are_written_as_in_the_environment(fetch: Mock) -> None:
    assert load(Settings).model_dump() == {"title": "swordfish", "pages": [2, 3], "hue": "red"}


def test_the_environment_wins(fetch: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITLE", "of the environment")
    monkeypatch.setenv("Colour", "blue")
    assert load(Settings).model_dump() == {
        "title": "of the environment",
        "pages": [2, 3],
        "hue": "blue",
    }


def test_an_empty_value_is_none(fetch: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.return_value = {"title": "", "pages": "", "colour": "red"}
    monkeypatch.setenv("COLOUR", "")
    assert load(Settings).model_dump() == {"title": "none", "pages": [1], "hue": "red"}


@pytest.mark.parametrize("vendor", ["aws", "gcp"])
def test_a_binary_secret_is_told(libraries: Mock, vendor: str) -> None:
    binary = b"swordfish\xff"
    libraries.boto3.client().get_secret_value.return_value = {"SecretBinary": binary}
    google = libraries.secretmanager.SecretManagerServiceClient()
    google.access_secret_version.return_value.payload.data = binary
    told = "the secret is not the text of a JSON object with a field for each setting"
    assert problem(URLS[vendor]) == f"SECRETS_VAULT: {told}"


def test_what_is_malformed_in_it_is_named(fetch: Mock) -> None:
    fetch.return_value = {"pages": "1,swordfish"}
    with pytest.raises(SettingsError, match=r'"pages".*; write it as JSON$') as error:
        load(Settings)
    assert "swordfish" not in f"{error.value} {error.value.__context__}"
    fetch.return_value = {"pages": ["swordfish"]}
    with pytest.raises(SettingsError, match=r"^PAGES: Input should be a valid integer") as error:
        load(Settings)
    assert "swordfish" not in f"{error.value} {error.value.__context__}"


@pytest.mark.parametrize("secret", ["swordfish", '{"title": "swordfish', '["swordfish"]', ""])
def test_a_secret_without_fields_is_refused(fetch: Mock, secret: str) -> None:
    fetch.return_value = secret
    told = (
        "SECRETS_VAULT: the secret is not the text of a JSON object with a field for each setting"
    )
    assert problem() == told


# Errors.


@pytest.mark.parametrize(
    "url",
    [
        *("swordfish", "https://swordfish/x", "aws://eu-central-1", "vault://secret/", "gcp:///x"),
        *("aws://[/", "vault://secret/x?swordfish", "vault://secret/x?role="),
    ],
)
def test_a_url_that_names_no_secret_is_refused(url: str) -> None:
    assert problem(url) == (
        "SECRETS_VAULT: write aws://REGION/SECRET, azure://HOST/SECRET, gcp://PROJECT/SECRET"
        " or vault://MOUNT/PATH"
    )


@pytest.mark.parametrize("vendor", URLS)
def test_a_library_that_is_missing_is_told(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("azure", "boto3", "google", "hvac"):
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            monkeypatch.setitem(sys.modules, module, None)
    assert problem(URLS[vendor]).endswith(f" is not installed; run: uv sync --extra {vendor}")


class ClientError(Exception):
    """As in the library of AWS."""

    def __init__(self) -> None:
        super().__init__("swordfish")
        self.response = {"Error": {"Code": "AccessDeniedException", "Message": "swordfish"}}


class InvalidPath(Exception):  # noqa: N818
    """As in the library of Vault, which finds nothing where the engine is KV version 1."""


class HttpResponseError(Exception):
    """As in the library of Azure."""

    response = SimpleNamespace(status_code=403)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError(), "AccessDeniedException"),
        (HttpResponseError("swordfish"), "HttpResponseError"),
        (ConnectionError("swordfish"), "ConnectionError"),
        (KeyError("swordfish"), "KeyError"),
        (InvalidPath("swordfish"), "InvalidPath (or its engine is KV version 1)"),
    ],
)
def test_an_error_is_called_by_its_name_alone(fetch: Mock, error: Exception, kind: str) -> None:
    fetch.side_effect = error
    advice = "check the secret's name, the login and the network"
    assert problem() == f"SECRETS_VAULT: {kind}; {advice}"


def test_a_vault_that_is_silent_ends_the_start(
    fetch: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    fetch.side_effect = lambda: answer.wait(5)
    monkeypatch.setattr(vault, "TIMEOUT", 0.05)
    assert problem() == "SECRETS_VAULT: no answer within 0.05 s"
    [waiting] = [thread for thread in threading.enumerate() if thread.name == "vault"]
    assert waiting.daemon
    answer.set()
    waiting.join()


def test_a_folder_beside_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_VAULT", URLS["vault"])
    monkeypatch.setenv("SECRETS_DIR", "/run/secrets")
    with pytest.raises(SettingsError) as error:
        load(Settings)
    told = "SECRETS_VAULT and SECRETS_DIR are both set; leave one of them out"
    assert f"{error.value}" == told


def test_a_client_is_kept_until_it_fails(fetch: Mock) -> None:
    client: Any = vault._CLIENTS["vault"]
    opened = Vault(URLS["vault"])
    opened.read()
    opened.read()
    assert client.call_count == 1
    fetch.side_effect = ConnectionError
    with pytest.raises(SettingsError):
        opened.read()
    fetch.side_effect = None
    opened.read()
    assert client.call_count == 2  # with another login


def test_without_a_vault_no_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "import_module", Mock(side_effect=AssertionError))
    assert load(Settings).title == "of the file"
