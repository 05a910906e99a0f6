"""Bad settings stop the service with one line that helps."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from app.auth.config.settings import AuthSettings
from app.auth.config.sources import load
from app.auth.errors import SettingsError
from app.auth.key import new_secret, with_prefix
from app.constants import COMMAND
from app.settings import load_settings
from tests.thorough.processes import PATIENCE, ROOT, Project

NIL = "00000000-0000-4000-8000-000000000000"  # not-a-key
COUNTED = "11111111-1111-4111-8111-111111111111"  # not-a-key

MAKE = f"make a key with: uv run {COMMAND} keys create"
LEVELS = "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"
NOT_A_KEY = "is not a random lower-case UUID4; correct it, or take it out"

BAD_SETTINGS = {
    # what is wrong: the variable, its value, and what is said about it
    "missing": ("API_KEYS", None, f"API_KEYS is not set; {MAKE}"),
    "empty": ("API_KEYS", "", f"API_KEYS is not set; {MAKE}"),
    "a word": ("API_KEYS", "swordfish", f"API_KEYS: entry 1 of 1 {NOT_A_KEY}"),
    "log level": ("LOG_LEVEL", "loud", f"LOG_LEVEL: Input should be {LEVELS}"),
    "prefix": ("KEY_PREFIX", "Äcme", "KEY_PREFIX: String should match pattern"),
}


@pytest.fixture
def project(tmp_path: Path, env_file: Path) -> Project:
    env_file.unlink()
    return Project(tmp_path)


def test_a_bad_setting_ends_the_service_in_one_line(project: Project) -> None:
    services = {}
    for what, (variable, value, _) in BAD_SETTINGS.items():
        variables = {"API_KEYS": new_secret(), variable: value}
        services[what] = subprocess.Popen(
            [sys.executable, "-c", "import app.main"],
            cwd=project.folder,
            env=project.environment(
                **{n: text for n, text in variables.items() if text is not None}
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for what, service in services.items():
        out, said = service.communicate(timeout=PATIENCE)
        assert (service.returncode, out) == (3, ""), what
        assert said.startswith(BAD_SETTINGS[what][2]), what
        assert said.count("\n") == 1, what
        value = BAD_SETTINGS[what][1]
        assert not value or value not in said, what


SERVERS = {
    "one process": ["uvicorn", "app.main:app", "--port", "0"],
    "workers": ["uvicorn", "app.main:app", "--port", "0", "--workers", "2"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_ends_with_that_line_instead_of_starting_again(
    project: Project, server: str
) -> None:
    result = project.run("-m", *SERVERS[server])
    assert result.returncode == (0 if server == "workers" else 3)
    assert f"API_KEYS is not set; {MAKE}\n" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_application_is_not_made_without_keys(
    env_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file.unlink()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "app" / "main.py"))
    assert end.value.code == 3
    assert capsys.readouterr().err == f"API_KEYS is not set; {MAKE}\n"


@pytest.mark.parametrize("entry", [new_secret().upper(), NIL, COUNTED, ""], ids=range(4))
def test_a_key_that_is_not_canonical_or_random_is_a_bad_setting(
    monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.setenv("API_KEYS", f"{new_secret()},{entry}")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert str(error.value) == f"API_KEYS: entry 2 of 2 {NOT_A_KEY}"


def test_all_bad_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "swordfish")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SettingsError, match=r"API_KEYS: .*; LOG_LEVEL: ") as error:
        load_settings()
    assert "swordfish" not in str(error.value)


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("api_keys", f"{new_secret()}, {new_secret()}, {new_secret()}")
    settings = load(AuthSettings)
    assert len(settings.api_keys) == 3
    assert not settings.may_change


def test_keys_in_either_spelling(env_file: Path, secrets: list[str]) -> None:
    plain = load(AuthSettings)
    env_file.write_text(f"API_KEYS={','.join(with_prefix(secret, 'acme') for secret in secrets)}")
    assert load(AuthSettings).api_keys == plain.api_keys


@pytest.mark.parametrize(
    ("level", "format", "expected"),
    [("debug", "JSON", ("DEBUG", "json")), ("warn", "Text", ("WARNING", "text"))],
)
def test_log_settings_in_any_case(
    env_file: Path, level: str, format: str, expected: tuple[str, str]
) -> None:
    lines = f"log_level={level}\nLOG_FORMAT={format}\nOTHER=ignored\n"
    env_file.write_text(f"{env_file.read_text()}{lines}")
    settings = load_settings()
    assert (settings.log_level, settings.log_format) == expected
