"""The record of a request, and the format of log lines.

In your own `logging` configuration, the filter `add_request_id` provides `%(request_id)s`.
"""

import logging
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


@dataclass(slots=True)
class RequestRecord:
    """What the service knows about a request and its answer."""

    client: str  # its address
    method: str  # WS for a WebSocket
    key: Key | None = None
    digest: bytes = b""  # of the key's secret
    refusal: str = ""  # the reason, if it was refused
    limited: bool = False  # a policy held the key back
    route: str | None = None  # the declared path; None until it is looked up
    status: int = 0  # 101 for an accepted WebSocket; 0 without an answer
    seconds: float = 0.0  # until the answer starts

    @property
    def outcome(self) -> Literal["served", "refused", "limited"]:
        """The result of a request with a valid key."""
        if not self.refusal:
            return "served"
        return "limited" if self.limited else "refused"


Observer = Callable[[RequestRecord], None]
"""Called once per request, when its answer starts."""


_FORMATTERS: Final = {
    "text": logging.Formatter(
        "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s",
        defaults={"request_id": "-"},
    ),
    "json": JsonFormatter(
        ["levelname", "name", "message"],
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for a terminal
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
    ),
}
_level = logging.NOTSET  # the level that `configure_logging` set last


def configure_logging(level: str, format: Literal["text", "json"] = "text") -> None:
    """Log the service's own lines from this level on, and format uvicorn's lines alike.

    Handlers and a level of the logger `app` that other code sets, before or after, stay.
    """
    global _level
    service = logging.getLogger("app")
    if service.level == _level:
        service.setLevel(level)
        _level = service.level
    formatter = _FORMATTERS[format]
    if last := logging.lastResort:  # the handler for loggers without one
        last.addFilter(add_request_id)  # logging adds a filter only once
        last.setLevel(logging.NOTSET)
        last.setFormatter(formatter)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addFilter(_without_keys)
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
