"""The operator's own metrics of each ModelDeployment."""

from __future__ import annotations

from prometheus_client import REGISTRY

from pilotage_operator.adapters import telemetry


def value(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(metric, {"namespace": "shop", "modeldeployment": "told", **labels})


def test_a_modeldeployment_is_in_one_phase_at_a_time_and_gone_with_its_object() -> None:
    shown = telemetry.Shown()
    shown.show("shop", "told", "Stable")
    assert value("pilotage_rollbacks_total") == 0
    shown.show("shop", "told", "Holding")
    assert value("pilotage_phase", phase="Stable") is None
    assert value("pilotage_phase", phase="Holding") == 1
    shown.forget("shop", "told")
    assert value("pilotage_phase", phase="Holding") is None
    assert value("pilotage_rollbacks_total") is None
    shown.forget("shop", "told")
