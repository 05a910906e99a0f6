"""Keys in `.env`: a running service follows them, and no edit loses anything."""

import asyncio
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fastapi import FastAPI

from app import env_file as module
from app.constants import MISSING_KEY_STATUS
from app.env_file import edit_secrets
from app.keys import new_secret
from app.settings import Settings, SettingsError, load_settings
from tests.servers import make_service, status_of
from tests.test_settings import ROOT


async def test_a_running_service_follows_the_file(
    service: FastAPI, env_file: Path, secrets: list[str]
) -> None:
    added = new_secret()
    assert await status_of(service, added.encode()) == MISSING_KEY_STATUS

    env_file.write_text(f"API_KEYS={added}")

    assert await status_of(service, added.encode()) == 200
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS


async def test_a_change_during_the_start_is_not_missed(env_file: Path, secrets: list[str]) -> None:
    settings = load_settings()
    env_file.write_text(f"API_KEYS={secrets[1]}")
    service = make_service(settings)
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS


async def test_keys_given_by_hand_stay_whatever_the_file_says(
    env_file: Path, secrets: list[str]
) -> None:
    given = new_secret()
    service = make_service(Settings(api_keys=given))
    env_file.write_text(f"API_KEYS={secrets[1]}")
    assert await status_of(service, given.encode()) == 200
    assert await status_of(service, secrets[1].encode()) == MISSING_KEY_STATUS


async def test_a_change_is_seen_within_a_second_without_a_look_at_every_request(
    service: FastAPI, env_file: Path, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real MAX_AGE
    os.chdir(env_file.parent)
    now = 1000.0
    monkeypatch.setattr("app.env_file.time.monotonic", lambda: now)
    assert await status_of(service, secrets[0].encode()) == 200

    env_file.write_text(f"API_KEYS={secrets[1]}")
    assert await status_of(service, secrets[0].encode()) == 200
    now += 0.9
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS


@pytest.mark.parametrize("broken", ["API_KEYS=oops", "", None, b"\xff"])
async def test_a_broken_edit_keeps_the_last_good_keys_and_says_so(
    service: FastAPI,
    env_file: Path,
    secrets: list[str],
    broken: str | bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = env_file.read_bytes()
    if broken is None:
        env_file.unlink()
    else:
        env_file.write_bytes(broken if isinstance(broken, bytes) else broken.encode())

    for secret in secrets:
        assert await status_of(service, secret.encode()) == 200
    assert [r.levelno for r in caplog.records if "last good keys" in r.message] == [logging.ERROR]

    env_file.write_bytes(good)
    assert await status_of(service, secrets[0].encode()) == 200


async def test_changes_are_followed_while_nobody_calls(
    service: FastAPI, env_file: Path, secrets: list[str]
) -> None:
    async with service.router.lifespan_context(service):
        env_file.write_text(f"API_KEYS={secrets[1]}")
        for _ in range(10):
            await asyncio.sleep(0)  # the watcher's turn
        env_file.write_text("API_KEYS=oops")

        assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS
        assert await status_of(service, secrets[1].encode()) == 200


async def test_an_emptied_list_lets_nobody_in(
    service: FastAPI, env_file: Path, secrets: list[str]
) -> None:
    env_file.write_text("API_KEYS=\n")
    assert await status_of(service, secrets[0].encode()) == MISSING_KEY_STATUS


NEW = new_secret()
A, B = new_secret(), new_secret()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"API_KEYS={NEW}\n"),
        ("LOG_LEVEL=INFO", f"LOG_LEVEL=INFO\nAPI_KEYS={NEW}\n"),
        ("# mine\nLOG_LEVEL=INFO\n", f"# mine\nLOG_LEVEL=INFO\nAPI_KEYS={NEW}\n"),
        (f"API_KEYS={A}", f"API_KEYS={A},{NEW}"),
        (f"\n\nAPI_KEYS={A},{B}\n\nX=1\n", f"\n\nAPI_KEYS={A},{B},{NEW}\n\nX=1\n"),
        (f'export API_KEYS = "{A}, {B}" # two\n', f'export API_KEYS = "{A},{B},{NEW}" # two\n'),
        (f"API_KEYS='{A}'\r\nX=1\r\n", f"API_KEYS='{A},{NEW}'\r\nX=1\r\n"),
        (f"api_keys={A}\n", f"api_keys={A},{NEW}\n"),
        (f"API_KEYS=old\nAPI_KEYS={A}\n", f"API_KEYS=old\nAPI_KEYS={A},{NEW}\n"),
        ("API_KEYS=\n", f"API_KEYS={NEW}\n"),
        ('API_KEYS="" # none\n', f"API_KEYS={NEW} # none\n"),
        (f"API_KEYS={A}\nnot a statement = '\n", f"API_KEYS={A},{NEW}\nnot a statement = '\n"),
        (
            f'X="\nAPI_KEYS=not me\n"\nAPI_KEYS={A}\n',
            f'X="\nAPI_KEYS=not me\n"\nAPI_KEYS={A},{NEW}\n',
        ),
    ],
    ids=range(13),
)
def test_an_edit_changes_the_keys_and_nothing_else(env_file: Path, before: str, after: str) -> None:
    env_file.write_bytes(before.encode())
    with edit_secrets() as secrets:
        secrets.append(NEW)
    assert env_file.read_bytes().decode() == after
    with edit_secrets() as secrets:
        assert secrets[-1] == NEW
    assert len(load_settings().api_keys) == len(secrets)


