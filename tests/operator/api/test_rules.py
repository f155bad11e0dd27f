"""Every rule that spans fields, and every format: what pydantic accepts and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from pilotage_operator.api import rules
from pilotage_operator.api.crd import crd
from pilotage_operator.api.modeldeployment import validate
from tests.operator.api.examples import RENAMED, RULE_EXAMPLES, RuleExample, smallest, with_value

if TYPE_CHECKING:
    from collections.abc import Iterator


def _messages(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for check in schema.get("x-kubernetes-validations", []):
            yield check["message"]
        for below in schema.values():
            yield from _messages(below)
    elif isinstance(schema, list):
        for below in schema:
            yield from _messages(below)


@pytest.mark.parametrize("example", RULE_EXAMPLES, ids=lambda example: example.id)
def test_a_rule_lets_the_good_pass_and_refuses_the_bad_in_its_own_words(example: RuleExample) -> None:
    validate(with_value(example.path, example.accepted))
    with pytest.raises(ValidationError) as refusal:
        validate(with_value(example.path, example.refused))
    said = [error["msg"] for error in refusal.value.errors()]
    assert any(message.endswith(example.message) for message in said), said


def test_every_expression_of_the_crd_has_an_example() -> None:
    expressions = set(_messages(crd()))
    assert expressions == {example.message for example in RULE_EXAMPLES} | {RENAMED}


def test_all_broken_rules_are_told_at_once_with_their_paths() -> None:
    bad = smallest()
    bad["spec"] |= {"scaling": {"minReplicas": 11}, "rollout": {"steps": [{"weight": 50}, {"weight": 100}]}}
    with pytest.raises(ValidationError) as refusal:
        validate(bad)
    message = refusal.value.errors()[0]["msg"]
    assert "spec.scaling: minReplicas must not be above" in message
    assert "spec.rollout.steps[1].weight: a step's weight must be below 100" in message


@pytest.mark.parametrize(
    ("before", "after", "allowed"),
    [
        (None, "fraud", True),
        ("fraud", None, True),
        ("other", "other", True),
        (None, "other", False),
        ("other", None, False),
        ("one", "two", False),
    ],
)
def test_the_models_name_cannot_change(before: str | None, after: str | None, allowed: bool) -> None:
    old = validate(with_value("spec.model.name", before))
    wanted = with_value("spec.model.name", after)
    if allowed:
        validate(wanted, old)
    else:
        with pytest.raises(ValueError, match=r"spec\.model\.name cannot be changed"):
            validate(wanted, old)


def test_a_rule_with_a_misspelt_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", (replace(rules.RULES[-1], path="spec.rolout"),))
    with pytest.raises(LookupError, match=r"rule for spec\.rolout"):
        crd()
    with pytest.raises(LookupError, match="no field rolout"):
        validate(smallest())
