"""The service's lines: seen once, from the level that was asked for, and nobody is overruled."""

import asyncio
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Literal, get_args

import pytest
from fastapi import BackgroundTasks, Response
from uvicorn.logging import AccessFormatter, DefaultFormatter

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, log
from app.auth.key import with_prefix
from app.auth.log import configure_logging, request_id
from tests.callers import Keys, answer_of, ask

SERVICE, SPEAKER = logging.getLogger("app"), logging.getLogger("app.auth.speaker")


@pytest.fixture(autouse=True)
def nobody_has_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "_level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "handlers", [])
    level = SERVICE.level
    SERVICE.setLevel(logging.NOTSET)
    yield
    SERVICE.setLevel(level)
    logging.captureWarnings(capture=False)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines in JSON on the standard error. Any other line fails the test."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_are_seen_from_the_level_on(capsys: pytest.CaptureFixture[str]) -> None:
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
    capsys: pytest.CaptureFixture[str], api: GuardedAPI
) -> None:
    configure_logging("INFO", "json")
    api.include_router(guarded := GuardedRouter(prefix="/x"))
    guarded.add_api_route("/{name}", lambda: None)
    await ask(api, path="/x/y")
    line, _ = said(capsys)
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


def with_a_root_handler() -> None:
    """As OpenTelemetry adds one."""
    logging.root.addHandler(logging.NullHandler())


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize(
    "library", [logging.basicConfig, lambda: logging.warning("other"), with_a_root_handler]
)
def test_what_the_setting_says_holds_beside_libraries(
    capsys: pytest.CaptureFixture[str], library: Callable[[], None], later: bool
) -> None:
    for step in (0, 1):
        if step == later:
            library()
        else:
            configure_logging("INFO", "json")
    capsys.readouterr()
    token = request_id.set("abc-123")
    SPEAKER.info("said")
    logging.getLogger("of.a.library").warning("said %s", "too")
    request_id.reset(token)
    lines = [(each["message"], each["request_id"]) for each in said(capsys)]
    assert lines == [("said", "abc-123"), ("said too", "abc-123")]


def test_a_handler_that_others_add_gets_each_line_as_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = io.StringIO()
    logging.root.addHandler(theirs := logging.StreamHandler(output))
    theirs.__class__ = type("OfTracing", (logging.StreamHandler,), {})
    configure_logging("INFO", "json")
    SPEAKER.info("said")
    assert output.getvalue() == "said\n"
    assert [each["message"] for each in said(capsys)] == ["said"]


@pytest.mark.filterwarnings("always")
def test_a_warning_of_python_is_a_line_in_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings._showwarning_orig)  # type: ignore[attr-defined]
    configure_logging("INFO", "json")
    warnings.warn("said", stacklevel=1)
    (line,) = said(capsys)
    assert (line["logger"], line["level"]) == ("py.warnings", "WARNING")
    assert "UserWarning: said" in line["message"]


def test_an_exception_has_its_frames_in_either_format(capsys: pytest.CaptureFixture[str]) -> None:
    for format in get_args(Literal["text", "json"]):
        configure_logging("INFO", format)
        try:
            raise RuntimeError("as meant")
        except RuntimeError:
            SPEAKER.exception("failed")
        text = capsys.readouterr().err
        assert "app.auth.speaker" in text
        assert "failed" in text
        assert "Traceback" in text
        assert "as meant" in text


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("logger", ["", "app", "app.auth.speaker"])
def test_with_a_format_of_its_own_the_handlers_are_the_owner_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logger: str, later: bool
) -> None:
    output, owners = io.StringIO(), logging.StreamHandler()
    owners.setStream(output)
    if later:
        configure_logging("INFO", "own")
    monkeypatch.setattr(logging.getLogger(logger), "handlers", [owners])
    if not later:
        configure_logging("INFO", "own")
    SPEAKER.info("said")
    assert (output.getvalue(), capsys.readouterr().err) == ("said\n", "")


def test_a_level_of_the_owner_counts() -> None:
    SERVICE.setLevel("ERROR")
    configure_logging("DEBUG")
    assert not SPEAKER.isEnabledFor(logging.WARNING)


# A line for each request.


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    api, public, guarded = GuardedAPI(keys), PublicRouter(), GuardedRouter()
    status = {"ready": 503}

    @public.get("/health/live")
    @guarded.get("/items")
    async def live() -> None: ...

    @public.get("/health/ready")
    async def ready() -> Response:
        return Response(status_code=status["ready"])

    @guarded.get("/slow")
    async def slow(tasks: BackgroundTasks) -> None:
        tasks.add_task(asyncio.sleep, 0.2)

    api.include_router(public)
    api.include_router(guarded)
    return api


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.name == "app.requests"]


async def test_a_probe_is_told_when_it_fails(
    api: GuardedAPI, caplog: pytest.LogCaptureFixture
) -> None:
    for level, told in (("INFO", ["ready 503"]), ("DEBUG", ["live 200", "ready 503"])):
        caplog.set_level(level, "app")
        caplog.clear()
        for path in ("/health/live", "/health/ready"):
            await ask(api, path=path)
        assert [
            " ".join(re.findall(r"(?<=health/)\w+ \d+", line)) for line in lines(caplog)
        ] == told


async def test_a_line_comes_when_the_answer_was_sent(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app")
    asked = asyncio.create_task(answer_of(api, keys.issue(), path="/slow"))
    while not lines(caplog):
        await asyncio.sleep(0.01)
    assert not asked.done()  # a task in the background goes on
    await asked
    (line,) = [vars(each) for each in caplog.records if each.name == "app.requests"]
    assert (line["status"], line["duration_ms"] < 200) == (200, True)


HOSTILE = ("203.0.113.9\u2028INFO: forged", "\x1b[2J", "unknown", "10.0.0.7, 10.0.0.8", "a" * 999)


async def test_what_is_no_address_is_not_told_as_one(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy that is believed may pass on anything in X-Forwarded-For."""
    caplog.set_level("INFO", "app")
    secret = keys.issue()
    for client in (*HOSTILE, secret.decode(), with_prefix(secret.decode(), "acme")):
        for secrets in ([secret], []):
            await ask(api, *secrets, path="/items", client=(client, 1))
    await ask(api, path="/items", client=None)
    assert {vars(each)["client"] for each in caplog.records} == {""}
    assert all(each.startswith("- GET /items ") for each in lines(caplog))
    caplog.clear()
    for client in ("::ffff:10.0.0.7", "2001:DB8::1", "fe80::1%eth0"):
        await ask(api, secret, path="/items", client=(client, 1))
    assert [each.split()[0] for each in lines(caplog)] == ["10.0.0.7", "2001:db8::1", "fe80::1"]


async def test_a_method_is_told_masked_and_printable(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app")
    secret = keys.issue()
    for method in (secret.decode(), "A\nB\x1b[2J", "A" * 999):
        for secrets in ([secret], []):
            await ask(api, *secrets, path="/items", method=method)
    told = [line.split(" ")[1] for line in lines(caplog)]
    assert told[:4] == ["[key]", "[key]", r"A\nB\x1b[2J", r"A\nB\x1b[2J"]
    assert max(map(len, told)) < 250
