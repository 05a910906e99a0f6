"""A running service knows which keys `.env` names, and trusts nothing else."""

import asyncio
import os
import stat
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest

from app.auth import GuardedAPI, GuardedRouter, require
from app.auth.errors import SettingsError
from app.auth.key import digest, new_secret, with_prefix
from app.auth.store.env_file import edit_keys
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from tests.callers import Clock, make_service, start_up, status_of, with_endpoints

A, B, NEW = new_secret(), new_secret(), new_secret()


@pytest.fixture
def secrets() -> list[str]:
    return [A, B]


async def let_in(service: GuardedAPI) -> list[str]:
    """Which of the keys get in; the others are refused like any stranger."""
    answers = {secret: await status_of(service, secret.encode()) for secret in (A, B, NEW)}
    assert set(answers.values()) <= {200, MISSING_KEY_STATUS}
    return [secret for secret, status in answers.items() if status == 200]


CONTENTS = [  # and who gets in then, after A and B did
    (f"API_KEYS={NEW}", [NEW]),
    (f"export API_KEYS='{B}, {with_prefix(NEW, 'acme')}' # two\n", [B, NEW]),
    ("API_KEYS=\n", []),
    # Of a broken list only those keys count that were in force before.
    (f"API_KEYS={A},{B},{NEW},oops", [A, B]),
    (f'API_KEYS="{B},{NEW}\n', [B]),
    (f"API_KEYS={B},oops # without {A}\n", [B]),
    (f"API_KEYS={A}\napi_keys={B},oops\n", [B]),
    ("", []),
]


@pytest.mark.parametrize(("content", "known"), CONTENTS, ids=range(len(CONTENTS)))
async def test_a_running_service_follows_the_file(
    service: GuardedAPI, env_file: Path, content: str, known: list[str]
) -> None:
    assert await let_in(service) == [A, B]
    env_file.write_text(content)
    assert await let_in(service) == known
    before = env_file.stat()
    env_file.write_text(content.replace(B, NEW))  # of the same size, and as old
    os.utime(env_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if known == [A, B]:
        assert await let_in(service) == [A]
    env_file.write_text(f"API_KEYS={A},{NEW}")
    assert await let_in(service) == [A, NEW]


async def test_a_revocation_counts_though_a_broken_edit_follows_at_once(
    service: GuardedAPI, env_file: Path
) -> None:
    async with service.router.lifespan_context(service):
        edit_keys(lambda listed: [key for key in listed if key != A])
        for _ in range(10):
            await asyncio.sleep(0)  # nobody calls, and it looks all the same
        env_file.write_text(f"API_KEYS={A},{B},oops")
        assert await let_in(service) == [B]


async def test_a_file_that_cannot_be_read_lets_nobody_in(
    service: GuardedAPI, env_file: Path
) -> None:
    assert await let_in(service) == [A, B]
    env_file.rename("elsewhere")
    assert await status_of(service, A.encode()) == 503
    assert not await service.keys.is_reachable()
    Path("elsewhere").rename(env_file)
    with patch.object(Path, "read_bytes", side_effect=PermissionError(13, "Permission denied")):
        assert await status_of(service, A.encode()) == 503
    assert await let_in(service) == [A, B]


async def test_what_was_read_is_trusted_for_the_bound_and_no_longer(
    clock: Clock, service: GuardedAPI, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 0.25)
    assert await status_of(service, A.encode()) == 200
    with (
        patch.object(Path, "read_bytes", side_effect=AssertionError("the file was read")),
        patch("app.auth.access.rule.digest", side_effect=digest) as digests,
    ):
        assert await status_of(service, A.encode()) == 200
    assert digests.call_count == 1
    env_file.write_text(f"API_KEYS={B},{NEW}")
    clock.pass_time(0.25)
    assert await status_of(service, A.encode()) == MISSING_KEY_STATUS
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 3600.0)
    env_file.write_text(f"API_KEYS={A},{B}")
    assert await status_of(service, A.encode()) == 200  # a new key gets in at once


async def test_a_scope_restricts_nobody_so_asking_for_one_stops_the_start(
    service: GuardedAPI,
) -> None:
    service.include_router(with_endpoints(GuardedRouter(dependencies=[require("a:b")])))
    assert "Scopes that restrict nobody: a:b" in (await start_up(service))["message"]


async def test_keys_of_the_environment_are_not_followed_and_the_start_says_so(
    env_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("api_keys", NEW)
    service = make_service(load_settings())
    env_file.unlink()
    assert await let_in(service) == [NEW]
    assert "The keys are not followed" in caplog.text
    with pytest.raises(SettingsError, match="API_KEYS is set in the environment"):
        edit_keys(lambda listed: listed)


# How the list in `.env` is changed.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LOG_LEVEL=INFO", f"LOG_LEVEL=INFO\nAPI_KEYS={NEW}\n"),
        (f"\n\nAPI_KEYS={A},{B}\n\nX=1\n", f"\n\nAPI_KEYS={A},{B},{NEW}\n\nX=1\n"),
        (f'export API_KEYS = "{A}, {B}" # two\n', f'export API_KEYS = "{A},{B},{NEW}" # two\n'),
        (f"API_KEYS='{A}'\r\nX=1\r\n", f"API_KEYS='{A},{NEW}'\r\nX=1\r\n"),
        (f"api_keys={A}\nAPI_KEYS={B}\napi_keys={A}\n", None),  # which one is meant?
        ("API_KEYS= # none\n", f"API_KEYS={NEW} # none\n"),
        (f'API_KEYS="{A},{B}\n', None),
        (f"X={A}\n" + "API_KEYS=${X}\n", None),
    ],
    ids=range(8),
)
def test_an_edit_changes_the_keys_and_nothing_else(
    env_file: Path, tmp_path: Path, before: str, after: str | None
) -> None:
    env_file.write_bytes(before.encode())
    env_file.chmod(0o640)
    with nullcontext() if after else pytest.raises(SettingsError, match="cannot be changed"):
        edit_keys(lambda listed: [*listed, NEW])
    assert env_file.read_bytes().decode() == (before if after is None else after)
    assert os.name == "nt" or stat.S_IMODE(env_file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [env_file]


def test_of_two_editors_the_second_waits_and_gives_up(
    env_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.store.env_file.TIMEOUT", 0.05)
    (tmp_path / ".env.lock").touch()
    before = env_file.read_bytes()
    with pytest.raises(SettingsError, match=r"\.env\.lock exists: .* delete that file"):
        edit_keys(lambda listed: [*listed, NEW])
    assert env_file.read_bytes() == before
