"""Which addresses a fetch may ask: public ones, unless private ones are allowed; a cloud's credentials never."""

import socket

import pytest

from pilotage_runtime.failure import StartFailure
from pilotage_runtime.sources import address


@pytest.mark.parametrize(
    "private",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "169.254.169.254", "::1",
        "fd00::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::5db8:d822", "2002:a00:1::", "224.0.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_in_every_spelling(private: str) -> None:
    with pytest.raises(StartFailure) as failure:
        address.check("store", private, allow_private=False)
    assert (failure.value.reason, failure.value.exit_code) == ("AddressNotAllowed", 75)


@pytest.mark.parametrize(
    "metadata",
    ["169.254.169.254", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254", "fe80::1"],
)
def test_credential_services_are_refused_even_where_private_addresses_are_allowed(metadata: str) -> None:
    with pytest.raises(StartFailure, match="never holds models"):
        address.check("store", metadata, allow_private=True)
    address.check("store", "10.1.2.3", allow_private=True)
    address.check("store", "8.8.8.8", allow_private=False)


@pytest.mark.parametrize("answers", [("93.184.216.34", "10.1.2.3"), ("10.1.2.3", "93.184.216.34")])
def test_one_private_address_spoils_a_name_that_has_public_ones_too(
    answers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them a library would connect to is its own affair."""
    told = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 443)) for found in answers]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: told)
    with pytest.raises(StartFailure) as failure:
        address.resolve("store.example", 443, allow_private=False)
    assert failure.value.reason == "AddressNotAllowed"
    assert "10.1.2.3" in failure.value.message
    assert address.resolve("store.example", 443, allow_private=True) == list(answers)
