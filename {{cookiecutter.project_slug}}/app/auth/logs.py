"""Logging: a format where nobody has chosen one, and no key in the lines of the server."""

import logging

from app.auth.keys import masked

_level = logging.NOTSET  # of the service's lines, as it was set here


def configure_logging(level: str) -> None:
    """Let the service's own lines be seen from this level on.

    What somebody configures, before or after, counts: a level of the logger `app`, and handlers.
    """
    global _level
    service = logging.getLogger("app")
    if service.level == _level:
        service.setLevel(level)
        _level = service.level
    if last := logging.lastResort:  # takes the lines for which there is no other handler
        last.setLevel(logging.NOTSET)
        last.setFormatter(logging.Formatter("%(levelname)s:     %(name)s: %(message)s"))
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_keys)  # the same one a second time is ignored


def _without_keys(record: logging.LogRecord) -> bool:
    """Callers put keys where they do not belong, and uvicorn logs each path as it comes; at the
    level DEBUG also the headers of a WebSocket."""
    if isinstance(record.args, tuple):
        record.args = tuple(masked(arg) if isinstance(arg, str) else arg for arg in record.args)
    return True
