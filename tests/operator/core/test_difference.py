"""What counts as a difference between what was applied and what the API server holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage_operator.core import names
from pilotage_operator.core.difference import differs, fingerprint, stamped

UNITS = {"m": 0.001, "": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def wanted(**spec: Any) -> dict[str, Any]:
    return stamped({"kind": "Deployment", "metadata": {"name": "fraud-1"}, "spec": spec})


def live(applied: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """What the API server answers: what was applied, with its own additions and rewritings."""
    found = copy.deepcopy(applied)
    found["metadata"] |= {"uid": "u1", "resourceVersion": "7", "managedFields": [{}]}
    found["spec"] |= spec
    return found | {"status": {"replicas": 1}}


def test_what_the_api_server_adds_is_no_difference() -> None:
    applied = wanted(selector={"app": "a"}, ports=[{"port": 80}])
    found = live(applied, ports=[{"port": 80, "nodePort": 0, "protocol": "TCP"}], strategy={"type": "X"})
    assert not differs(applied, found)


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("0.5", "500m"),
        ("1024Mi", "1Gi"),
        (2, "2"),
        ("1000m", "1"),
        ("1000k", "1M"),
        ("0.5Gi", "512Mi"),
        ("1.50", "1500m"),
    ],
)
def test_a_quantity_that_was_rewritten_is_no_difference(asked: Any, stored: str) -> None:
    assert not differs(
        wanted(limits={"cpu": asked}), live(wanted(limits={"cpu": asked}), limits={"cpu": stored})
    )


@pytest.mark.parametrize(
    ("asked", "stored"),
    [("500m", "501m"), ("1Gi", "1G"), ("1M", "1m"), ("2", "20"), ("v1", "v2"), ("Gi", "Mi")],
)
def test_another_value_is_one(asked: str, stored: str) -> None:
    assert differs(wanted(limits={"cpu": asked}), live(wanted(limits={"cpu": asked}), limits={"cpu": stored}))


@pytest.mark.parametrize("empty", [{}, [], "", False, 0])
def test_an_empty_value_that_the_api_server_leaves_out_is_no_difference(empty: Any) -> None:
    """At rest the operator writes nothing: a value that never comes back would be written for ever."""
    applied, found = wanted(field=empty), live(wanted(field=empty))
    del found["spec"]["field"]
    assert not differs(applied, found)


@pytest.mark.parametrize("value", [{"a": 1}, ["a"], "a", True, 1, None])
def test_a_value_that_is_gone_is_a_difference(value: Any) -> None:
    applied = wanted(field=value)
    found = live(applied)
    del found["spec"]["field"]
    assert differs(applied, found) == (value is not None)


@pytest.mark.parametrize("changed", [[], ["a"], ["b", "a"], ["a", "b", "c"], {"a": "b"}, "ab", None])
def test_a_list_is_the_same_only_item_by_item(changed: Any) -> None:
    applied = wanted(hosts=["a", "b"])
    assert differs(applied, live(applied, hosts=changed))


def test_a_field_that_is_no_longer_rendered_is_a_difference() -> None:
    """The live object says all that is wanted, and more: only the fingerprint tells whose the rest is."""
    before, now = wanted(hosts=["a"], outlierDetection={"interval": "5s"}), wanted(hosts=["a"])
    assert differs(now, live(before))
    assert not differs(before, live(before))


def test_a_foreign_edit_of_an_applied_field_is_a_difference() -> None:
    applied = wanted(weight=10)
    assert differs(applied, live(applied, weight=50))


def test_the_stamp_keeps_other_annotations_and_changes_nothing_else() -> None:
    manifest = {"kind": "Service", "metadata": {"name": "a", "annotations": {"b": "c"}}, "spec": {}}
    before = copy.deepcopy(manifest)
    annotations = stamped(manifest)["metadata"]["annotations"]
    assert annotations == {"b": "c", names.ANNOTATION_APPLIED: fingerprint(manifest)}
    assert manifest == before


def test_the_order_of_keys_is_no_difference() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


amounts = st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)))


@given(amounts, amounts)
def test_quantities_are_equal_exactly_when_their_amounts_are(
    one: tuple[int, str], two: tuple[int, str]
) -> None:
    def amount(number: int, unit: str) -> int:
        return number * round(1000 * UNITS[unit])

    asked, stored = (f"{number}{unit}" for number, unit in (one, two))
    assert differs(wanted(cpu=asked), live(wanted(cpu=asked), cpu=stored)) == (amount(*one) != amount(*two))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), values), values)
def test_any_manifest_is_like_itself_and_nothing_breaks_the_reader(spec: dict[str, Any], other: Any) -> None:
    applied = wanted(field=spec)
    assert not differs(applied, live(applied))
    assert differs(applied, live(applied, field=other)) in (True, False)


def test_an_addition_to_a_selector_is_a_difference_for_it_would_cut_traffic() -> None:
    applied = wanted(selector={"app": "a"})
    assert differs(applied, live(applied, selector={"app": "a", "zone": "b"}))


@pytest.mark.parametrize(
    "addition",
    [{"fault": {"abort": {"httpStatus": 500}}}, {"mirror": {"host": "b"}}, {"match": [{"port": 1}]}],
)
def test_an_addition_to_a_rule_of_the_routes_is_a_difference(addition: dict[str, Any]) -> None:
    rule = {"name": "split", "route": [{"destination": {"host": "a"}, "weight": 100}]}
    applied = {**wanted(hosts=["a"], http=[rule]), "kind": "VirtualService"}
    assert not differs(applied, live(applied))
    assert differs(applied, live(applied, http=[{**rule, **addition}]))


def test_a_section_that_somebody_adds_to_the_routes_stays_theirs() -> None:
    applied = {**wanted(hosts=["a"], http=[]), "kind": "VirtualService"}
    assert not differs(applied, live(applied, tls=[{"match": []}]))
