"""Where settings come from. An error is one line that names the file or the variable, never a value."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.auth.config import sources
from app.auth.config.sources import load
from app.auth.errors import SettingsError


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True)

    pages: list[int] = Field([1])
    title: str


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / "settings.env")
    for name in ("PAGES", "TITLE", "SECRETS_DIR", "SECRETS_VAULT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "settings.env"


def problem() -> str:
    with pytest.raises(SettingsError) as error:
        load(Settings, title="call it something")
    # Neither in the line nor where a debugger or an error tracker looks.
    assert "swordfish" not in f"{error.value} {error.value.__cause__} {error.value.__context__}"
    assert "\n" not in f"{error.value}"
    return f"{error.value}"


def test_settings_are_read_from_the_file(file: Path) -> None:
    file.write_text("TITLE=Ren\u00e9\nPAGES=[2, 3]\n", encoding="utf-8")
    assert load(Settings).model_dump() == {"title": "Ren\u00e9", "pages": [2, 3]}


def test_a_byte_order_mark_is_no_part_of_a_name(file: Path) -> None:
    file.write_text("TITLE=x\n", encoding="utf-8-sig")
    assert load(Settings).title == "x"


def test_an_empty_value_is_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Compose passes `${PAGES:-}` of a variable that nobody has set."""
    file.write_text("TITLE=of the file\nPAGES=\n")
    monkeypatch.setenv("TITLE", "")
    assert load(Settings).model_dump() == {"title": "of the file", "pages": [1]}
    file.unlink()
    monkeypatch.setenv("PAGES", "")
    assert problem() == "TITLE is not set; call it something"


@pytest.mark.parametrize("place", ["environment", "file", "folder"])
def test_an_empty_database_url_is_not_the_default(
    file: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithDatabase(Settings):
        title: str = "none"
        database_url: str = "the default"

    monkeypatch.setattr(sources, "NEVER_EMPTY", {"database_url"})
    monkeypatch.delenv("DATABASE_URL", raising=False)
    if place == "folder":
        (file.parent / "database_url").touch()
        monkeypatch.setenv("SECRETS_DIR", f"{file.parent}")
    elif place == "file":
        file.write_text("DATABASE_URL=\n")
    else:
        file.write_text("DATABASE_URL=of the file\n")
        monkeypatch.setenv("DATABASE_URL", "")
    assert load(WithDatabase).database_url == ""


def test_what_is_missing_comes_with_advice() -> None:
    assert problem() == "TITLE is not set; call it something"


def test_what_is_malformed_is_named(file: Path) -> None:
    file.write_text('TITLE=x\nPAGES=["swordfish"]\n')
    assert problem().startswith("PAGES: Input should be a valid integer")


def test_a_list_is_written_as_json(file: Path) -> None:
    file.write_text("TITLE=x\nPAGES=1,swordfish\n")
    assert '"pages"' in problem()
    assert problem().endswith("; write it as JSON")


def test_a_folder_is_no_file_of_settings(file: Path) -> None:
    file.mkdir()
    assert problem() == f"{file} is not a file; put the settings into one"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_neither_is_a_pipe_nor_a_link_that_leads_nowhere(file: Path) -> None:
    os.mkfifo(file)  # reading it would wait for a writer
    assert problem() == f"{file} is not a file; put the settings into one"
    file.unlink()
    file.symlink_to("nowhere")
    assert problem() == f"{file} is not a file; put the settings into one"


def test_a_file_in_another_encoding_is_refused(file: Path) -> None:
    file.write_bytes(b"TITLE=swordfish\xe9")
    assert problem() == f"{file} is not UTF-8 text; save it as UTF-8"


def test_a_file_that_may_not_be_read_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    file.touch()
    monkeypatch.setattr(Settings, "__init__", refuse)  # root may read everything
    assert problem() == f"{file} cannot be read (Permission denied); check its owner and mode"


# A file for each setting.


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As Kubernetes mounts a secret: links to a folder that changes as a whole."""
    folder = tmp_path / "run" / "secrets"
    (folder / "..first").mkdir(parents=True)
    (folder / "..data").symlink_to("..first")
    for name in ("TITLE", "pages"):
        (folder / name).symlink_to(Path("..data") / name)
    monkeypatch.setenv("SECRETS_DIR", f"{folder}")
    return folder


def test_each_setting_may_have_a_file(mounted: Path, file: Path) -> None:
    (mounted / "..data" / "TITLE").write_text("Ren\u00e9\n", encoding="utf-8")
    (mounted / "..data" / "pages").write_text("[2, 3]\n")
    file.write_text("TITLE=another\nPAGES=[4]\n")  # does not count
    assert load(Settings).model_dump() == {"title": "Ren\u00e9", "pages": [2, 3]}


def test_a_file_may_begin_with_a_byte_order_mark_or_be_empty(mounted: Path) -> None:
    (mounted / "..data" / "TITLE").write_text("x\n", encoding="utf-8-sig")
    for empty in ("", "\n", "\ufeff\n"):
        (mounted / "..data" / "pages").write_text(empty, encoding="utf-8")
        assert load(Settings).model_dump() == {"title": "x", "pages": [1]}
    (mounted / "..data" / "pages").write_text("[2]", encoding="utf-8-sig")
    assert load(Settings).pages == [2]


def test_the_environment_wins_over_files(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mounted / "..data" / "TITLE").write_text("swordfish")
    (mounted / "..data" / "pages").write_text("[2]")
    monkeypatch.setenv("TITLE", "of the environment")
    assert load(Settings).title == "of the environment"


def test_what_is_malformed_in_a_file_is_named(mounted: Path) -> None:
    (mounted / "..data" / "TITLE").write_text("x")
    (mounted / "..data" / "pages").write_text('["swordfish"]')
    assert problem().startswith("PAGES: Input should be a valid integer")
    (mounted / "..data" / "pages").write_text("[2]")
    (mounted / "..data" / "TITLE").write_bytes(b"swordfish\xe9")
    assert problem() == f"{mounted / 'TITLE'} is not UTF-8 text; save it as UTF-8"


def test_a_folder_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_DIR", "/no/such/folder")
    assert problem() == (
        f"SECRETS_DIR: there is no folder {Path('/no/such/folder').absolute()};"
        " mount it, or leave it out"
    )


# Without the part `vaults`.


def test_a_vault_that_nothing_reads_stops_the_start(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("TITLE=of the file\n")  # must not count instead
    monkeypatch.setenv("SECRETS_VAULT", "vault://secret/swordfish")
    core = runpy.run_path(sources.__file__)  # as it is before a part adds its source
    with pytest.raises(SettingsError) as error:
        core["load"](Settings)
    assert f"{error.value}" == (
        "SECRETS_VAULT is set, but the part vaults is missing; add it, or unset SECRETS_VAULT"
    )


def test_the_settings_load_no_web_framework() -> None:
    """The command line loads them each time."""
    script = "import app.settings, sys; sys.exit('fastapi' in sys.modules)"
    project = Path(sources.__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], cwd=project, check=True)
