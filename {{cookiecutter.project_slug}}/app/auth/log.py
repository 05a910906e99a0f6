"""The log: what is known of a request, and the form of the lines.

In a `logging` configuration of your own, the filter `add_request_id` gives `%(request_id)s`.
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
"""Where the ASGI scope of a request holds its record. Copies of the scope share it."""

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request that is being answered, for your own log lines and calls."""


@dataclass(slots=True)
class RequestRecord:
    """A request and its answer."""

    client: str  # its address
    method: str  # WS for a WebSocket
    key: Key | None = None
    digest: bytes = b""  # of the key's secret
    refusal: str = ""  # the reason, if it was refused
    limited: bool = False  # a policy held the key back
    route: str | None = None  # as it was declared; None until somebody looks for it
    status: int = 0  # 101 for a WebSocket that was opened
    seconds: float = 0.0  # until the answer began

    @property
    def outcome(self) -> Literal["served", "refused", "limited"]:
        """What became of a request with a key in force."""
        if not self.refusal:
            return "served"
        return "limited" if self.limited else "refused"


Observer = Callable[[RequestRecord], None]
"""Is called once a request, when its answer begins."""


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
_level = logging.NOTSET  # of the service's lines, as it was set here


def configure_logging(level: str, format: Literal["text", "json"] = "text") -> None:
    """Let the service's own lines be seen from this level on, and uvicorn's in the same form.

    What somebody configures, before or after, counts: a level of the logger `app`, and handlers.
    """
    global _level
    service = logging.getLogger("app")
    if service.level == _level:
        service.setLevel(level)
        _level = service.level
    formatter = _FORMATTERS[format]
    if last := logging.lastResort:  # takes the lines for which there is no other handler
        last.addFilter(add_request_id)  # the same one a second time is ignored
        last.setLevel(logging.NOTSET)
        last.setFormatter(formatter)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addFilter(_without_keys)
        for handler in logger.handlers.copy():
            # Uvicorn's own, or what was set here before; another one is somebody's choice.
            was = handler.formatter
            if not (isinstance(was, ColourizedFormatter) or was in _FORMATTERS.values()):
                continue
            if name == "uvicorn.access":  # a line for each request, as the service has one
                logger.removeHandler(handler)
            handler.addFilter(add_request_id)
            handler.setFormatter(formatter)


def add_request_id(record: logging.LogRecord) -> bool:
    if id := request_id.get():
        record.request_id = id
    return True


def _without_keys(record: logging.LogRecord) -> bool:
    """Callers put keys where they do not belong, and uvicorn logs each path as it comes, with its
    query; at the level DEBUG also the headers of a WebSocket."""
    if isinstance(record.args, tuple):
        record.args = tuple(_shown(arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _shown(text: str) -> str:
    return masked(text.partition("?")[0] if text.startswith("/") else text)
