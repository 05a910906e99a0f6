"""The record of a request, and the format of log lines.

In your own `logging` configuration, the filter `add_request_id` provides `%(request_id)s`.
"""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from uvicorn.logging import ColourizedFormatter

from app.auth.key import Key, masked

RECORD: Final = "app.record"
"""The entry of the ASGI scope that holds the record. Copies of the scope share the record."""

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the current request, for your own log lines and outgoing calls."""


@dataclass
class RequestRecord:
    """What the service knows about a request and its answer."""

    client: str  # its address; "" for what is no address
    method: str  # WS for a WebSocket
    key: Key | None = None
    digest: bytes = b""  # of the key's secret
    refusal: str = ""  # the reason, if it was refused
    outcome: Literal["served", "refused", "limited"] = "served"  # of a request with a valid key
    route: str | None = None  # the declared path; None until it is looked up
    status: int = 0  # 101 for an accepted WebSocket; 0 without an answer
    seconds: float = 0.0  # until the answer starts


Observer = Callable[[RequestRecord], None]
"""Called once per request, when its answer starts."""


class _TextFormatter(logging.Formatter):
    """`TIME LEVEL REQUEST-ID LOGGER: MESSAGE`. It formats each second once."""

    _second, _time = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        second, milliseconds = divmod(int(1000 * record.created), 1000)
        if second != self._second:
            self._time = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        line = (
            f"{self._time},{milliseconds:03d} {record.levelname}"
            f" {getattr(record, 'request_id', '-')} {record.name}: "
        )
        if record.exc_info or record.exc_text or record.stack_info:
            return line + super().format(record)
        return line + record.getMessage()


_FORMATTERS: Final = {
    "text": _TextFormatter(),
    "json": JsonFormatter(
        ["levelname", "name", "message"],
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for a terminal
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
    ),
}
_level = logging.NOTSET  # the level that `configure_logging` set last


def configure_logging(level: str, format: Literal["text", "json", "own"] = "text") -> None:
    """Write log lines to the standard error in this format: the service's from this level on, the
    server's, those of libraries, and Python's warnings.

    With `own`, the handlers and formats are yours. A level of the logger `app` that other code
    sets, before or after, stays.
    """
    global _level
    service = logging.getLogger("app")
    if service.level == _level:
        service.setLevel(level)
        _level = service.level
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_keys)  # logging adds a filter only once
    if format == "own":
        return
    formatter = _FORMATTERS[format]
    for other in logging.root.handlers.copy():
        # One that an earlier call made, or `logging.basicConfig`, which libraries call.
        if type(other) is logging.StreamHandler:
            logging.root.removeHandler(other)
    ours = logging.StreamHandler()
    ours.addFilter(add_request_id)
    ours.setFormatter(formatter)
    logging.root.addHandler(ours)
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        for handler in logger.handlers.copy():
            # Replace only uvicorn's own formatter or the one set here before.
            was = handler.formatter
            if not (isinstance(was, ColourizedFormatter) or was in _FORMATTERS.values()):
                continue
            if name == "uvicorn.access":  # the service logs each request itself
                logger.removeHandler(handler)
            handler.addFilter(add_request_id)
            handler.setFormatter(formatter)


def add_request_id(record: logging.LogRecord) -> bool:
    if id := request_id.get():
        record.request_id = id
    return True


def _without_keys(record: logging.LogRecord) -> bool:
    """Mask keys that callers send in a wrong place: uvicorn logs paths and queries unchanged, and
    at the level DEBUG also the headers of a WebSocket."""
    if isinstance(record.args, tuple):
        record.args = tuple(_shown(arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _shown(text: str) -> str:
    return masked(text.partition("?")[0] if text.startswith("/") else text)
