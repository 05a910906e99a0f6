"""The commands: what they change and say, and that a command that fails changes nothing."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from app.auth import GuardedAPI
from app.auth.key import is_canonical, new_secret, parse_secrets, with_prefix
from app.cli import main
from app.constants import MISSING_KEY_STATUS
from tests.callers import Clock, keys, run, status_of


@pytest.fixture(autouse=True)
def waits(
    clock: Clock, env_file: Path, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """For how long commands have waited; the first key had gone by then."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        assert secrets[0] not in env_file.read_text()
        waits.append(seconds)
        clock.pass_time(seconds)

    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 0.25)
    time = SimpleNamespace(sleep=sleep, monotonic=clock.monotonic)
    monkeypatch.setattr("app.auth.store.env_file.time", time)
    return waits


async def test_a_created_key_is_shown_this_once_and_works(
    service: GuardedAPI, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    created = keys("create")
    assert is_canonical(created["key"])
    shown = run("keys", "create").stdout.partition("key: ")[2].strip()
    monkeypatch.setenv("KEY_PREFIX", "acme")
    prefixed = keys("create")["key"]
    assert prefixed.startswith("acme_")
    for secret in (created["key"], shown, prefixed, *parse_secrets(prefixed), *secrets):
        assert await status_of(service, secret.encode()) == 200
    for options in ([], ["--json"]):
        listed = run("keys", "list", *options).output
        assert created["id"] in listed
        assert created["key"] not in listed


async def test_a_rotated_or_revoked_key_ends_and_the_command_waits_for_it(
    service: GuardedAPI, env_file: Path, secrets: list[str], ids: list[str], waits: list[float]
) -> None:
    env_file.write_text(f"API_KEYS={secrets[0]},{secrets[1]},{secrets[0]}")  # listed twice
    rotated = keys("rotate", ids[0])
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS
    for secret in (rotated["key"], secrets[1]):
        assert await status_of(service, secret.encode()) == 200
    assert run("keys", "revoke", rotated["id"]).stdout == f"Revoked {rotated['id']}.\n"
    assert await status_of(service, rotated["key"].encode()) == MISSING_KEY_STATUS
    assert "nobody gets in" in run("keys", "revoke", ids[1]).stderr
    assert [round(seconds, 1) for seconds in waits] == [0.3, 0.3, 0.3]


def test_scan_finds_keys_in_files(secrets: list[str], ids: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{new_secret()}\n{with_prefix(secrets[0], 'acme')}\n")
    result = run("keys", "scan", f"{log}")
    assert (result.exit_code, result.stdout) == (1, f"{log}:2: key {ids[0]} (known)\n")


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_key_that_cannot_be_shown_is_not_made(
    env_file: Path,
    tmp_path: Path,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = env_file.read_bytes()
    for output, why in ((None, "closed"), (FullDisk(), "No space left on device")):
        for command in (["create"], ["rotate", ids[0]], ["list"]):
            with monkeypatch.context() as terminal:
                terminal.setattr(sys, "stdout", output)
                assert main(["keys", *command], standalone_mode=False) == 1
            said = capsys.readouterr().err
            assert (why in said, said.count("\n")) == (True, 1)
            assert (env_file.read_bytes(), list(tmp_path.iterdir())) == (before, [env_file])


def test_what_cannot_be_done_is_explained_and_changes_nothing(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = env_file.read_bytes()
    for command in ("rotate", "revoke"):
        result = run("keys", command, "0123456789ab")
        told = "No key has the id 0123456789ab; `keys list` shows the ids\n"
        assert (result.exit_code, result.stderr) == (1, told)
    monkeypatch.setenv("API_KEYS", new_secret())
    result = run("keys", "create")
    assert "API_KEYS is set in the environment" in result.stderr
    assert env_file.read_bytes() == before
    monkeypatch.delenv("API_KEYS")
    env_file.unlink()
    assert "API_KEYS is not set" in run("keys", "list").stderr
    assert not env_file.exists()
    assert f"{env_file} is new." in run("keys", "create").stderr
    assert len(json.loads(run("keys", "list", "--json").stdout)) == 1


def test_serve_starts_your_application_and_outlasts_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Mock(side_effect=SystemExit(0))
    monkeypatch.setattr("uvicorn.Config", config)
    assert run("serve").exit_code == 0
    assert config.call_args.args == ("app.main:app",)
    assert config.call_args.kwargs["timeout_keep_alive"] > 120  # seconds, of Caddy
