"""A running service knows which keys `.env` names, and trusts nothing else."""

import asyncio
import logging
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from app.auth import GuardedAPI, GuardedRouter, require
from app.auth.key import new_secret
from app.auth.store import env_file as module
from app.auth.store.env_file import edit_keys, secrets_in
from app.constants import MISSING_KEY_STATUS
from app.settings import Settings, load_settings
from tests.callers import start_up, status_of
from tests.thorough.services import make_service

A, B, NEW = new_secret(), new_secret(), new_secret()


@pytest.fixture
def secrets() -> list[str]:
    return [A, B]


async def let_in(service: GuardedAPI) -> list[str]:
    """Which of the keys get in; the others are refused like any stranger."""
    answers = {secret: await status_of(service, secret.encode()) for secret in (A, B, NEW)}
    assert set(answers.values()) <= {200, MISSING_KEY_STATUS}
    return [secret for secret, status in answers.items() if status == 200]


# What is in the file.


async def test_a_running_service_follows_the_file(service: GuardedAPI, env_file: Path) -> None:
    assert await let_in(service) == [A, B]
    env_file.write_text(f"API_KEYS={NEW}")
    assert await let_in(service) == [NEW]
    env_file.write_text("API_KEYS=\n")
    assert await let_in(service) == []


async def test_no_endpoint_asks_for_a_scope_since_every_key_has_all(service: GuardedAPI) -> None:
    assert (await start_up(service))["type"] == "lifespan.startup.complete"
    service.include_router(GuardedRouter(prefix="/reports", dependencies=[require("reports:read")]))
    message = (await start_up(service))["message"]
    assert message.startswith("Scopes that restrict nobody: reports:read for / (GuardedRouter).")


