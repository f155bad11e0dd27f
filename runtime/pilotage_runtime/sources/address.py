"""Which network addresses a model may come from.

A URI is a tenant's text, and the cluster's network answers more than the internet does. So a name is
resolved once, every address of it is judged, and the connection goes to an address that was judged: a
name that changes its answer in between gains nothing.
"""

import ipaddress
import socket

from pilotage_runtime.failure import Reason, Stage, StartFailure

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What a network's own translator (RFC 8215) makes of it, nobody else can tell; Python takes it for public.
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
# The clouds' credential services: never a model store, whatever the install allows.
_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Resolve a name to addresses that may be connected to; one bad address spoils the name."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise StartFailure(
            Stage.DOWNLOAD, Reason.STORE_UNAVAILABLE, f"the name {host} does not resolve: {error}"
        ) from error
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for address in addresses:
        check(host, address, allow_private=allow_private)
    return addresses


def check(host: str, address: str, *, allow_private: bool) -> None:
    """Raise AddressNotAllowed unless a model may come from there."""
    judged = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    never = judged.is_link_local or judged.is_multicast or judged.is_unspecified or judged in _METADATA
    if not never and (allow_private or (judged.is_global and judged not in _LOCAL_NAT64)):
        return
    kind = "an address that never holds models" if never else "a private address"
    hint = "" if never else "; this install takes models from public addresses only (allowPrivateAddresses)"
    raise StartFailure(Stage.DOWNLOAD, Reason.ADDRESS_NOT_ALLOWED, f"{host} leads to {kind}, {address}{hint}")


def _unwrapped(address: Address) -> Address:
    """Look through the IPv6 forms that carry an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address.sixtofour:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
