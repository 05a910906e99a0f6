"""Changing the keys in `.env`: all is done or nothing, and the rest of the file stays."""

import os
import re
import stat
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.auth.config.settings import AuthSettings
from app.auth.config.sources import load
from app.auth.errors import SettingsError
from app.auth.key import digests, new_secret, with_prefix
from app.auth.store import env_file as module
from app.auth.store.env_file import edit_keys, secrets_in

NEW = new_secret()
A, B = new_secret(), new_secret()
PREFIXED = with_prefix(A, "acme")


def add(keys: list[str]) -> list[str]:
    return [*keys, NEW]


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
        (f"API_KEYS={A}  # one\n", f"API_KEYS={A},{NEW}  # one\n"),
        (f'API_KEYS="{A}\\n"\n', f'API_KEYS="{A},{NEW}"\n'),
        (f'API_KEYS="{A},\n{B}"\n', f'API_KEYS="{A},{B},{NEW}"\n'),
        (f"API_KEYS={PREFIXED}\n", f"API_KEYS={PREFIXED},{NEW}\n"),
        (f"api_keys={A}\n", f"api_keys={A},{NEW}\n"),
        (f"'API_KEYS'={A}\n", f"'API_KEYS'={A},{NEW}\n"),
        (f"API_KEYS=old\nAPI_KEYS={A}\n", f"API_KEYS=old\nAPI_KEYS={A},{NEW}\n"),
        ("API_KEYS=\n", f"API_KEYS={NEW}\n"),
        ("API_KEYS= # none\n", f"API_KEYS={NEW} # none\n"),
        ('API_KEYS="" # none\n', f'API_KEYS="{NEW}" # none\n'),
        ("API_KEYS\nX=1\n", f"API_KEYS={NEW}\nX=1\n"),
        ("export API_KEYS # none\n", f"export API_KEYS={NEW} # none\n"),
        (f"API_KEYS={A}\nnot a statement = '\n", f"API_KEYS={A},{NEW}\nnot a statement = '\n"),
        (f"API_KEYS_OLD={A}\n", f"API_KEYS_OLD={A}\nAPI_KEYS={NEW}\n"),
        (
            f'X="\nAPI_KEYS=not me\n"\nAPI_KEYS={A}\n',
            f'X="\nAPI_KEYS=not me\n"\nAPI_KEYS={A},{NEW}\n',
        ),
    ],
    ids=range(22),
)
def test_an_edit_changes_the_keys_and_nothing_else(env_file: Path, before: str, after: str) -> None:
    env_file.write_bytes(before.encode())
    keys = edit_keys(add)
    assert env_file.read_bytes().decode() == after
    assert keys[-1] == NEW
    assert load(AuthSettings).api_keys == tuple(digests(secrets_in(after, env_file)))


@pytest.mark.parametrize(
    "text",
    [
        f'API_KEYS="{A},{B}\n',
        f"X={A}\n" + "API_KEYS=${X}\n",
        f"api_keys={A}\nAPI_KEYS={B}\napi_keys={A}\n",
    ],
    ids=["a quote that is not closed", "another variable", "two spellings"],
)
def test_a_list_that_is_not_plain_is_left_alone(env_file: Path, text: str) -> None:
    env_file.write_text(text)
    with pytest.raises(SettingsError, match="API_KEYS cannot be changed as it is written"):
        edit_keys(add)
    assert env_file.read_text() == text


def test_an_edit_that_would_not_say_what_was_meant_is_refused(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = env_file.read_bytes()
    monkeypatch.setattr(module, "_LIST", re.compile("(API_KEYS)()()"))
    with pytest.raises(SettingsError, match="API_KEYS cannot be changed as it is written"):
        edit_keys(add)
    assert env_file.read_bytes() == before


PIECES = ["API_KEYS", "api_keys", "export ", "=", ",", A, B, "X", "${X}", "'", '"', "\\", "#", " "]


@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from([*PIECES, "\n", "\r\n", "\\n"]), max_size=12).map("".join),
)
def test_an_edit_says_what_was_meant_or_changes_nothing(env_file: Path, text: str) -> None:
    env_file.write_bytes(text.encode())
    try:
        before = load(AuthSettings).api_keys
        edit_keys(add)
    except SettingsError:
        assert env_file.read_bytes() == text.encode()
    else:
        assert load(AuthSettings).api_keys == (*before, *digests([NEW]))


