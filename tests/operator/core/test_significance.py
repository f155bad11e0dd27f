"""The three tests of significance, at their borders, against figures worked out by other means."""

from __future__ import annotations

from fractions import Fraction
from math import comb, erfc, sqrt
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage_operator.core import significance
from pilotage_operator.core.signals import Counts
from pilotage_operator.core.significance import ERROR_RATE, worse_than_budget, worse_than_others

amounts = st.floats(0, 1e7, allow_nan=False)


def exact_tail(drawn: int, bad_of_drawn: int, rest: int, bad_of_rest: int) -> float:
    """Fisher's one-sided p, by its definition in exact fractions."""
    bad = bad_of_drawn + bad_of_rest
    ways = sum(comb(drawn, k) * comb(rest, bad - k) for k in range(bad_of_drawn, min(drawn, bad) + 1))
    return float(Fraction(ways, comb(drawn + rest, bad)))


def test_all_three_share_the_error_rate_of_three_standard_deviations() -> None:
    assert pytest.approx(erfc(3 / sqrt(2)) / 2, rel=1e-3) == ERROR_RATE


def test_the_ladys_cups_of_tea() -> None:
    """Fisher's own example: 3 of 4 cups right by chance has p = 17/70."""
    assert significance._fisher(Counts(4, 3), Counts(4, 1)) == pytest.approx(17 / 70)


@pytest.mark.parametrize(
    ("mine", "others"),
    [((10, 5), (90, 2)), ((99, 9), (900, 9)), ((50, 50), (1, 0)), ((20, 6), (2000, 60)), ((7, 7), (70, 0))],
)
def test_fishers_tail_is_exact(mine: tuple[int, int], others: tuple[int, int]) -> None:
    found = significance._fisher(Counts(*mine), Counts(*others))
    assert found == pytest.approx(exact_tail(*mine, *others), rel=1e-6)


@pytest.mark.parametrize(
    ("mine", "others", "worse"),
    [
        # Below 100 requests: p = 0.00076 and 0.00141, on both sides of 0.00135.
        (Counts(50, 5), Counts(450, 4), True),
        (Counts(50, 5), Counts(450, 5), False),
        # From 100 requests on: z = 3.02 and 2.89.
        (Counts(100, 12), Counts(1000, 48), True),
        (Counts(100, 12), Counts(1000, 50), False),
    ],
)
def test_the_border_between_a_fault_and_bad_luck(mine: Counts, others: Counts, worse: bool) -> None:
    assert worse_than_others(mine, others) is worse


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_fewer_than_five_bad_requests_condemn_nobody(bad: int) -> None:
    assert not worse_than_others(Counts(bad, bad), Counts(10_000, 0))
    assert not worse_than_budget(Counts(bad, bad), 0.001)


def test_five_of_five_beside_a_healthy_revision_condemn() -> None:
    assert worse_than_others(Counts(5, 5), Counts(45, 0))


def test_nobody_is_worse_than_nobody_or_than_an_equal() -> None:
    assert not worse_than_others(Counts(100, 100), Counts(0, 0))
    assert not worse_than_others(Counts(50, 50), Counts(50, 50))
    assert not worse_than_others(Counts(1000, 50), Counts(9000, 450))


@pytest.mark.parametrize(
    ("requests", "bad", "worse"),
    [
        (99, 5, True),  # P(X >= 5) = 6.6e-8 at 0.1 %
        (99, 0, False),
        (10_000, 19, False),  # z = 2.85
        (10_000, 20, True),  # z = 3.16
    ],
)
def test_the_border_of_an_objective(requests: int, bad: int, worse: bool) -> None:
    assert worse_than_budget(Counts(requests, bad), 0.001) is worse


def test_the_binomial_tail_is_exact() -> None:
    """Heads at least 8 times of 10: 56 of 1024 ways."""
    assert significance._binomial_tail(10, 8, 0.5) == pytest.approx(56 / 1024)


def test_a_revision_that_is_better_than_the_others_is_never_worse() -> None:
    assert not worse_than_others(Counts(1000, 10), Counts(1000, 500))


@given(amounts, amounts, amounts, amounts)
def test_no_figures_out_of_prometheus_break_it(a: float, b: float, c: float, d: float) -> None:
    """Extrapolated counts are no whole numbers, and two queries may see one scrape more or less."""
    mine, others = Counts(a, b), Counts(c, d)
    assert worse_than_others(mine, others) in (True, False)
    assert worse_than_budget(mine, 0.001) in (True, False)


def test_more_bad_requests_than_requests_are_as_bad_as_all() -> None:
    """The bad ones were counted one scrape later."""
    assert worse_than_others(Counts(100, 105), Counts(1, 0))
    assert worse_than_others(Counts(20, 25), Counts(10, 0))
    assert worse_than_budget(Counts(100, 120), 0.001)


def test_hours_of_much_traffic_beside_a_small_canary_take_no_time() -> None:
    """The operator's loop waits for this: an exact sum over numbers of a million digits would stop it."""
    before = process_time()
    assert worse_than_others(Counts(99, 30), Counts(1e8, 1e6))
    assert not worse_than_others(Counts(99, 5), Counts(1e8, 5e6))
    assert process_time() - before < 1
