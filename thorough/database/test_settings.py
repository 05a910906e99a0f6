"""Bad settings stop the service and its commands with one line that helps."""

import runpy
from pathlib import Path
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from app.auth.config.sources import FOLDER
from app.auth.database.engine import check_schema, connect
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import digest, new_secret, with_prefix
from app.constants import COMMAND
from app.settings import Settings, load_settings
from tests.thorough.commands import ROOT, Project, complaint, finish, run

NIL = "00000000-0000-4000-8000-000000000000"  # not-a-key
NOBODY_LISTENS = "postgresql://nobody:swordfish@127.0.0.1:1/none"  # not-a-key

NOT_A_KEY = "is not a random lower-case UUID4"
MAKE = f"make a key with: uv run {COMMAND} keys create NAME"
NO_URL = "DATABASE_URL: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
OUT_OF_REACH = "DATABASE_URL: out of reach: "
STALENESS = "KEY_MAX_STALENESS: Input should be"
BAD_SETTINGS = {  # and how the line about them begins
    ("API_KEYS", "swordfish"): f"API_KEYS: entry 1 of 1 {NOT_A_KEY}; {MAKE}",
    ("API_KEYS", f"{NIL},swordfish"): f"API_KEYS: entry 1 of 2 {NOT_A_KEY}; {MAKE}",
    ("DATABASE_URL", "mysql://swordfish@x/y"): NO_URL,
    ("DATABASE_URL", "swordfish"): NO_URL,
    ("DATABASE_URL", ""): NO_URL,
    ("DATABASE_URL", "sqlite://"): NO_URL,
    ("DATABASE_URL", "sqlite:///:memory:"): NO_URL,
    ("DATABASE_URL", "sqlite://swordfish/keys.db"): NO_URL,
    ("DATABASE_URL", "sqlite:///file:swordfish.db"): NO_URL,
    ("DATABASE_URL", "sqlite:///file:swordfish.db?uri=true"): NO_URL,
    ("DATABASE_URL", "sqlite:///swordfish.db?mode=ro"): NO_URL,
    ("DATABASE_URL", "sqlite:///sword%00fish.db"): NO_URL,
    ("DATABASE_URL", "sqlite:///sword\nfish.db"): NO_URL,
    ("DATABASE_URL", "sqlite:///swordfish\udcff.db"): NO_URL,
    ("DATABASE_URL", "postgresql://x:swordfish@y"): NO_URL,
    ("DATABASE_URL", "postgresql://x:swordfish@[::1/y"): NO_URL,
    ("DATABASE_URL", "postgresql://x:swordfish@y:z/w"): NO_URL,
    ("DATABASE_URL", "postgresql://x:swordfish@y..z/w"): NO_URL,
    ("DATABASE_URL", "postgresql://x:sword%0Afish@y/w"): NO_URL,
    ("DATABASE_URL", "postgresql://x:sword@fish@y/w"): "DATABASE_URL: write %40 for an @ in",
    ("DATABASE_URL", f"{NOBODY_LISTENS}?colour=red"): f"{OUT_OF_REACH}invalid connection option",
    ("DATABASE_URL", f"{NOBODY_LISTENS}?port=x"): "DATABASE_URL: Received non-integer port",
    ("DATABASE_URL", NOBODY_LISTENS): f"{OUT_OF_REACH}connection failed: ",
    ("RATE_LIMIT", "swordfish"): "RATE_LIMIT: write 600/minute, or 10/second,5000/hour",
    ("RATE_LIMIT", "5/day"): "RATE_LIMIT: write 600/minute, or 10/second,5000/hour",
    ("VALKEY_URL", "swordfish"): "VALKEY_URL: write valkey://HOST:6379 or redis://HOST:6379",
    ("KEY_PREFIX", "Swordfish"): "KEY_PREFIX: String should match pattern",
    ("KEY_PREFIX", "swordfishswordfish"): "KEY_PREFIX: String should match pattern",
    ("KEY_PREFIX", "sword_fish"): "KEY_PREFIX: String should match pattern",
    ("KEY_PREFIX", "swordfish\n"): "KEY_PREFIX: String should match pattern",
    ("KEY_MAX_STALENESS", "swordfish"): f"{STALENESS} a valid number",
    ("KEY_MAX_STALENESS", "0"): f"{STALENESS} greater than or equal to 0.1",
    ("KEY_MAX_STALENESS", "61"): f"{STALENESS} less than or equal to 60",
    ("KEY_MAX_STALENESS", "nan"): f"{STALENESS} ",
    ("LOG_LEVEL", "swordfish"): "LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
}


