"""Logging: a format where nobody has chosen one, and no key in the lines of the server.

In a `logging` configuration of your own, the filter `add_request_id` gives `%(request_id)s`.
"""

import logging
from typing import Final, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from uvicorn.logging import ColourizedFormatter

from app.auth.key import masked
from app.auth.log.record import request_id

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