def test_an_edit_makes_a_missing_file_for_its_owner_alone(env_file: Path) -> None:
    env_file.unlink()
    edit_keys(add)
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_an_edit_keeps_mode_and_owner(env_file: Path, mode: int) -> None:
    env_file.chmod(mode)
    owner = env_file.stat().st_uid
    edit_keys(add)
    assert stat.S_IMODE(env_file.stat().st_mode) == mode
    assert env_file.stat().st_uid == owner


def test_an_edit_follows_a_link(env_file: Path, tmp_path: Path) -> None:
    target = env_file.rename(tmp_path / "elsewhere")
    env_file.symlink_to(target)
    edit_keys(add)
    assert env_file.is_symlink()
    assert NEW in target.read_text()


def test_an_edit_survives_a_power_cut(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[bool, bool]] = []

    def sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        written.append((is_folder, NEW in env_file.read_text()))

    monkeypatch.setattr(os, "fsync", sync)
    edit_keys(add)
    assert written == [(False, False), (True, True)]  # the new file, and then its name


@pytest.mark.parametrize("error", [IndexError(), OSError(28, "No space left on device")])
def test_an_edit_that_fails_changes_nothing(
    env_file: Path, tmp_path: Path, error: Exception
) -> None:
    def fail() -> None:
        assert (tmp_path / ".env.lock").read_text() == f"{before.strip()},{NEW}\n"
        raise error

    before = env_file.read_text()
    with pytest.raises((IndexError, SettingsError), match=r"^$|No space left on device"):
        edit_keys(add, show=fail)
    assert env_file.read_text() == before
    assert list(tmp_path.iterdir()) == [env_file]


def test_a_list_that_is_broken_is_not_edited(env_file: Path) -> None:
    env_file.write_text("API_KEYS=oops")
    with pytest.raises(SettingsError, match=r"entry 1 of 1 .* correct it in .*\.env"):
        edit_keys(add)
    assert env_file.read_text() == "API_KEYS=oops"


def test_keys_in_a_folder_of_secrets_are_changed_there(
    env_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = env_file.read_bytes()
    monkeypatch.setenv("SECRETS_DIR", f"{tmp_path}")
    with pytest.raises(SettingsError, match=f"set in {tmp_path}, .* change it there"):
        edit_keys(add)
    assert env_file.read_bytes() == before


@pytest.mark.parametrize("name", ["API_KEYS", "api_keys"])
def test_keys_of_the_environment_are_changed_there(
    env_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = env_file.read_bytes()
    monkeypatch.setenv(name, NEW)
    with pytest.raises(SettingsError, match="set in the environment"):
        edit_keys(add)
    assert env_file.read_bytes() == before


def test_what_a_crash_left_behind_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    left_behind = tmp_path / ".env.lock"
    left_behind.touch()
    with pytest.raises(SettingsError, match=r"\.env\.lock exists: .* delete that file"):
        edit_keys(add)
    assert left_behind.exists()


def test_a_file_that_may_not_be_read(env_file: Path) -> None:
    error = PermissionError(13, "Permission denied")
    with patch.object(Path, "read_bytes", side_effect=error), pytest.raises(SettingsError) as told:
        edit_keys(add)
    assert (
        str(told.value)
        == f"{env_file} cannot be read (Permission denied); check its owner and mode"
    )


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / "missing" / ".env")
    with pytest.raises(SettingsError, match="cannot be written"):
        edit_keys(add)


def test_edits_at_the_same_time_lose_nothing(
    env_file: Path, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 60.0)
    added = [new_secret() for _ in range(20)]

    def add_one(secret: str) -> None:
        edit_keys(lambda keys: [*keys, secret])

    threads = [threading.Thread(target=add_one, args=(secret,)) for secret in added]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(secrets_in(env_file.read_text(), env_file)) == sorted([*secrets, *added])
