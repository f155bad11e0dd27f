"""Latencies in buckets one per cent wide: constant memory however many, each percentile within that."""

import itertools
import math
from collections.abc import Iterator, Sequence

_STEP = math.log(1.01)
_SMALLEST = 1e-6
_BUCKETS = 2200  # up to about 3000 s; what takes longer counts in the last
# What a person asks for, as the share of requests that were faster.
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Histogram:
    """Counts durations in seconds."""

    def __init__(self) -> None:
        self.total = 0
        self.longest = 0.0
        self.sum = 0.0
        self._counts = [0] * _BUCKETS

    def add(self, seconds: float) -> None:
        """Count one."""
        at = int(math.log(seconds / _SMALLEST) / _STEP) if seconds > _SMALLEST else 0
        self._counts[min(at, _BUCKETS - 1)] += 1
        self.total += 1
        self.sum += seconds
        if seconds > self.longest:  # noqa: PLR1730 - a call of max() costs more, a thousand times over
            self.longest = seconds

    def percentile(self, percent: float) -> float:
        """Give the duration that this share stayed below; 0 where nothing was counted."""
        wanted = math.ceil(self.total * percent / 100)
        seen = 0
        for at, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return self.longest if at == _BUCKETS - 1 else min(_upper(at), self.longest)
        return self.longest

    def grouped(self) -> Iterator[tuple[float, float, int]]:
        """Give (from, to, count) by the steps 1, 2, 5, 10 and so on that hold anything, those in between included."""
        counted = [(_upper(at), count) for at, count in enumerate(self._counts) if count]
        if not counted:
            return
        bounds = _bounds(counted[0][0], counted[-1][0])
        for low, high in itertools.pairwise(bounds):
            yield low, high, sum(count for upper, count in counted if low < upper <= high)


def _upper(bucket: int) -> float:
    return _SMALLEST * math.exp((bucket + 1) * _STEP)


def _bounds(low: float, high: float) -> Sequence[float]:
    """Lay steps around a span so that it has at least a handful: 1, 2, 5 where it is wide, finer where narrow."""
    fine = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    for steps in ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), fine):
        decade = 10.0 ** math.floor(math.log10(low))
        bounds = [decade]
        at = 0
        while bounds[-1] < high:
            at += 1
            bounds.append(decade * 10 ** (at // len(steps)) * steps[at % len(steps)])
        while len(bounds) > 1 and bounds[1] < low:
            bounds.pop(0)
        if len(bounds) > 6:
            break
    return bounds
