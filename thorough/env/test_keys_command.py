"""The `keys` command."""

import io
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.auth import GuardedAPI
from app.auth.cli import commands
from app.auth.key import digests, id_of, is_canonical, new_secret, parse_secrets
from app.auth.store import env_file as module
from app.cli import main
from app.constants import MISSING_KEY_STATUS
from tests.callers import status_of


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])


def shown(result: Result) -> str:
    """The key in the output of a command for people."""
    return result.stdout.partition("key: ")[2].strip()


def test_list_shows_ids_and_changes_nothing(env_file: Path, ids: list[str]) -> None:
    before = written(env_file)
    assert keys("list").stdout.split() == ids
    assert json.loads(keys("list", "--json").stdout) == [{"id": id} for id in ids]
    assert written(env_file) == before


def written(file: Path) -> tuple[int, int, bytes]:
    """Which file it is, when it was written, and what it holds; not when it was read."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, file.read_bytes()


async def test_a_created_key_works_at_once(service: GuardedAPI, secrets: list[str]) -> None:
    created = json.loads(keys("create", "--json").stdout)
    assert list(created) == ["id", "key"]
    assert is_canonical(created["key"])
    assert created["id"] in keys("list").stdout

    for secret in (created["key"], shown(keys("create")), *secrets):
        assert await status_of(service, secret.encode()) == 200


async def test_a_key_with_a_prefix_works_in_both_spellings(
    service: GuardedAPI, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_PREFIX", "acme")
    created = json.loads(keys("create", "--json").stdout)
    assert created["key"].startswith("acme_")
    assert created["key"] in env_file.read_text()
    for secret in (created["key"], *parse_secrets(created["key"])):
        assert await status_of(service, secret.encode()) == 200

    keys("revoke", created["id"])
    assert await status_of(service, created["key"].encode()) == MISSING_KEY_STATUS


async def test_a_rotated_key_is_replaced(
    service: GuardedAPI, secrets: list[str], ids: list[str]
) -> None:
    rotated = json.loads(keys("rotate", ids[0], "--json").stdout)
    newer = shown(keys("rotate", rotated["id"]))

    for secret in (secrets[0], rotated["key"]):
        assert await status_of(service, secret.encode()) == MISSING_KEY_STATUS
    for secret in (newer, secrets[1]):
        assert await status_of(service, secret.encode()) == 200


async def test_a_revoked_key_ends(service: GuardedAPI, secrets: list[str], ids: list[str]) -> None:
    first, second = ids
    assert keys("revoke", first).stdout == f"Revoked {first}.\n"
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS
    assert await status_of(service, secrets[1].encode()) == 200

    last = keys("revoke", second, "--json")
    assert json.loads(last.stdout) == {"id": second}
    assert "nobody gets in" in last.stderr
    assert await status_of(service, secrets[1].encode()) == MISSING_KEY_STATUS
    assert "API_KEYS is not set" in keys("list").stderr


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_what_ends_a_key_waits_until_every_server_has_looked(
    env_file: Path,
    secrets: list[str],
    ids: list[str],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        assert secrets[0] not in env_file.read_text()
        waits.append(seconds)

    monkeypatch.setattr("app.auth.store.env_file.time.sleep", wait)
    monkeypatch.setattr(module, "MAX_AGE", 0.25)
    assert "Waiting" in keys(command, ids[0]).stderr
    assert len(waits) == 1
    assert 0.25 < waits[0] < 0.45


async def test_a_key_that_was_listed_twice_ends_too(
    service: GuardedAPI, env_file: Path, secrets: list[str], ids: list[str]
) -> None:
    env_file.write_text(f"API_KEYS={secrets[0]},{secrets[1]},{secrets[0]}")
    keys("revoke", ids[0])
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS
    assert await status_of(service, secrets[1].encode()) == 200


async def test_a_key_ends_though_its_list_is_written_with_an_escape(
    service: GuardedAPI, env_file: Path, secrets: list[str], ids: list[str]
) -> None:
    env_file.write_text(f'API_KEYS="{secrets[0]}\\n"')
    assert await status_of(service, secrets[0].encode()) == 200
    assert keys("revoke", ids[0]).exit_code == 0
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_an_unknown_id_changes_nothing(env_file: Path, command: str) -> None:
    before = env_file.read_bytes()
    result = keys(command, "0123456789ab")
    assert result.exit_code == 1
    assert result.stderr == "No key has the id 0123456789ab; `keys list` shows the ids\n"
    assert env_file.read_bytes() == before


@pytest.mark.parametrize("command", ["create", "rotate ID", "revoke ID"])
@pytest.mark.parametrize("name", ["API_KEYS", "api_keys"])
def test_keys_of_the_environment_are_listed_and_not_changed(
    env_file: Path, command: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = env_file.read_bytes()
    secret = new_secret()
    [id] = map(id_of, digests([secret]))
    monkeypatch.setenv(name, secret)
    assert keys("list").stdout == f"{id}\n"
    result = keys(*command.replace("ID", id).split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert "API_KEYS is set in the environment" in result.stderr
    assert env_file.read_bytes() == before


def test_the_first_key_needs_no_file(env_file: Path) -> None:
    env_file.unlink()
    assert "API_KEYS is not set" in keys("list").stderr
    assert not env_file.exists()
    assert f"{env_file} is new." in keys("create").stderr
    assert len(keys("list").stdout.split()) == 1
    assert "is new" not in keys("create").stderr


def test_a_full_disk_loses_nothing(
    env_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = env_file.read_bytes()
    monkeypatch.setattr("app.auth.store.env_file.os.fsync", full)
    result = keys("create")
    assert result.exit_code == 1
    assert result.stderr == f"{env_file} stays as it was: No space left on device\n"
    assert result.stdout == ""
    assert env_file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [env_file]


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("output", [None, FullDisk()], ids=["closed", "full"])
@pytest.mark.parametrize("command", ["create", "create --json", "rotate ID", "list"])
def test_without_an_output_nothing_is_changed(
    env_file: Path,
    tmp_path: Path,
    ids: list[str],
    command: str,
    output: FullDisk | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = env_file.read_bytes()
    monkeypatch.setattr(sys, "stdout", output)
    arguments = ["keys", *command.replace("ID", ids[0]).split()]
    assert main(arguments, standalone_mode=False) == 1
    assert sys.stdout is None  # Python has nothing to write at its end
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("No space left on device" if output else "closed") in said
    assert env_file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [env_file]


@pytest.mark.parametrize("command", [["list"], ["create"], ["revoke", "0123456789ab"]])
def test_a_file_in_another_encoding_is_left_alone(env_file: Path, command: list[str]) -> None:
    env_file.write_bytes(b"NAME=J\xfcrgen\n")
    result = keys(*command)
    assert result.exit_code == 1
    assert result.stderr == f"{env_file} is not UTF-8 text; save it as UTF-8\n"
    assert env_file.read_bytes() == b"NAME=J\xfcrgen\n"


def test_a_bad_setting_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_PREFIX", "No prefix")
    result = keys("create")
    assert result.exit_code == 1
    assert result.stderr.startswith("KEY_PREFIX: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("errors", [None, FullDisk()], ids=["closed", "full"])
def test_what_cannot_be_said_on_standard_error_stops_nothing(
    errors: FullDisk | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", errors)
    commands._note("nobody hears this")
    assert sys.stderr is None
