"""The rendered rules, run by Prometheus' own `promtool` over scripted traffic."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.contract.scenario import CANARY, STABLE, Scenario, run

ROLLED_OUT = 60
"""The second at which the canary's series appear."""
LATENCY = {"latency": {"thresholdMilliseconds": 500, "objectivePercent": 99}}
FAILING = "PilotageRevisionFailing"
SLOW = "PilotageRevisionSlow"
REFUSING = "PilotageRevisionRefusing"
BURN = "PilotageErrorBudgetBurn"


@pytest.fixture(params=[5, 15], ids=["scraped every 5 s", "scraped every 15 s"])
def world(request: pytest.FixtureRequest) -> Scenario:
    return Scenario(interval=request.param)


@pytest.mark.parametrize("interval", [1, 5, 15, 30, 60, 75, 300])
@pytest.mark.parametrize("slo", [{}, LATENCY, {"availability": {"objectivePercent": 99.999}}])
def test_prometheus_accepts_the_rules(promtool: Path, tmp_path: Path, interval: int, slo: dict) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(Scenario(interval=interval, slo=slo).rule_file()))
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(rules))


def test_a_canary_that_fails_half_of_its_requests_is_told_two_scrapes_after_the_first_bad_one(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 5, "500": 5}))
    first_bad_scrape = ROLLED_OUT + world.interval
    world.is_silent(at=ROLLED_OUT)
    world.fires(FAILING, CANARY, at=first_bad_scrape + 2 * world.interval)
    world.never_acts(STABLE)
    world.check(promtool, tmp_path)


def test_a_canary_that_turns_bad_later_is_told_two_scrapes_after_the_first_bad_one(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    turns_bad = ROLLED_OUT + 120
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 10}), (turns_bad, {"200": 5, "503": 5}))
    world.is_silent(at=turns_bad - world.interval)
    world.fires(FAILING, CANARY, at=turns_bad + 2 * world.interval)
    world.check(promtool, tmp_path)


def test_five_percent_of_errors_are_told_within_a_minute(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 9.5, "500": 0.5}))
    world.fires(FAILING, CANARY, at=ROLLED_OUT + 60)
    world.never_acts(STABLE)
    world.check(promtool, tmp_path)


