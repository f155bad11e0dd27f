"""Whoever is paged finds a page: for each alert, and for each reason."""

from __future__ import annotations

from typing import get_args

from pilotage_operator.adapters.resources import CHILDREN
from pilotage_operator.api.slo import LatencySLO, SLOSpec
from pilotage_operator.api.status import ConditionStatus, ConditionType, Phase
from pilotage_operator.core.children.rules import prometheus_rule
from pilotage_operator.core.pods import Fault
from pilotage_operator.core.verdict import Outcome
from tests.docs import pages, reasons

RUNBOOKS = pages.DOCS / "runbooks"
SECTIONS = ("What Pilotage did by itself", "Look first", "Do", "When it is wrong")
STAGES = {"Fetch", "Serve", "Image", "Start", "Schedule", "Create"}
OTHER_WORDS = {"PodScheduled", "ReplicaFailure", "Istio"}


def _alerts() -> set[str]:
    slo = SLOSpec(latency=LatencySLO(threshold_milliseconds=500))
    groups = prometheus_rule("m", "n", slo=slo, interval_seconds=15, labels={})["spec"]["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}


def test_each_alert_has_its_runbook_and_each_runbook_its_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("Pilotage*.md")} == _alerts()


def test_a_runbook_answers_the_same_questions_in_the_same_order() -> None:
    for page in RUNBOOKS.glob("Pilotage*.md"):
        headings = [line[3:] for line in page.read_text().splitlines() if line.startswith("## ")]
        assert headings == list(SECTIONS), page.name


def test_each_reason_is_explained_and_each_explained_reason_exists() -> None:
    told = pages.first_column(RUNBOOKS / "conditions.md")
    exist = reasons.of_the_operator() | reasons.of_the_runtime()
    assert exist - set(told) == set(), "not on the page"
    assert set(told) - exist == set(), "on the page, but not in the code"
    assert len(told) == len(set(told)), "explained twice"


def test_no_reason_hides_from_the_search() -> None:
    """Every word in the deciding modules that looks like a reason is one, or is known as something else."""
    others = {
        *get_args(Phase),
        *get_args(ConditionType),
        *get_args(ConditionStatus),
        *get_args(Fault),
        *Outcome,
    }
    others |= {*CHILDREN, *STAGES, *OTHER_WORDS}
    unexplained = reasons.words() - reasons.of_the_operator() - reasons.of_the_runtime() - others
    assert unexplained == set()