async def test_an_address_that_guesses_is_slowed_but_for_valid_keys(
    service: GuardedAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.access.clients.BURST", 2)
    statuses = [await status_of(service, new_secret().encode()) for _ in range(4)]
    assert statuses == [MISSING_KEY_STATUS] * 3 + [429]
    assert await status_of(service, A.encode()) == 200


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of secrets, with the keys in `API_KEYS`."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "API_KEYS").write_text(f"{A},{B}\n")
    monkeypatch.setenv("SECRETS_DIR", f"{folder}")
    return folder


async def test_a_running_service_follows_a_file_of_secrets(mounted: Path, env_file: Path) -> None:
    env_file.write_text(f"API_KEYS={NEW}")  # does not count
    service = make_service(load_settings())
    assert await let_in(service) == [A, B]
    (mounted / "API_KEYS").write_text(f"{NEW}\n")
    assert await let_in(service) == [NEW]
    (mounted / "API_KEYS").write_text(f"{NEW}\n{A}\n")  # is no list
    assert await let_in(service) == []
    (mounted / "API_KEYS").write_text(f"{NEW},oops,{A}\n")
    assert await let_in(service) == [NEW]
    (mounted / "API_KEYS").unlink()
    assert await status_of(service, NEW.encode()) == 503
    mounted.rmdir()
    assert await status_of(service, NEW.encode()) == 503
    mounted.mkdir()
    (mounted / "api_keys").write_text(f"{B}")
    assert await let_in(service) == [B]


@pytest.mark.parametrize("written", [NEW, f"{A},oops"])
async def test_a_folder_that_goes_while_its_file_is_read_is_missed_only_then(
    mounted: Path, written: str
) -> None:
    service = make_service(load_settings())
    assert await let_in(service) == [A, B]
    (mounted / "API_KEYS").write_text(written)

    def go(text: str, file: Path) -> list[str]:
        shutil.rmtree(mounted)
        return secrets_in(text, file)

    with patch("app.auth.store.env_file.secrets_in", go):
        assert await status_of(service, written.partition(",")[0].encode()) == 200
    assert await status_of(service, A.encode()) == 503


async def test_a_change_during_the_start_is_not_missed(env_file: Path) -> None:
    settings = load_settings()
    env_file.write_text(f"API_KEYS={B}")
    assert await let_in(make_service(settings)) == [B]


async def test_other_content_is_noticed_whatever_the_file_s_time_and_size(
    service: GuardedAPI, env_file: Path
) -> None:
    assert await let_in(service) == [A, B]
    before = env_file.stat()
    env_file.write_text(env_file.read_text().replace(A, NEW))
    os.utime(env_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert env_file.stat().st_size == before.st_size
    assert await let_in(service) == [B, NEW]


@pytest.mark.parametrize(
    ("broken", "known"),
    [
        (f"API_KEYS={B},oops", [B]),
        (f"API_KEYS={A},{B},{NEW},oops", [A, B]),
        (f"API_KEYS={A},{B},", [A, B]),
        (f'API_KEYS="{A},{B}\n', [A, B]),
        (f"export API_KEYS='{A}, {B}, oops' # both\n", [A, B]),
        (f"API_KEYS={B},oops # without {A}\n", [B]),
        (f"# API_KEYS={A}\nOTHER={A}\nAPI_KEYS={B},oops\n", [B]),
        (f"API_KEYS={A}\napi_keys={B},oops\n", [B]),
        (f"# J\xfcrgen's\nAPI_KEYS={A},{B}\n", [A, B]),
        ("API_KEYS\n", []),
        ("", []),
    ],
    ids=range(11),
)
async def test_of_a_broken_list_only_keys_count_that_were_in_force_before(
    service: GuardedAPI,
    env_file: Path,
    broken: str,
    known: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await let_in(service)
    env_file.write_text(broken, "latin-1")
    assert await let_in(service) == known
    assert [record.levelno for record in caplog.records if "is broken" in record.message] == [
        logging.ERROR
    ]
    env_file.write_text(f"API_KEYS={A},{NEW}")
    assert await let_in(service) == [A, NEW]


async def test_a_broken_list_is_held_against_the_last_good_one(
    service: GuardedAPI, env_file: Path
) -> None:
    assert await let_in(service) == [A, B]
    for known in (B, A):
        env_file.write_text(f"API_KEYS={known},{NEW},oops")
        assert await let_in(service) == [known]


async def test_a_revocation_counts_though_a_broken_edit_follows_at_once(
    service: GuardedAPI, env_file: Path
) -> None:
    assert await let_in(service) == [A, B]
    edit_keys(lambda listed: [key for key in listed if key != A])  # no server looks before
    env_file.write_text(f"{env_file.read_text().strip()},oops")
    assert await let_in(service) == [B]


async def test_a_file_that_cannot_be_read_lets_nobody_in(
    service: GuardedAPI, env_file: Path
) -> None:
    env_file.rename("elsewhere")
    assert await status_of(service, A.encode()) == 503
    assert not await service.keys.is_reachable()

    Path("elsewhere").rename(env_file)
    with patch.object(Path, "read_bytes", side_effect=PermissionError(13, "Permission denied")):
        assert await status_of(service, A.encode()) == 503

    assert await let_in(service) == [A, B]
    assert await service.keys.is_reachable()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
async def test_a_pipe_in_the_place_of_the_file_stops_nothing(
    service: GuardedAPI, env_file: Path
) -> None:
    env_file.unlink()
    os.mkfifo(env_file)  # to read it would be to wait for a writer
    assert await status_of(service, A.encode()) == 503


# When it looks.


async def test_what_was_read_is_trusted_for_the_bound_and_no_longer(
    service: GuardedAPI, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("app.auth.store.env_store.time.monotonic", lambda: now)
    monkeypatch.setattr(module, "MAX_AGE", 0.25)
    assert await status_of(service, A.encode()) == 200

    env_file.write_text(f"API_KEYS={B}")
    now += 0.24
    assert await status_of(service, A.encode()) == 200
    now += 0.01
    assert await status_of(service, A.encode()) == MISSING_KEY_STATUS


async def test_what_was_read_counts_from_the_moment_before(
    service: GuardedAPI, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced while a slow disk reads the old one."""
    now = 1000.0
    monkeypatch.setattr("app.auth.store.env_store.time.monotonic", lambda: now)
    monkeypatch.setattr(module, "MAX_AGE", 0.25)
    read_bytes = Path.read_bytes

    def read_slowly(path: Path) -> bytes:
        nonlocal now
        content = read_bytes(path)
        env_file.write_text(f"API_KEYS={B}")
        now += 0.25
        return content

    with patch.object(Path, "read_bytes", autospec=True, side_effect=read_slowly):
        await service.keys.is_reachable()
    assert await status_of(service, A.encode()) == MISSING_KEY_STATUS


async def test_a_new_key_is_accepted_at_once(
    service: GuardedAPI, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_AGE", 3600.0)
    assert await status_of(service, A.encode()) == 200
    env_file.write_text(f"API_KEYS={A},{NEW}")
    assert await status_of(service, NEW.encode()) == 200


async def test_changes_are_followed_while_nobody_calls(
    service: GuardedAPI, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service.router.lifespan_context(service):
        env_file.write_text(f"API_KEYS={B},{NEW}")
        for _ in range(10):
            await asyncio.sleep(0)  # the watcher's turn
        env_file.write_text(f"API_KEYS={A},{NEW},oops")
        assert await let_in(service) == [NEW]


async def test_the_watcher_survives_whatever_happens_and_says_so(
    service: GuardedAPI, env_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def pass_time() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async with service.router.lifespan_context(service):
        with patch("app.auth.store.env_store.sha256", side_effect=RuntimeError("no such luck")):
            await pass_time()
        env_file.rename("elsewhere")
        await pass_time()
        Path("elsewhere").rename(env_file)
        env_file.write_text(f"API_KEYS={NEW}")
        caplog.set_level(logging.INFO, "app")
        await pass_time()

    said = [(record.levelname, record.message) for record in caplog.records]
    assert said == [
        ("ERROR", "Nobody gets in: no such luck."),
        ("ERROR", f"Nobody gets in: {env_file} is missing, or no file."),
        ("INFO", "API_KEYS changed: 1 in force."),
    ]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, False]


# What is not followed.


@pytest.mark.parametrize("name", ["API_KEYS", "api_keys"])
async def test_keys_of_the_environment_stay_and_the_start_says_so(
    env_file: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, NEW)
    service = make_service(load_settings())
    env_file.unlink()
    assert await let_in(service) == [NEW]
    assert await service.keys.is_reachable()
    assert "The keys are not followed" in caplog.text


async def test_keys_given_by_hand_stay(env_file: Path) -> None:
    assert await let_in(make_service(Settings(api_keys=NEW))) == [NEW]
