"""Bad settings stop the service and its commands with one line that helps."""

import runpy
from pathlib import Path

import pytest

from tests.callers import run

MAIN = Path(__file__).parents[2] / "app" / "main.py"
NO_URL = "DATABASE_URL: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"

BAD_SETTINGS = [  # and how the one line begins that is said of it
    ("API_KEYS", "swordfish", "API_KEYS: entry 1 of 1 is not a random lower-case UUID4; make a"),
    ("DATABASE_URL", "mysql://x:swordfish@y/z", NO_URL),
    ("DATABASE_URL", "", NO_URL),
    ("DATABASE_URL", "sqlite:///:memory:", NO_URL),
    ("DATABASE_URL", "postgresql://x:sword@fish@y/w", "DATABASE_URL: write %40 for an @ in"),
    ("DATABASE_URL", "postgresql://x:swordfish@127.0.0.1:1/n", "DATABASE_URL: out of reach: "),
    ("KEY_PREFIX", "Swordfish", "KEY_PREFIX: String should match pattern"),
    ("KEY_MAX_STALENESS", "61", "KEY_MAX_STALENESS: Input should be less than or equal to 60"),
    ("LOG_LEVEL", "swordfish", "LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or"),
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
            assert "fish" not in said.lower()
            assert run("db", "upgrade").stderr.endswith(said)
