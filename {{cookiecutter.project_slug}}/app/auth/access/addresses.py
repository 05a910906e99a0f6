"""The addresses of callers."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


def address_of(client: str) -> IPv4Address | IPv6Address | None:
    """IPv4 in the form of IPv6 becomes IPv4. None if there is no address, as for a Unix socket."""
    try:
        address = ip_address(client.partition("%")[0])  # without the name of an interface
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(client: str, bits: int, ipv6_bits: int) -> str:
    """The network of the address, with a prefix of so many bits, or `local`."""
    # A proxy may pass on any text for an address. No address is longer, and no text is kept.
    return _network_of(client[:64], bits, ipv6_bits)


@lru_cache(10_000)
def _network_of(client: str, bits: int, ipv6_bits: int) -> str:
    address = address_of(client)
    if address is None:
        return "local"
    return f"{ip_network((address, bits if address.version == 4 else ipv6_bits), strict=False)}"