@pytest.mark.parametrize(("variable", "value"), BAD_SETTINGS)
def test_a_bad_setting_is_named_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "app" / "main.py"))
    output, said = capsys.readouterr()
    assert (exit.value.code, output) == (3, "")
    assert said.startswith(BAD_SETTINGS[variable, value])
    assert said.count("\n") == 1
    assert "fish" not in said.lower()
    assert complaint("keys", "list") == said.strip()


@pytest.mark.parametrize("command", ["keys list", "keys create x", "db upgrade"])
def test_a_folder_in_the_place_of_env_is_told_in_one_line(
    working_directory: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = working_directory / ".env"
    file.mkdir()
    told = f"{file} is not a file; put the settings into one"
    assert complaint(*command.split()) == told
    with pytest.raises(SystemExit, match="3"):
        runpy.run_path(str(ROOT / "app" / "main.py"))
    assert capsys.readouterr() == ("", f"{told}\n")
    assert list(working_directory.iterdir()) == [file]  # and no database


# In processes of their own.


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


BY_UVICORN = ("-m", "uvicorn", "app.main:app", "--port", "0")
BY_IMPORT = ("-c", "import app.main")


def test_a_bad_setting_ends_the_service_in_one_line(project: Project) -> None:
    services = {
        (variable, value): project.start(
            *(BY_UVICORN if variable == "LOG_LEVEL" else BY_IMPORT), env={variable: value}
        )
        for variable, value in BAD_SETTINGS
        if value in ("mysql://swordfish@x/y", NOBODY_LISTENS)
        or (value == "swordfish" and variable in ("API_KEYS", "LOG_LEVEL"))
    }
    assert len(services) == 4
    for setting, service in services.items():
        rc, output, said = finish(service)
        assert (rc, output) == (3, ""), setting
        assert said.startswith(BAD_SETTINGS[setting])
        assert said.count("\n") == 1, said


def test_a_supervisor_of_workers_ends_instead_of_starting_them_again(project: Project) -> None:
    # If it does not end, this fails.
    _, output, said = project.run(*BY_UVICORN, "--workers", "2", env={"LOG_LEVEL": "swordfish"})
    assert output == ""
    told = said.count(BAD_SETTINGS["LOG_LEVEL", "swordfish"])
    assert 1 <= told <= 2  # a worker may be stopped before it gets that far
    assert "Traceback" not in said
    assert "swordfish" not in said


# No password is shown.

PASSWORD = "squid@fish%40/whale:eel?shark"
PARTS = ("squid", "fish", "whale", "eel", "shark")
ENCODED = "squid%40fish%2540%2Fwhale%3Aeel%3Fshark"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://nobody:{ENCODED}@127.0.0.1:1/none",
        f"postgresql://nobody:{ENCODED}@127.0.0.1:port/none",
        f"postgresql://nobody:{ENCODED}@127.0.0.1:99999/none",
        f"postgresql://nobody:{ENCODED}@nowhere..invalid/none",
        f"postgresql://nobody:{ENCODED}@127.0.0.1:1/none?sslmode=no",
        f"postgresql://nobody:{ENCODED}@127.0.0.1:1/none?colour=red",
        f"postgresql://nobody:{ENCODED}@127.0.0.1:1",
        f"postgresql://nobody@127.0.0.1:1/none?password={ENCODED}",
        f"mysql://nobody:{ENCODED}@127.0.0.1:1/none",
        f"postgresql:/nobody:{ENCODED}@127.0.0.1:1/none",
        f"postgresql://nobody:{PASSWORD}@127.0.0.1:1/none",
        "postgresql://nobody:squid/whale:eel?shark@127.0.0.1:1/none",
        "postgresql://nobody:fish%whale@127.0.0.1:1/none",
    ],
)
def test_no_part_of_a_password_is_ever_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "app" / "main.py"))
    shown = f"{capsys.readouterr()}"
    for command in ("keys list", "keys create x", "db upgrade"):
        shown += complaint(*command.split())
        shown += run(*command.split()).output
    assert "DATABASE_URL: " in shown
    assert [part for part in PARTS if part in shown] == []