def test_an_edit_makes_a_missing_file_for_its_owner_alone(env_file: Path) -> None:
    env_file.unlink()
    with edit_secrets() as secrets:
        secrets.append(NEW)
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_an_edit_keeps_mode_and_owner(env_file: Path, mode: int) -> None:
    env_file.chmod(mode)
    owner = env_file.stat().st_uid
    with edit_secrets() as secrets:
        secrets.append(NEW)
    assert stat.S_IMODE(env_file.stat().st_mode) == mode
    assert env_file.stat().st_uid == owner


def test_an_edit_follows_a_link(env_file: Path, tmp_path: Path) -> None:
    target = env_file.rename(tmp_path / "elsewhere")
    env_file.symlink_to(target)
    with edit_secrets() as secrets:
        secrets.append(NEW)
    assert env_file.is_symlink()
    assert NEW in target.read_text()


def test_an_edit_that_fails_changes_nothing(env_file: Path, tmp_path: Path) -> None:
    before = env_file.read_bytes()
    with pytest.raises(IndexError), edit_secrets() as secrets:
        del secrets[7]
    assert env_file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [env_file]


def test_a_list_that_is_broken_is_not_edited(env_file: Path) -> None:
    env_file.write_text("API_KEYS=oops")
    with pytest.raises(SettingsError, match=r"entry 1 of 1 .* correct it in \.env"), edit_secrets():
        raise AssertionError("nothing to edit")
    assert env_file.read_text() == "API_KEYS=oops"


def test_keys_of_the_environment_are_changed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", NEW)
    with pytest.raises(SettingsError, match="set in the environment"), edit_secrets():
        raise AssertionError("nothing to edit")


def test_what_a_crash_left_behind_is_named(
    env_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    left_behind = tmp_path / ".env.lock"
    left_behind.touch()
    message = r"\.env\.lock exists: .* delete that file"
    with pytest.raises(SettingsError, match=message), edit_secrets():
        raise AssertionError("somebody else's turn")
    assert left_behind.exists()


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENV_FILE", tmp_path / "missing" / ".env")
    with pytest.raises(SettingsError, match="cannot be written"), edit_secrets():
        raise AssertionError("nowhere to write")


def test_edits_at_the_same_time_lose_nothing(env_file: Path, secrets: list[str]) -> None:
    added = [new_secret() for _ in range(20)]

    def add(secret: str) -> None:
        with edit_secrets() as editable:
            editable.append(secret)

    threads = [threading.Thread(target=add, args=(secret,)) for secret in added]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with edit_secrets() as editable:
        assert sorted(editable) == sorted([*secrets, *added])


def test_commands_at_the_same_time_lose_nothing(env_file: Path, secrets: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from app.cli import main; main()", "keys", "create"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in "123"]
    assert [process.wait(timeout=30) for process in running] == [0, 0, 0]
    assert len(load_settings().api_keys) == len(secrets) + 3
