"""The policy `networks`: from which addresses a key may be used."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_interface

from app.auth.access.clients import address_of
from app.auth.access.policy import Denial, Headers
from app.auth.key import Key

Network = IPv4Network | IPv6Network
Networks = tuple[Network, ...]


class AddressPolicy:
    """Refuses a key from any other address as if it were unknown, as a failed attempt."""

    name = "networks"

    def parse(self, values: Sequence[str]) -> list[str]:
        return [f"{network}" for network in parse_networks(values)]

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None:
        if not are_within(parse_networks(inner), parse_networks(outer)):
            raise ValueError(
                f"No key that you manage may be used from elsewhere than yours: {' '.join(outer)}"
            )

    def concerns(self, key: Key) -> bool:
        return self.name in key.restrictions

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        if is_within(client, _parsed(tuple(key.restrictions[self.name]))):
            return ()
        cause = "" if address_of(client) else "a key for some addresses, from an unknown address"
        return Denial("a key from another address than its own", cause=cause)

    def running(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def upgrade(self) -> bool:
        return False  # it keeps nothing


def parse_networks(written: Iterable[str]) -> Networks:
    """Raises ValueError."""
    return tuple(_parse(text) for text in written)


def _parse(text: str) -> Network:
    try:
        # A percent sign begins a zone, which is local to one machine and may be any text.
        given = None if "%" in text else ip_interface(text)
    except ValueError:
        given = None
    if given is None:
        raise ValueError(
            f"{text!r} is no address; write one like 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"
        )
    whole = given.network
    if whole.network_address != given.ip:
        raise ValueError(f"{text!r} is an address within a network; write {whole}")
    # The service knows callers with an IPv4-mapped IPv6 address by their IPv4 address.
    if isinstance(whole, IPv6Network) and (mapped := whole.network_address.ipv4_mapped):
        return IPv4Network((mapped, whole.prefixlen - 96))
    return whole


def is_within(client: str, networks: Iterable[Network]) -> bool:
    """Whether the client's address is in one of the networks. False if it has no address."""
    address = address_of(client)
    return address is not None and any(address in network for network in networks)


def are_within(inner: Sequence[Network], outer: Sequence[Network]) -> bool:
    """Whether `outer` has every address of `inner`. An empty sequence stands for all addresses."""
    return not outer or (bool(inner) and all(_is_within(network, outer) for network in inner))


def _is_within(network: Network, outer: Iterable[Network]) -> bool:
    first, last = network.network_address, network.broadcast_address
    return any(first in other and last in other for other in outer)


_parsed = lru_cache(10_000)(parse_networks)