def test_a_dead_canary_at_two_requests_a_second_is_told_within_five_minutes(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.serves(STABLE, (0, {"200": 1.8}))
    world.serves(CANARY, (ROLLED_OUT, {"500": 0.2}))
    world.fires(FAILING, CANARY, at=ROLLED_OUT + 300)
    world.never_acts(STABLE)
    world.check(promtool, tmp_path)


def test_one_error_of_four_requests_is_bad_luck(world: Scenario, promtool: Path, tmp_path: Path) -> None:
    once = 1 / world.interval
    seen = ROLLED_OUT + 2 * world.interval
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(
        CANARY, (ROLLED_OUT, {}), (seen, {"200": 3 * once, "500": once}), (seen + world.interval, {})
    )
    world.never_acts()
    world.check(promtool, tmp_path)


def test_an_outage_that_all_share_moves_no_traffic_but_pages(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    outage = ROLLED_OUT + 330
    world.serves(STABLE, (0, {"200": 90}), (outage, {"200": 85.5, "503": 4.5}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 10}), (outage, {"200": 9.5, "503": 0.5}))
    world.never_acts()
    for revision in (STABLE, CANARY):
        world.fires(BURN, revision, at=outage + 240)
    world.check(promtool, tmp_path)


def test_a_canary_that_starts_within_an_outage_is_not_blamed_for_it(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.serves(STABLE, (0, {"200": 85.5, "503": 4.5}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 9.5, "503": 0.5}))
    world.never_acts(CANARY)
    world.check(promtool, tmp_path)


@pytest.mark.parametrize(
    ("milliseconds", "le"),
    [(500, "0.5"), (1000, "1"), (1000, "1.0"), (30000, "30.0"), (5000, "5"), (2500, "2.5")],
)
def test_late_answers_count_against_latency_however_the_bound_is_spelt(
    promtool: Path, tmp_path: Path, milliseconds: int, le: str
) -> None:
    latency = {"thresholdMilliseconds": milliseconds, "objectivePercent": 99}
    world = Scenario(interval=5, slo={"latency": latency})
    world.answers_in_time(STABLE, (0, {"fast": 90}), le=le)
    world.answers_in_time(CANARY, (ROLLED_OUT, {"fast": 5, "slow": 5}), le=le)
    world.fires(SLOW, CANARY, at=ROLLED_OUT + 15)
    world.never_acts(STABLE)
    world.check(promtool, tmp_path)


@pytest.mark.parametrize("le", ["0.5", "1.0"])
def test_answers_in_time_are_no_fault(promtool: Path, tmp_path: Path, le: str) -> None:
    latency = {"thresholdMilliseconds": round(1000 * float(le)), "objectivePercent": 99}
    world = Scenario(interval=5, slo={"latency": latency})
    world.answers_in_time(STABLE, (0, {"fast": 90}), le=le)
    world.answers_in_time(CANARY, (ROLLED_OUT, {"fast": 9.95, "slow": 0.05}), le=le)
    world.never_acts()
    world.check(promtool, tmp_path)


def test_a_renamed_input_that_only_the_canary_refuses_is_told(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(CANARY, (ROLLED_OUT, {"400": 10}))
    world.fires(REFUSING, CANARY, at=ROLLED_OUT + 3 * world.interval)
    world.is_silent(at=ROLLED_OUT + 300, alert=FAILING)
    world.check(promtool, tmp_path)


@pytest.mark.parametrize("others", ["serving", "absent"])
def test_a_canary_that_sheds_its_load_fails_beside_others_and_alone(
    world: Scenario, promtool: Path, tmp_path: Path, others: str
) -> None:
    if others == "serving":
        world.serves(STABLE, (0, {"200": 90}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 1, "429": 9}))
    world.fires(FAILING, CANARY, at=ROLLED_OUT + 3 * world.interval)
    world.is_silent(at=ROLLED_OUT + 300, alert=REFUSING)
    world.fires(BURN, CANARY, at=ROLLED_OUT + 300)
    world.check(promtool, tmp_path)


def test_wrong_requests_to_all_and_to_one_alone_are_the_callers_fault(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    world.serves(STABLE, (0, {"200": 30, "400": 60}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 3.3, "400": 6.7}))
    world.never_acts()
    world.check(promtool, tmp_path)


@pytest.mark.parametrize("stable", ["idle", "absent"])
def test_with_nothing_to_compare_with_the_objective_decides(
    world: Scenario, promtool: Path, tmp_path: Path, stable: str
) -> None:
    if stable == "idle":
        world.serves(STABLE, (0, {}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 9.5, "500": 0.5}))
    world.fires(FAILING, CANARY, at=ROLLED_OUT + 60)
    world.check(promtool, tmp_path)


def test_a_burst_within_one_scrape_is_seen_because_error_series_are_born_at_0(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    burst = ROLLED_OUT + 120
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(
        CANARY, (ROLLED_OUT, {"200": 10}), (burst, {"500": 10}), (burst + world.interval, {"200": 10})
    )
    world.fires(FAILING, CANARY, at=burst)
    world.check(promtool, tmp_path)


def test_the_same_burst_in_a_series_born_with_it_goes_unseen(
    world: Scenario, promtool: Path, tmp_path: Path
) -> None:
    """The control of the test above: why the runtime creates its series at 0."""
    burst = ROLLED_OUT + 120
    world.serves(STABLE, (0, {"200": 90}))
    world.serves(CANARY, (ROLLED_OUT, {"200": 10}), codes=("200",))
    world.serves(CANARY, (burst, {"500": 10}), (burst + world.interval, {}), codes=("500",), born_at_0=False)
    world.never_acts()
    world.check(promtool, tmp_path)


@pytest.mark.parametrize(("bad", "pages"), [(1, False), (12, True)])
def test_a_single_bad_answer_among_few_wakes_nobody(
    promtool: Path, tmp_path: Path, bad: int, pages: bool
) -> None:
    world = Scenario(interval=15)
    world.serves(STABLE, (0, {"200": 0.05}), (300, {"200": 0.05, "500": bad / 15}), (315, {"200": 0.05}))
    if pages:
        world.fires(BURN, STABLE, at=420)
    else:
        world.is_silent_until(second=600, alert=BURN)
    world.check(promtool, tmp_path)
