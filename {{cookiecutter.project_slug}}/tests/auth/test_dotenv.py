"""What cannot be read is told in one line: names the file or the variable, never a value."""

import os
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from app.auth.dotenv import load
from app.auth.errors import SettingsError


class Settings(BaseSettings):
    pages: list[int] = [1]
    title: str


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("app.auth.dotenv.ENV_FILE", tmp_path / "settings.env")
    for name in ("PAGES", "TITLE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "settings.env"


def problem() -> str:
    with pytest.raises(SettingsError) as error:
        load(Settings, title="call it something")
    # Neither in the line, nor where a debugger or an error tracker finds it.
    assert "swordfish" not in f"{error.value} {error.value.__cause__} {error.value.__context__}"
    assert "\n" not in f"{error.value}"
    return f"{error.value}"


def test_settings_are_read_from_the_file(file: Path) -> None:
    file.write_text("TITLE=Ren\u00e9\nPAGES=[2, 3]\n", encoding="utf-8")
    assert load(Settings).model_dump() == {"title": "Ren\u00e9", "pages": [2, 3]}


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
    os.mkfifo(file)  # to read it would be to wait for a writer
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
