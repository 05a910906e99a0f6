"""The `keys` command."""

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from app.cli import main
from app.constants import MISSING_KEY_STATUS
from app.keys import is_canonical, key_of
from tests.servers import status_of


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])


def shown(result: Result) -> str:
    """The key in the output of a command for people."""
    return result.stdout.partition("key: ")[2].strip()


def test_list_shows_ids(secrets: list[str]) -> None:
    ids = [key_of(secret).id for secret in secrets]
    assert keys("list").stdout.split() == ids
    assert json.loads(keys("list", "--json").stdout) == [{"id": id} for id in ids]


async def test_a_created_key_works_at_once(service: FastAPI, secrets: list[str]) -> None:
    created = json.loads(keys("create", "--json").stdout)
    assert list(created) == ["id", "key"]
    assert is_canonical(created["key"])
    assert created["id"] in keys("list").stdout

    for secret in (created["key"], shown(keys("create")), *secrets):
        assert await status_of(service, secret.encode()) == 200


async def test_a_rotated_key_is_replaced(service: FastAPI, secrets: list[str]) -> None:
    new = json.loads(keys("rotate", key_of(secrets[0]).id, "--json").stdout)["key"]
    newer = shown(keys("rotate", key_of(new).id))

    for secret in (secrets[0], new):
        assert await status_of(service, secret.encode()) == MISSING_KEY_STATUS
    for secret in (newer, secrets[1]):
        assert await status_of(service, secret.encode()) == 200


async def test_a_revoked_key_ends(service: FastAPI, secrets: list[str]) -> None:
    first, second = (key_of(secret).id for secret in secrets)
    assert keys("revoke", first).stdout == f"Revoked {first}.\n"
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS
    assert await status_of(service, secrets[1].encode()) == 200

    last = keys("revoke", second, "--json")
    assert json.loads(last.stdout) == {"id": second}
    assert "nobody gets in" in last.stderr
    assert await status_of(service, secrets[1].encode()) == MISSING_KEY_STATUS
    assert keys("list").stdout == "\n"


async def test_a_key_that_was_listed_twice_ends_too(
    service: FastAPI, env_file: Path, secrets: list[str]
) -> None:
    env_file.write_text(f"API_KEYS={secrets[0]},{secrets[1]},{secrets[0]}")
    keys("revoke", key_of(secrets[0]).id)
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS
    assert await status_of(service, secrets[1].encode()) == 200


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_an_unknown_id_changes_nothing(env_file: Path, command: str) -> None:
    before = env_file.read_bytes()
    result = keys(command, "0123456789ab")
    assert result.exit_code == 1
    assert result.stderr == "No key has the id 0123456789ab; `keys list` shows the ids\n"
    assert env_file.read_bytes() == before


def test_the_first_key_needs_no_file(env_file: Path) -> None:
    env_file.unlink()
    assert "API_KEYS is not set" in keys("list").stderr
    assert keys("create").exit_code == 0
    assert len(keys("list").stdout.split()) == 1


def test_a_full_disk_loses_nothing(
    env_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = env_file.read_bytes()
    monkeypatch.setattr("app.env_file.os.fsync", full)
    result = keys("create")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "key:" not in result.stdout
    assert env_file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [env_file]


@pytest.mark.parametrize("command", [["list"], ["create"]])
def test_a_file_in_another_encoding_is_left_alone(env_file: Path, command: list[str]) -> None:
    env_file.write_bytes(b"NAME=J\xfcrgen\n")
    result = keys(*command)
    assert result.exit_code == 1
    assert result.stderr == ".env is not UTF-8 text; save it as UTF-8\n"
    assert env_file.read_bytes() == b"NAME=J\xfcrgen\n"
