"""The story, told and recorded: version 1 serves, 2 takes over in steps, 3 is bad and is taken back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from demo.load import Load
from demo.site import HOST, Site

NAME = "fraud"
PAYLOADS = "requests/fraud.jsonl"
Say = Callable[[str], None]


@dataclass
class Chapter:
    """One change of the spec and what was seen of it."""

    title: str
    began: float
    ended: float = 0
    weights: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """(seconds since the change, the new version's percent in the live routes)."""
    sent: int = 0
    failed: int = 0
    first_bad: float | None = None
    """Seconds since the change."""
    last_bad: float | None = None
    status: dict[str, Any] = field(default_factory=dict[str, Any])


def load(site: Site, *, per_second: float = 50, slow_after_seconds: float | None = None) -> Load:
    payloads = [line.encode() for line in (site.models / PAYLOADS).read_text().splitlines() if line]
    url = f"{site.cluster.gateway_url}/v2/models/{NAME}/infer"
    return Load(url, HOST, payloads, per_second=per_second, slow_after_seconds=slow_after_seconds)


def change(site: Site, traffic: Load, title: str, *, version: str, until: str, say: Say) -> Chapter:
    """Serve a version and follow its rollout until the phase is `until` and nothing rolls out any more."""
    chapter = Chapter(title, began=time.time())
    say(f"== {title}")
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
        weight = status.get("canary", {}).get("appliedWeight", 0)
        if not chapter.weights or chapter.weights[-1][1] != weight:
            chapter.weights.append((at - chapter.began, weight))
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")
        if ready["message"] != told:
            told = ready["message"]
            say(f"{at - chapter.began:6.1f} s  {status['phase']:<11}  {told}")
        chapter.status = status
    time.sleep(1)
    chapter.ended = time.time()
    answers = traffic.between(chapter.began, chapter.ended)
    bad = sorted(answer.at for answer in answers if traffic.bad(answer))
    chapter.sent, chapter.failed = len(answers), len(bad)
    if bad:
        chapter.first_bad, chapter.last_bad = bad[0] - chapter.began, bad[-1] - chapter.began
    return chapter


def _generation(site: Site) -> int:
    found = site.get("modeldeployment", NAME)
    assert found is not None
    return found["metadata"]["generation"]
