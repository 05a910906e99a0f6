"""Where somebody calls from."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


def address_of(client: str) -> IPv4Address | IPv6Address | None:
    """The IPv4 address, where an IPv6 one stands for it. A socket of this machine has none."""
    try:
        address = ip_address(client.partition("%")[0])  # without the name of an interface
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(client: str, bits: int, ipv6_bits: int) -> str:
    """The network with so many bits in common, or `local`."""
    # No address is longer: a proxy may let callers write what they like, which is to be kept nowhere.
    return _network_of(client[:64], bits, ipv6_bits)


@lru_cache(10_000)
def _network_of(client: str, bits: int, ipv6_bits: int) -> str:
    address = address_of(client)
    if address is None:
        return "local"
    return f"{ip_network((address, bits if address.version == 4 else ipv6_bits), strict=False)}"
