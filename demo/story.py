"""The story, told and recorded: version 1 serves, 2 takes over in steps, 3 is bad and is taken back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from demo.load import Load
from demo.site import HOST, Site

NAME = "fraud"
PAYLOADS = "requests/fraud.jsonl"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stretch:
    """A time in which the phase and the new version's weight stayed as they were."""

    began: float
    """Seconds since the change."""
    phase: str
    weight: int
    """The new version's percent in the live routes."""
    sent: int
    failed: int


@dataclass
class Chapter:
    """One change of the spec and what was seen of it."""

    title: str
    began: float
    ended: float = 0
    seen: list[tuple[float, str, int]] = field(default_factory=list[tuple[float, str, int]])
    """(`time.time()`, phase, the new version's percent in the live routes), where one of them changed."""
    stretches: list[Stretch] = field(default_factory=list[Stretch])
    sent: int = 0
    failed: int = 0
    first_bad: float | None = None
    """`time.time()` at which the first request that got a bad answer was sent."""
    status: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def weights(self) -> list[int]:
        """The new version's weights in their order."""
        found = [weight for _, _, weight in self.seen]
        return [weight for at, weight in enumerate(found) if at == 0 or weight != found[at - 1]]

    @property
    def seconds_to_revert(self) -> float | None:
        """From the first bad answer to weight 0 in the live routes."""
        reverted = self.status.get("rollback", {}).get("trafficRevertedAt")
        if reverted is None or self.first_bad is None:
            return None
        return datetime.fromisoformat(reverted).timestamp() - self.first_bad


def load(site: Site, *, per_second: float = 50, slow_after_seconds: float | None = None) -> Load:
    payloads = [line.encode() for line in (site.models / PAYLOADS).read_text().splitlines() if line]
    url = f"{site.cluster.gateway_url}/v2/models/{NAME}/infer"
    return Load(url, HOST, payloads, per_second=per_second, slow_after_seconds=slow_after_seconds)


def change(site: Site, traffic: Load, title: str, *, version: str, until: str, say: Say) -> Chapter:
    """Serve a version and follow its rollout until the phase is `until` and nothing rolls out any more."""
    chapter = Chapter(title, began=time.time())
    say(f"== {title}")
    before = site.status(NAME).get("stable", {}).get("revision")
    site.serve(NAME, version)
    generation = _generation(site)
    told = ""

    def over(status: dict[str, Any]) -> bool:
        return (
            status.get("phase") == until
            and "canary" not in status
            and status.get("observedGeneration") == generation
            and time.time() - chapter.began > 3
        )

    for at, status in site.wait(NAME, over, seconds=300):
        taken_over = 100 if status["stable"]["revision"] != before else 0
        weight = status["canary"].get("appliedWeight", 0) if "canary" in status else taken_over
        if not chapter.seen or chapter.seen[-1][1:] != (status["phase"], weight):
            chapter.seen.append((at, status["phase"], weight))
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")
        if ready["message"] != told:
            told = ready["message"]
            say(f"{at - chapter.began:6.1f} s  {status['phase']:<11}  {told}")
        chapter.status = status
    time.sleep(1)
    chapter.ended = time.time()
    chapter.first_bad = min(
        (a.at for a in traffic.between(chapter.began, chapter.ended) if traffic.bad(a)), default=None
    )
    chapter.stretches = [
        _stretch(chapter, traffic, one, other[0])
        for one, other in pairwise([*chapter.seen, (chapter.ended, "", 0)])
    ]
    chapter.sent, chapter.failed = _count(traffic, chapter.began, chapter.ended)
    return chapter


def _stretch(chapter: Chapter, traffic: Load, seen: tuple[float, str, int], ended: float) -> Stretch:
    at, phase, weight = seen
    return Stretch(at - chapter.began, phase, weight, *_count(traffic, at, ended))


def _count(traffic: Load, began: float, ended: float) -> tuple[int, int]:
    """Requests sent in a time, and how many of them got a bad answer."""
    answers = traffic.between(began, ended)
    return len(answers), sum(map(traffic.bad, answers))


def _generation(site: Site) -> int:
    found = site.get("modeldeployment", NAME)
    assert found is not None
    return found["metadata"]["generation"]
