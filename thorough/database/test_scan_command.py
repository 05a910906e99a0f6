"""`keys scan` knows the keys of the database, if there is one, and those of API_KEYS anyway."""

import json
from pathlib import Path

import pytest

from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import digest, id_of, new_secret, with_prefix
from tests.thorough.commands import keys, run
from tests.thorough.databases import SQLiteDatabases

NO_DATABASE = "Not every key is known here: DATABASE_URL: there is no "


@pytest.mark.usefixtures("database_url")
def test_the_keys_of_the_database_are_found_be_they_in_force_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.cli.context.sleep", lambda _: None)
    first, revoked = keys("create", "first"), keys("create", "second")
    rotated = keys("rotate", first["id"])
    keys("revoke", revoked["id"])
    log = tmp_path / "log"
    lines = [first["key"], with_prefix(rotated["key"], "acme"), revoked["key"].upper()]
    log.write_text("\n".join([*lines, new_secret()]))

    result = run("keys", "scan", f"{log}")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines() == [
        f"{log}:1: key {first['id']} (known)",
        f"{log}:2: key {first['id']} (known)",
        f"{log}:3: key {revoked['id']} (known)",
    ]
    found = json.loads(run("keys", "scan", "--json", f"{log}").stdout)
    assert [each["id"] for each in found] == [first["id"], first["id"], revoked["id"]]


def test_a_missing_database_is_said_once_and_made_by_nobody(
    tmp_path: Path, secrets: list[str], ids: list[str]
) -> None:
    files = [tmp_path / name for name in ("orders", "more orders")]
    for file in files:
        file.write_text(f"{new_secret()}\n{new_secret()}\n")
    result = run("keys", "scan", *map(str, files))
    assert (result.exit_code, result.stdout) == (0, "")
    [note] = result.stderr.splitlines()
    assert note.startswith(f"{NO_DATABASE}{tmp_path}/keys.db; start the service, or make it with: ")

    stranger = new_secret()
    files[0].write_text(f"{secrets[1]}\nAPI_KEYS={stranger}\n{new_secret()}")
    result = run("keys", "scan", *map(str, files))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{files[0]}:1: key {ids[1]} (known)",
        f"{files[0]}:2: key {id_of(digest(stranger.encode()))} (next to its name)",
    ]
    assert result.stderr == f"{note}\n"
    assert not (tmp_path / "keys.db").exists()


@pytest.mark.parametrize("error", [SettingsError, StoreUnavailableError])
def test_a_database_that_fails_is_said_once_and_not_asked_again(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: list[str]
) -> None:
    asked: list[object] = []

    def fail(settings: object) -> None:
        asked.append(settings)
        raise error("the database has gone")

    monkeypatch.setattr("app.auth.cli.commands.open_service", fail)
    files = [tmp_path / name for name in ("orders", "more orders")]
    for file in files:
        file.write_text(f"{secrets[0]}\n{new_secret()}\n")
    result = run("keys", "scan", *map(str, files))
    assert result.stdout.count("(known)") == 2
    assert result.stderr == "Not every key is known here: the database has gone\n"
    assert len(asked) == 1


def test_a_database_is_not_asked_for_nothing(tmp_path: Path, secrets: list[str]) -> None:
    file = tmp_path / "file"
    for text in ("API_KEYS=", secrets[0]):
        file.write_text(text)
        assert run("keys", "scan", f"{file}").stderr == ""


def test_the_database_itself_is_clean(sqlite_databases: SQLiteDatabases, tmp_path: Path) -> None:
    with sqlite_databases.fresh(tmp_path) as url:
        keys("create", "first")
        result = run("keys", "scan", f"{url.database}")
        assert (result.exit_code, result.output) == (0, "")
