"""Logging: a format where nobody has chosen one, and no key in the lines of the server."""

import logging
from typing import Final, Literal

from pythonjsonlogger.json import JsonFormatter
from uvicorn.logging import ColourizedFormatter

from app.auth.keys import masked

_FORMATTERS: Final = {
    "text": logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    "json": JsonFormatter(
        ["levelname", "name", "message"],
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
        last.setLevel(logging.NOTSET)
        last.setFormatter(formatter)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addFilter(_without_keys)  # the same one a second time is ignored
        for handler in logger.handlers:
            # Uvicorn's own, or what was set here before; another one is somebody's choice.
            was = handler.formatter
            if isinstance(was, ColourizedFormatter) or was in _FORMATTERS.values():
                handler.setFormatter(formatter)


def _without_keys(record: logging.LogRecord) -> bool:
    """Callers put keys where they do not belong, and uvicorn logs each path as it comes, with its
    query; at the level DEBUG also the headers of a WebSocket."""
    if isinstance(record.args, tuple):
        record.args = tuple(_shown(arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _shown(text: str) -> str:
    return masked(text.partition("?")[0] if text.startswith("/") else text)
