"""The service's lines: seen once, from the level that was asked for, and nobody is overruled."""

import io
import logging
from collections.abc import Iterator

import pytest

from app.auth import logs
from app.auth.logs import configure_logging

SERVICE, SPEAKER = logging.getLogger("app"), logging.getLogger("app.auth.speaker")


@pytest.fixture(autouse=True)
def nobody_has_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_level", logging.NOTSET)
    last, level = logging.lastResort, SERVICE.level
    assert last
    of_last = last.level, last.formatter
    SERVICE.setLevel(logging.NOTSET)
    yield
    SERVICE.setLevel(level)
    last.setLevel(of_last[0])
    last.setFormatter(of_last[1])


def test_lines_are_seen_from_the_level_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    for level, seen in (("WARNING", []), ("INFO", ["INFO"]), ("DEBUG", ["DEBUG", "INFO"])):
        configure_logging(level)
        SPEAKER.debug("said")
        SPEAKER.info("said")
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"{each}:     app.auth.speaker: said" for each in seen]


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("logger", ["", "app", "app.auth.speaker"])
def test_a_handler_of_the_owner_has_each_line_to_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logger: str, later: bool
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [])
    if later:
        configure_logging("INFO")
    monkeypatch.setattr(logging.getLogger(logger), "handlers", [logging.StreamHandler(output)])
    if not later:
        configure_logging("INFO")
    SPEAKER.info("said")
    assert (output.getvalue(), capsys.readouterr().err) == ("said\n", "")


def test_a_level_of_the_owner_counts() -> None:
    SERVICE.setLevel("ERROR")
    configure_logging("DEBUG")
    assert not SPEAKER.isEnabledFor(logging.WARNING)


def test_an_owner_may_want_no_line_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", None)
    configure_logging("DEBUG")
    SPEAKER.debug("said")
    assert "said" not in capsys.readouterr().err