def test_a_driver_that_tells_the_password_is_not_repeated() -> None:
    engine = connect(sa.make_url("postgresql+psycopg://nobody:swordfish@127.0.0.1:1/none"))
    refused = sa.exc.OperationalError("", {}, OSError("nobody:swordfish may not"))
    with (
        patch.object(engine, "connect", side_effect=refused),
        pytest.raises(StoreUnavailableError) as error,
    ):
        check_schema(engine)
    assert str(error.value) == f"{OUT_OF_REACH}nobody:*** may not"


def test_an_at_sign_in_a_password_is_written_as_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:aa@bb@h/db")
    with pytest.raises(SettingsError) as error:
        load_settings()
    advice = "DATABASE_URL: write %40 for an @ in a name or a password"
    assert str(error.value) == advice
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{ENCODED}@h/db")
    assert load_settings().database_url.password == PASSWORD


def test_the_settings_themselves_show_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", NOBODY_LISTENS)
    settings = load_settings()
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "swordfish" not in f"{shown} {settings.database_url} {vars(settings)}"
    assert settings.database_url.password == "swordfish"


def test_not_even_pydantic_tells_what_a_setting_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("API_KEYS", "DATABASE_URL", "KEY_PREFIX", "KEY_MAX_STALENESS", "LOG_LEVEL"):
        monkeypatch.setenv(variable, "Swordfish")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert error.value.error_count() == 5
    assert "swordfish" not in f"{error.value} {error.value!r}".lower()


# What is understood.


def test_all_bad_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("API_KEYS", "DATABASE_URL", "LOG_LEVEL"):
        monkeypatch.setenv(variable, "swordfish")
    with pytest.raises(SettingsError, match=r"API_KEYS: .*; DATABASE_URL: .*; LOG_LEVEL: "):
        load_settings()


def test_nothing_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("API_KEYS")
    monkeypatch.delenv("DATABASE_URL")
    settings = load_settings()
    assert settings.api_keys == frozenset()
    assert settings.database_url == sa.URL.create("sqlite", database=str(FOLDER / "keys.db"))
    others = (settings.key_prefix, settings.key_max_staleness, settings.log_level)
    assert others == ("", 1.0, "INFO")


def test_the_environment_wins_over_the_file(working_directory: Path, secrets: list[str]) -> None:
    others = "key_prefix=acme\nlog_level=debug\nOTHER=1\n"
    (working_directory / ".env").write_text(f"api_keys={new_secret()}\n{others}")
    settings = load_settings()
    assert settings.api_keys == {digest(secret.encode()) for secret in secrets}
    assert (settings.key_prefix, settings.log_level) == ("acme", "DEBUG")


@pytest.mark.parametrize(
    ("level", "format", "expected"),
    [("debug", "JSON", ("DEBUG", "json")), ("warn", "Text", ("WARNING", "text"))],
)
def test_log_settings_in_any_case(
    monkeypatch: pytest.MonkeyPatch, level: str, format: str, expected: tuple[str, str]
) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    monkeypatch.setenv("LOG_FORMAT", format)
    settings = load_settings()
    assert (settings.log_level, settings.log_format) == expected


def test_keys_are_listed_in_both_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = new_secret()
    monkeypatch.setenv("API_KEYS", f"{with_prefix(secret, 'acme')}, {secret}")
    assert load_settings().api_keys == {digest(secret.encode())}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://h:1/d?sslmode=require", "postgresql+psycopg://h:1/d?sslmode=require"),
        ("postgresql+asyncpg://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg://h/d"),
        (" postgresql://h/d\n", "postgresql+psycopg://h/d"),
        ("postgresql://[::1]:1/d", "postgresql+psycopg://[::1]:1/d"),
        ("sqlite+aiosqlite:////srv/x.db", "sqlite:////srv/x.db"),
        ("sqlite:////srv/x.db\r\n", "sqlite:////srv/x.db"),
        ("sqlite:////srv/a@b/c@d.db", "sqlite:////srv/a@b/c@d.db"),
    ],
)
def test_a_database_is_reached_by_the_driver_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, text: str, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", text)
    assert load_settings().database_url == sa.make_url(url)


def test_a_relative_path_begins_in_the_folder_of_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///data/keys.db")
    assert load_settings().database_url.database == str(FOLDER / "data" / "keys.db")
