"""Bad settings stop the service with one line that helps."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from app.constants import COMMAND
from app.keys import new_secret
from app.settings import ENV_FILE, SettingsError, load_settings

ROOT = Path(__file__).parent.parent
NIL = "00000000-0000-4000-8000-000000000000"  # not-a-key
COUNTED = "11111111-1111-4111-8111-111111111111"  # not-a-key

MAKE = f"make a key with: uv run {COMMAND} keys create"
LEVELS = "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"
NOT_A_KEY = "is not a random lower-case UUID4"


BAD_SETTINGS = {
    # what is wrong: the variable, its value, and what is said about it
    "missing": ("API_KEYS", None, f"API_KEYS is not set; {MAKE}"),
    "empty": ("API_KEYS", "", f"API_KEYS is empty; {MAKE}"),
    "a word": ("API_KEYS", "swordfish", f"API_KEYS: entry 1 of 1 {NOT_A_KEY}; {MAKE}"),
    "log level": ("LOG_LEVEL", "loud", f"LOG_LEVEL: Input should be {LEVELS}"),
}


def test_a_bad_setting_ends_the_service_in_one_line(env_file: Path) -> None:
    keys = env_file.read_text().strip().removeprefix("API_KEYS=")
    env_file.unlink()
    services = {}
    for what, (variable, value, _) in BAD_SETTINGS.items():
        variables = {"API_KEYS": keys, variable: value}
        services[what] = subprocess.Popen(
            [sys.executable, "-c", "import app.main"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                **{name: text for name, text in variables.items() if text is not None},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for what, service in services.items():
        said = service.communicate(timeout=30)
        assert said == ("", f"{BAD_SETTINGS[what][2]}\n"), what
        assert service.returncode == 1, what


def test_a_server_ends_in_the_same_line(env_file: Path) -> None:
    env_file.unlink()
    server = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (server.returncode, server.stdout) == (1, "")
    assert server.stderr == f"API_KEYS is not set; {MAKE}\n"


def test_the_application_is_not_made_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "")
    with pytest.raises(SystemExit, match="API_KEYS is empty"):
        runpy.run_path(str(ROOT / "app" / "main.py"))


@pytest.mark.parametrize("entry", [new_secret().upper(), NIL, COUNTED, ""], ids=range(4))
def test_a_key_that_is_not_canonical_or_random_is_a_bad_setting(
    monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.setenv("API_KEYS", f"{new_secret()},{entry}")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert str(error.value) == f"API_KEYS: entry 2 of 2 {NOT_A_KEY}; {MAKE}"


def test_all_bad_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "swordfish")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SettingsError, match=r"API_KEYS: .*; LOG_LEVEL: ") as error:
        load_settings()
    assert "swordfish" not in str(error.value)


def test_env_file_in_another_encoding(env_file: Path) -> None:
    env_file.write_bytes(b"API_KEYS=\xe9")
    with pytest.raises(SettingsError, match=r"\.env is not UTF-8 text; save it as UTF-8"):
        load_settings()


def test_env_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("app.settings.Settings", refuse)
    with pytest.raises(SettingsError, match=r"\.env cannot be read \(Permission denied\)"):
        load_settings()


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", f"{new_secret()}, {new_secret()}, {new_secret()}")
    assert len(load_settings().api_keys) == 3


def test_log_level_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    ENV_FILE.write_text(f"{ENV_FILE.read_text()}log_level=debug\nOTHER=ignored\n")
    assert load_settings().log_level == "DEBUG"
