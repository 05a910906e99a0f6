"""The service's lines: seen once, from the level that was asked for, and nobody is overruled."""

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import pytest
from uvicorn.logging import AccessFormatter, DefaultFormatter

from app.auth import GuardedAPI, GuardedRouter, log
from app.auth.log import configure_logging
from tests.callers import ask

SERVICE, SPEAKER = logging.getLogger("app"), logging.getLogger("app.auth.speaker")


@pytest.fixture(autouse=True)
def nobody_has_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "_level", logging.NOTSET)
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
        assert [line.split(maxsplit=2)[2] for line in lines] == [
            f"{each} - app.auth.speaker: said" for each in seen
        ]
        assert all(datetime.fromisoformat(line[:23].replace(",", ".")) for line in lines)


async def test_in_json_a_refusal_has_its_fields_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: GuardedAPI
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    configure_logging("INFO", "json")
    api.include_router(guarded := GuardedRouter(prefix="/x"))
    guarded.add_api_route("/{name}", lambda: None)
    await ask(api, path="/x/y")
    line, _ = map(json.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(line.pop("time")).tzinfo
    assert re.fullmatch("[0-9a-f]{16}", line.pop("request_id"))
    assert line == {
        "level": "INFO",
        "logger": "app.auth.access.rule",
        "message": "Refused http '/x/y': no key.",
        "reason": "no key",
        "key_id": "",
        "path": "/x/y",
        "route": "/x/{name}",
        "client": "127.0.0.1",
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_server_s_lines_have_the_same_form(
    monkeypatch: pytest.MonkeyPatch, format: Literal["text", "json"]
) -> None:
    output = io.StringIO()
    ours, owners = logging.StreamHandler(output), logging.StreamHandler(output)
    ours.setFormatter(DefaultFormatter("%(levelprefix)s %(message)s"))
    owners.setFormatter(logging.Formatter("owner's: %(message)s"))
    server = logging.getLogger("uvicorn")
    monkeypatch.setattr(server, "handlers", [ours, owners])
    for each in ("text", "json", format):  # also once more
        configure_logging("INFO", each)
    server.warning("%s ends at %s", "one", "/x?secret=1", extra={"color_message": "in red"})
    first, second = output.getvalue().splitlines()
    assert second == "owner's: one ends at /x"
    if format == "json":
        line = json.loads(first)
        assert line.keys() == {"level", "logger", "message", "time"}
        first = line["message"]
    assert first.endswith("one ends at /x")


def test_a_request_has_one_line_and_a_handler_of_the_owner_has_the_server_s_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, owners = logging.StreamHandler(), logging.StreamHandler()
    ours.setFormatter(AccessFormatter())
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "handlers", [ours, owners])
    configure_logging("INFO")
    assert logging.getLogger("uvicorn.access").handlers == [owners]


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
