"""Bad settings stop the service and its commands with one line that helps."""

import runpy
from pathlib import Path

import pytest

from tests.callers import run

MAIN = Path(__file__).parents[2] / "app" / "main.py"

BAD_SETTINGS = [  # and how the one line begins that is said of it
    ("API_KEYS", "swordfish", "API_KEYS: entry 1 of 1 is not a random lower-case UUID4; correct"),
    ("LOG_LEVEL", "swordfish", "LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or"),
    ("KEY_PREFIX", "Swordfish", "KEY_PREFIX: String should match pattern"),
    ("SECRETS_DIR", "/no/such/folder", "SECRETS_DIR: there is no folder"),
]


def test_a_bad_setting_is_named_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value, told in BAD_SETTINGS:
        with monkeypatch.context() as shell:
            shell.setenv(variable, value)
            with pytest.raises(SystemExit, match="3"):  # for a supervisor: do not start it again
                runpy.run_path(f"{MAIN}")
            output, said = capsys.readouterr()
            assert (output, said.count("\n"), said[: len(told)]) == ("", 1, told)
            assert "swordfish" not in said.lower()


def test_a_file_that_cannot_be_read_is_told_in_one_line(env_file: Path) -> None:
    env_file.write_bytes(b"TITLE=swordfish\xe9")
    assert run("keys", "create").stderr == f"{env_file} is not UTF-8 text; save it as UTF-8\n"
    env_file.unlink()
    env_file.mkdir()
    told = f"{env_file} is not a file; put the settings into one\n"
    assert run("keys", "create").stderr == told
