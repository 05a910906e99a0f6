"""Settings from a vault. The libraries of the vendors have stand-ins; `swordfish` is secret."""

import json
import sys
from collections.abc import Callable
from threading import Event
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from app.auth.errors import SettingsError
from app.settings import load_settings
from app.vaults import client

URL = "vault://secret/prod/my-service"
ADVICE = "check the secret's name, the login and the network"


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The answer of the vault that SECRETS_VAULT names."""
    fetch = Mock(return_value={"Key_Prefix": "acme"})
    monkeypatch.setitem(client._CLIENTS, "vault", Mock(return_value=fetch))
    monkeypatch.setenv("SECRETS_VAULT", URL)
    return fetch


def problem() -> str:
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "swordfish" not in f"{error.value} {error.value.__cause__} {error.value.__context__}"
    return f"{error.value}"


def test_the_environment_wins_over_the_vault(fetch: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().key_prefix == "acme"
    monkeypatch.setenv("KEY_PREFIX", "other")
    assert load_settings().key_prefix == "other"


def aws(text: str) -> dict[str, Mock]:
    library = Mock()
    library.client("secretsmanager").get_secret_value = lambda SecretId: {  # noqa: N803
        "SecretString": text if SecretId == "prod/my-service" else ""
    }
    return {"boto3": library, "botocore.config": Mock()}


def azure(text: str) -> dict[str, Mock]:
    secrets = Mock()
    secrets.SecretClient().get_secret = {"my-service": SimpleNamespace(value=text)}.__getitem__
    return {"azure.identity": Mock(), "azure.keyvault.secrets": secrets}


def gcp(text: str) -> dict[str, Mock]:
    library = Mock()
    answer = library.SecretManagerServiceClient().access_secret_version.return_value
    answer.payload.data = text.encode()
    return {"google.cloud.secretmanager": library}


def vault(text: str) -> dict[str, Mock]:
    library = Mock()
    read = library.Client().secrets.kv.v2.read_secret_version
    read.return_value = {"data": {"data": json.loads(text)}}
    return {"hvac": library}


@pytest.mark.parametrize(
    ("url", "libraries"),
    [
        ("aws://eu-central-1/prod/my-service", aws),
        ("azure://my-vault.vault.azure.net/my-service", azure),
        ("gcp://my-project/my-service", gcp),
        (URL, vault),
    ],
)
def test_every_vendor_has_the_secret(
    url: str, libraries: Callable[[str], dict[str, Mock]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, library in libraries(json.dumps({"title": "swordfish", "pages": [2]})).items():
        monkeypatch.setitem(sys.modules, name, library)
    assert client.read(url) == {"TITLE": "swordfish", "PAGES": "[2]"}
    for name in libraries("{}"):
        monkeypatch.setitem(sys.modules, name, None)
    vendor = url.partition(":")[0]
    with pytest.raises(SettingsError, match=f"is not installed; run: uv sync --extra {vendor}$"):
        client.read(url)


def test_a_failure_is_one_line_without_a_secret(fetch: Mock) -> None:
    fetch.side_effect = ConnectionError("swordfish")
    assert problem() == f"SECRETS_VAULT: ConnectionError; {ADVICE}"
    fetch.side_effect = None
    fetch.return_value = '["swordfish"]'
    assert (
        problem()
        == "SECRETS_VAULT: the secret is not the text of a JSON object with a field for each setting"
    )
    fetch.return_value = {"log_level": "swordfish"}
    assert problem().startswith("LOG_LEVEL: Input should be")


def test_a_silent_vault_ends_the_start(fetch: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    end = Event()
    fetch.side_effect = lambda: end.wait(5)
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    assert problem() == "SECRETS_VAULT: no answer within 0.05 s"
    end.set()


def test_a_variable_that_names_no_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_VAULT", "https://swordfish/x")
    assert problem().startswith("SECRETS_VAULT: write aws://REGION/SECRET, ")
    monkeypatch.setenv("SECRETS_DIR", "secrets")
    assert problem() == "SECRETS_VAULT and SECRETS_DIR are both set; leave one of them out"
