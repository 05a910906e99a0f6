"""Addresses: from where a key may be used."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_interface

from app.auth.access.addresses import address_of

Network = IPv4Network | IPv6Network
Networks = tuple[Network, ...]


def parse_networks(written: Iterable[str]) -> Networks:
    """Raises ValueError."""
    return tuple(_parse(text) for text in written)


def _parse(text: str) -> Network:
    try:
        # Any text may follow a percent sign, for the name of a machine's own interface.
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
    # Callers are known by their IPv4 address, where an IPv6 one stands for it.
    if isinstance(whole, IPv6Network) and (mapped := whole.network_address.ipv4_mapped):
        return IPv4Network((mapped, whole.prefixlen - 96))
    return whole


def is_within(client: str, networks: Iterable[Network]) -> bool:
    """Whether somebody calls from there. Who has no address does not."""
    address = address_of(client)
    return address is not None and any(address in network for network in networks)


def are_within(inner: Sequence[Network], outer: Sequence[Network]) -> bool:
    """Whether every address of the first is one of the second; none stand for all there are."""
    return not outer or (bool(inner) and all(_is_within(each, outer) for each in inner))


def _is_within(network: Network, outer: Iterable[Network]) -> bool:
    first, last = network.network_address, network.broadcast_address
    return any(first in each and last in each for each in outer)
