from __future__ import annotations

import pytest

from pilotage_dev import whole
from pilotage_dev.part import OrderError, Part, Tier, in_order


def part(name: str, *after: str) -> Part:
    return Part(name=name, tier=Tier.ALL, ready=lambda _: True, after=after)


def test_each_part_comes_after_those_it_needs() -> None:
    ordered = in_order((part("c", "b", "a"), part("b", "a"), part("a")))
    assert [each.name for each in ordered] == ["a", "b", "c"]


def test_parts_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(OrderError, match="these parts wait for each other: b, c"):
        in_order((part("a"), part("b", "c"), part("c", "b")))


def test_a_need_that_is_no_part_is_named() -> None:
    with pytest.raises(OrderError, match="a comes after z, which is no part here"):
        in_order((part("a", "z"),))


@pytest.mark.parametrize("tier", list(Tier))
def test_every_tier_of_the_stack_can_be_started_by_itself(tier: Tier) -> None:
    parts = whole.parts_of(tier)
    assert {each.name for each in in_order(parts)} == {each.name for each in parts}
