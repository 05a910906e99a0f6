"""Client addresses, and the limit on wrong keys from each."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from time import monotonic
from typing import Final

BURST: Final = 100  # wrong keys that an address may send at once
REFILL: Final = 1.0  # seconds after which it may send one more
MAX_ADDRESSES: Final = 10_000  # in memory; beyond that the least recent one is dropped
NO_ADDRESS: Final = "local"  # the network of a caller without an address, as of a Unix socket


class FailedAttempts:
    """A token bucket per address. Each wrong key takes one token. Callers without an address would
    share one bucket, so they have none."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}  # when each bucket is full again

    def are_too_many(self, client: str) -> bool:
        return bool(self._full_at) and self._until_full(_source(client)) > BURST * REFILL

    def add(self, client: str) -> None:
        if (source := _source(client)) == NO_ADDRESS:
            return
        until_full = max(self._until_full(source), 0.0)
        self._full_at.pop(source, None)  # keeps the least recent one first
        if len(self._full_at) >= MAX_ADDRESSES:
            del self._full_at[next(iter(self._full_at))]
        # The cap allows the next attempt one REFILL after the last, however many there were.
        self._full_at[source] = monotonic() + min(until_full, BURST * REFILL) + REFILL

    def _until_full(self, source: str) -> float:
        return self._full_at.get(source, 0.0) - monotonic()


def _source(client: str) -> str:
    """The network for an IPv6 address, because its owner can use all of the network."""
    return network_of(client, 32, 64)


def address_of(client: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; IPv4-mapped IPv6 becomes IPv4. None for other text."""
    try:
        address = ip_address(client.partition("%")[0])  # without the name of an interface
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(client: str, bits: int, ipv6_bits: int) -> str:
    """Return the network of the address with this prefix length, or NO_ADDRESS for other text."""
    # A proxy may pass on any text. No address is longer, so the cache keeps no long text.
    return _network_of(client[:64], bits, ipv6_bits)


@lru_cache(10_000)
def _network_of(client: str, bits: int, ipv6_bits: int) -> str:
    address = address_of(client)
    if address is None:
        return NO_ADDRESS
    return f"{ip_network((address, bits if address.version == 4 else ipv6_bits), strict=False)}"
