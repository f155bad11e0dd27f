"""The rules about silent pods, neighbours and what a person reads, run by `promtool`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.scenario import CANARY, STABLE, Scenario

GONE = "PilotageRevisionGone"
FAILING = "PilotageRevisionFailing"
SILENT = 300
"""The second of the first scrape that fails."""


@pytest.fixture(params=[5, 15], ids=["scraped every 5 s", "scraped every 15 s"])
def world(request: pytest.FixtureRequest) -> Scenario:
    """A stable revision whose pod answers every scrape."""
    world = Scenario(interval=request.param)
    world.scraped(STABLE, "stable-a", (0, 1))
    return world


def test_a_revision_whose_pods_all_miss_two_scrapes_is_gone(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.scraped(CANARY, "canary-a", (0, 1), (SILENT, 0))
    world.scraped(CANARY, "canary-b", (60, 1), (SILENT, 0))
    world.is_silent_until(second=SILENT)
    world.fires(GONE, CANARY, at=SILENT + 2 * world.interval)
    world.never_acts(STABLE)
    world.check(promtool, tmp_path)


def test_one_missed_scrape_is_nothing(world: Scenario, promtool: Path, tmp_path: Path) -> None:
    world.scraped(CANARY, "canary-a", (0, 1), (SILENT, 0), (SILENT + world.interval, 1))
    world.never_acts()
    world.check(promtool, tmp_path)


def test_a_revision_with_one_pod_left_is_not_gone(world: Scenario, promtool: Path, tmp_path: Path) -> None:
    world.scraped(CANARY, "canary-a", (0, 1), (SILENT, 0))
    world.scraped(CANARY, "canary-b", (0, 1))
    world.never_acts()
    world.check(promtool, tmp_path)


def test_a_pod_that_was_replaced_is_not_gone(world: Scenario, promtool: Path, tmp_path: Path) -> None:
    """Its last scrapes failed while it shut down; then it was no target any more. Another serves since."""
    world.scraped(CANARY, "canary-a", (0, 1), (SILENT, 0), until=SILENT + 2 * world.interval)
    world.scraped(CANARY, "canary-b", (SILENT + world.interval, 1))
    world.never_acts()
    world.check(promtool, tmp_path)


def test_pods_that_start_are_not_gone(world: Scenario, promtool: Path, tmp_path: Path) -> None:
    """A pod that loads its model for minutes has no metrics yet, and never had."""
    world.scraped(CANARY, "canary-a", (60, 0), (420, 1))
    world.scraped(CANARY, "canary-b", (60, 0), (480, 1))
    world.never_acts()
    world.check(promtool, tmp_path)


def test_names_are_matched_as_they_are_and_neighbours_do_not_count(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    """A name is no pattern: `fraud` is neither `fraud-2` nor a part of it, whatever its revisions are called."""
    world.serves(STABLE, (0, {"200": 90}))
    for neighbour in ("fraud-2", "fraudx", "a|fraud", "fraud.*"):
        world.serves(f"{neighbour}-1", (0, {"500": 10}), name=neighbour)
        world.serves(f"{neighbour}-2", (0, {"200": 10}), name=neighbour)
    world.never_acts()
    world.check(promtool, tmp_path)


@pytest.mark.parametrize("name", ["fraud.*", "a|b", "(", "[a", "f$", "f?"])
def test_a_name_of_special_characters_breaks_no_query(promtool: Path, tmp_path: Path, name: str) -> None:
    """The API refuses such names; a rule file that did not parse would silence its whole group."""
    world = Scenario(interval=5, name=name, namespace=name)
    world.serves(f"{name}-1", (0, {"200": 90}))
    world.serves(f"{name}-2", (60, {"200": 5, "500": 5}))
    world.fires(FAILING, f"{name}-2", at=75)
    world.never_acts(f"[{name[0]}].*-1" if name[0] == "(" else "none")
    world.check(promtool, tmp_path)


def test_what_a_person_reads(promtool: Path, tmp_path: Path) -> None:
    world = Scenario(interval=5)
    world.scraped(STABLE, "stable-a", (0, 1))
    world.scraped(CANARY, "canary-a", (0, 1), (SILENT, 0))
    world.scraped(CANARY, "canary-b", (0, 1), (SILENT, 0))
    world.tells(
        GONE,
        at=SILENT + 10,
        labels={
            "severity": "page",
            "pilotage_action": "rollback",
            "slo": "liveness",
            "namespace": "shop",
            "modeldeployment": "fraud",
            "revision": CANARY,
        },
        annotations={
            "summary": f"No pod of revision {CANARY} answered its last two scrapes.",
            "description": "2 pods that answered before are silent now.",
            "threshold": "0",
        },
    )
    world.check(promtool, tmp_path)


def test_all_revisions_silent_at_once_is_the_fault_of_none(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    """Prometheus is cut off from the nodes: what it cannot see, it cannot blame."""
    cut = Scenario(interval=world.interval)
    cut.scraped(STABLE, "stable-a", (0, 1), (SILENT, 0))
    cut.scraped(CANARY, "canary-a", (0, 1), (SILENT, 0))
    cut.never_acts()
    cut.check(promtool, tmp_path)


def test_the_only_revision_is_told_when_it_falls_silent(promtool: Path, tmp_path: Path) -> None:
    alone = Scenario(interval=5)
    alone.scraped(STABLE, "stable-a", (0, 1), (SILENT, 0))
    alone.fires(GONE, STABLE, at=SILENT + 10)
    alone.check(promtool, tmp_path)
