"""Is a share of bad requests worse than another's, or than an objective, beyond bad luck?

Two-proportion z-test, pooled, one-sided; below 100 requests Fisher's exact test, and against an objective the
exact binomial tail. All three use the same error rate: P(Z > 3) = 0.00135.
"""

from __future__ import annotations

from math import comb, exp, lgamma, sqrt

from pilotage_operator.core.objectives import LEAST_BAD_REQUESTS, SIGNIFICANT_Z
from pilotage_operator.core.signals import Counts

ERROR_RATE = 0.00135
_EXACT_BELOW = 100


def worse_than_others(mine: Counts, others: Counts) -> bool:
    """Whether `mine` is significantly worse than `others`; False with fewer than five bad requests."""
    mine, others = _sound(mine), _sound(others)
    if mine.bad < LEAST_BAD_REQUESTS or others.requests < 1 or mine.share <= others.share:
        return False
    if mine.requests < _EXACT_BELOW:
        return _fisher(mine, others) < ERROR_RATE
    pooled = (mine + others).share
    spread = sqrt(pooled * (1 - pooled) * (1 / mine.requests + 1 / others.requests))
    return mine.share - others.share > SIGNIFICANT_Z * spread


def worse_than_budget(mine: Counts, budget: float) -> bool:
    """Whether `mine` is significantly above the share that an objective allows."""
    mine = _sound(mine)
    if mine.bad < LEAST_BAD_REQUESTS or mine.share <= budget:
        return False
    if mine.requests < _EXACT_BELOW:
        return _binomial_tail(round(mine.requests), round(mine.bad), budget) < ERROR_RATE
    spread = sqrt(budget * (1 - budget) / mine.requests)
    return mine.share - budget > SIGNIFICANT_Z * spread


def _sound(counts: Counts) -> Counts:
    """At most all requests are bad, though the bad ones may have been counted one scrape later."""
    return Counts(counts.requests, min(counts.bad, counts.requests))


def _fisher(mine: Counts, others: Counts) -> float:
    """P(at least this many of all the bad requests fall on `mine` by chance): hypergeometric tail."""
    drawn, rest = round(mine.requests), round(others.requests)
    bad = round(mine.bad) + round(others.bad)
    # In logarithms: with a day's traffic the exact numbers have a million digits.
    total = _log_comb(drawn + rest, bad)
    return sum(
        exp(_log_comb(drawn, k) + _log_comb(rest, bad - k) - total)
        for k in range(round(mine.bad), min(drawn, bad) + 1)
    )


def _log_comb(items: int, chosen: int) -> float:
    return lgamma(items + 1) - lgamma(chosen + 1) - lgamma(items - chosen + 1)


def _binomial_tail(requests: int, bad: int, share: float) -> float:
    return sum(comb(requests, k) * share**k * (1 - share) ** (requests - k) for k in range(bad, requests + 1))
