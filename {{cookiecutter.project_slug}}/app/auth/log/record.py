"""What is known of a request when its answer begins: for the log, and for those who count."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal

from app.auth.key import Key

SEEN: Final = "app.seen"
"""Where the ASGI scope of a request holds its record. Copies of the scope share it."""

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request that is being answered, for your own log lines and calls."""


@dataclass(slots=True)
class Seen:
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


Observer = Callable[[Seen], None]
"""Is called once a request, when its answer begins."""
