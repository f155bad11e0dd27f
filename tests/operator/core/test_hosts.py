"""Which hosts and gateways a ModelDeployment gets, and what is told of those that it does not get."""

from __future__ import annotations

from typing import Any

import pytest

from pilotage_operator.api.modeldeployment import parse
from pilotage_operator.core import hosts
from pilotage_operator.core.hosts import Exposure
from pilotage_operator.core.install import Install
from pilotage_operator.core.snapshot import Snapshot
from tests.operator.api.examples import smallest
from tests.operator.core.world import START

PUBLIC, PRIVATE = "istio-system/public", "istio-system/private"
ALLOWED = {"shop": ("*.shop.example",), "*": ("*.open.example",)}


def exposure(owners: dict[str, str] | None = None, *, domain: str = "", **routing: Any) -> Exposure:
    install = Install(
        "image",
        domain=domain,
        default_gateways=(PUBLIC,),
        allowed_gateways=(PRIVATE,),
        allowed_hosts=ALLOWED,
    )
    obj = smallest()
    obj["metadata"]["namespace"] = "shop"
    obj["spec"]["routing"] = routing
    return hosts.exposure(Snapshot(START, parse(obj), {}, install, host_owners=owners or {}))


def test_without_a_word_about_routing_the_install_decides() -> None:
    assert exposure(domain="ml.example") == Exposure(("fraud.shop.ml.example",), (PUBLIC,))
    assert exposure() == Exposure((), (PUBLIC,))


@pytest.mark.parametrize("host", ["fraud.shop.example", "a.b.shop.example", "fraud.open.example"])
def test_a_host_that_the_install_lists_for_the_namespace_or_for_all_is_used(host: str) -> None:
    assert exposure(hosts=[host]).hosts == (host,)


@pytest.mark.parametrize(
    "host", ["fraud.mail.example", "shop.example", "shop.example.evil.org", "xshop.example", "open.example"]
)
def test_another_host_is_refused_with_the_setting_that_would_allow_it(host: str) -> None:
    found = exposure(hosts=[host, "good.shop.example"])
    assert found.hosts == ("good.shop.example",)
    ((reason, message),) = found.refusals
    assert reason == "HostNotAllowed"
    assert host in message
    assert "routing.allowedHosts" in message


def test_a_host_belongs_to_whoever_routes_it_first() -> None:
    found = exposure({"a.shop.example": "mail/spam"}, hosts=["a.shop.example", "b.shop.example"])
    assert found.hosts == ("b.shop.example",)
    ((reason, message),) = found.refusals
    assert reason == "HostConflict"
    assert "mail/spam" in message


def test_a_rival_does_not_make_a_forbidden_host_an_allowed_one() -> None:
    ((reason, _),) = exposure({"a.mail.example": "mail/spam"}, hosts=["a.mail.example"]).refusals
    assert reason == "HostNotAllowed"


def test_the_installs_own_host_named_once_more_is_not_routed_twice() -> None:
    """Envoy refuses a route table in which a domain stands twice."""
    assert exposure(domain="open.example", hosts=["fraud.shop.open.example"]).hosts == (
        "fraud.shop.open.example",
    )


@pytest.mark.parametrize("gateway", [PUBLIC, PRIVATE])
def test_a_gateway_of_the_install_is_used(gateway: str) -> None:
    assert exposure(gateways=[gateway]) == Exposure((), (gateway,))


def test_another_gateway_is_refused_with_those_that_are_allowed() -> None:
    found = exposure(gateways=["shop/mine"])
    assert found.gateways == ()
    ((reason, message),) = found.refusals
    assert reason == "GatewayNotAllowed"
    assert "shop/mine" in message
    assert PRIVATE in message


def test_a_host_under_the_installs_domain_is_its_own_modeldeployments_only() -> None:
    found = exposure(domain="shop.example", hosts=["other.shop.shop.example", "fraud.shop.shop.example"])
    assert found.hosts == ("fraud.shop.shop.example",)
    assert found.refusals[0][0] == "HostNotAllowed"
    assert "this one's own is fraud.shop.shop.example" in found.refusals[0][1]


def held(name: str, created: str, *names: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "creationTimestamp": created}
    return {"metadata": metadata, "spec": {"hosts": list(names)}}


def test_of_two_that_hold_a_host_only_the_younger_lets_go() -> None:
    both = [held("young", "2026-01-02T00:00:00Z", "a.b"), held("old", "2026-01-01T00:00:00Z", "a.b")]
    assert hosts.rival_owners(both, {"a.b"}, own="shop/old") == {}
    assert hosts.rival_owners(both, {"a.b"}, own="shop/young") == {"a.b": "shop/old"}


def test_what_another_holds_is_not_taken_however_old_the_one_who_asks() -> None:
    rivals = [held("old", "2026-01-01T00:00:00Z"), held("young", "2026-01-02T00:00:00Z", "a.b")]
    assert hosts.rival_owners(rivals, {"a.b"}, own="shop/old") == {"a.b": "shop/young"}


def test_in_the_same_second_the_name_decides() -> None:
    both = [held(name, "2026-01-01T00:00:00Z", "a.b") for name in ("b", "a")]
    assert hosts.rival_owners(both, {"a.b"}, own="shop/a") == {}
    assert hosts.rival_owners(both, {"a.b"}, own="shop/b") == {"a.b": "shop/a"}
