"""Who sends many wrong keys, and is told to wait."""

from time import monotonic
from typing import Final

from app.auth.access.addresses import network_of

MANY: Final = 100  # wrong keys of one address, after which it is slowed
PAUSE: Final = 1.0  # seconds after which one of them is forgotten
MOST: Final = 10_000  # addresses that are remembered


class Guesses:
    """The wrong keys of each address, in a bounded memory: those of long ago give way."""

    def __init__(self) -> None:
        self._calm_at: dict[str, float] = {}  # when all of its guesses are forgotten

    def are_many(self, client: str) -> bool:
        return bool(self._calm_at) and self._ahead(_source(client)) > MANY * PAUSE

    def add(self, client: str) -> None:
        source = _source(client)
        ahead = max(self._ahead(source), 0.0)
        self._calm_at.pop(source, None)  # so that the first of all is the oldest
        if len(self._calm_at) >= MOST:
            del self._calm_at[next(iter(self._calm_at))]
        # However many there are: once they end, it takes no longer than that.
        self._calm_at[source] = monotonic() + min(ahead, MANY * PAUSE) + PAUSE

    def _ahead(self, source: str) -> float:
        return self._calm_at.get(source, 0.0) - monotonic()


def _source(client: str) -> str:
    """An IPv6 address is one of the many that its network has."""
    return network_of(client, 32, 64)
