"""pydantic and the real API server accept, refuse and fill in the same.

Valid objects are bent at one to three places, mostly at the borders of what their schema allows; both sides
judge what comes out. `PILOTAGE_SEED=N` tries other objects than the usual ones.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pilotage_operator.api.crd import crd
from pilotage_operator.api.modeldeployment import validate
from tests.operator.api.examples import RULE_EXAMPLES, fullest, smallest, with_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from tests.cluster.api_server import ApiServer

SEED = int(os.environ.get("PILOTAGE_SEED", "1"))
EXAMPLES = 800
SPEC = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
Place = tuple[str | int, ...]
DROPPED = object()

_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 1.5, 1e30, 2**63, -(2**63) - 1, "", "x", "1", "100m", "1Gi", "2Ti", "-1",
    "0.5", "1e3", "a\n", "ä", "A", " ", "true", "Exists", "NoExecute", [], [None], {}, {"x": 1}, {"x": None},
)  # fmt: skip
_BASES = (
    smallest(),
    fullest(),
    *(with_value(example.path, example.accepted) for example in RULE_EXAMPLES),
    *(with_value(example.path, example.refused) for example in RULE_EXAMPLES),
)


def _places(value: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _places(below, (*at, name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _places(below, (*at, index))


def _schema(place: Place) -> dict[str, Any]:
    """The schema of a place below spec; empty for what the CRD does not know."""
    found = SPEC
    for part in place:
        if isinstance(part, int):
            found = found.get("items", {})
        else:
            found = found.get("properties", {}).get(part) or found.get("additionalProperties", {})
    return found


def _borders(schema: dict[str, Any], value: Any) -> list[Any]:
    """What lies just within and just outside of what a schema allows."""
    found: list[Any] = list(schema.get("enum", []))
    for bound in (schema.get("minimum"), schema.get("maximum")):
        if bound is not None:
            found += [bound - 1, bound - 0.001, bound, float(bound), bound + 0.001, bound + 1]
    if isinstance(value, str):
        longest = schema.get("maxLength", 30)
        found += [value + "\n", value.upper(), value + ".", "." + value, value + "ä", value + "-", value[:-1]]
        found += [(value + "a" * longest)[:longest], (value + "a" * longest)[: longest + 1]]
    if isinstance(value, list):
        most = schema.get("maxItems", 10)
        found += [value + value, value[::-1], value[1:], [*value, None], (value * (most + 1))[: most + 1]]
    if isinstance(value, dict):
        found += [{**value, "unknown": 1}, {**value, "unknown": None}]
        found += [{**value, name: None} for name in schema.get("properties", {})]
        if "maxProperties" in schema:
            many = schema["maxProperties"]
            found += [{f"a.example/{n}": "1" for n in range(count)} for count in (many, many + 1)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found += [value + 1, value - 1, float(value), str(value), value * 10]
    return found


def _bent(value: Any, place: Place, new: Any) -> Any:
    if not place:
        return deepcopy(new)
    bent = deepcopy(value)
    at = bent
    for part in place[:-1]:
        at = at[part]
    if new is DROPPED:
        del at[place[-1]]
    else:
        at[place[-1]] = deepcopy(new)
    return bent


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """A base, joined with sections of another one, bent at up to three places."""
    found = deepcopy(draw(st.sampled_from(_BASES)))
    other = draw(st.sampled_from(_BASES))
    for section in draw(st.lists(st.sampled_from(sorted(other["spec"])), max_size=2)):
        found["spec"][section] = deepcopy(other["spec"][section])
    for _ in range(draw(st.integers(0, 3))):
        # Only the whole spec is left to bend once everything in it has been dropped.
        place = draw(st.sampled_from([place for place in _places(found["spec"]) if place] or [()]))
        value = found["spec"]
        for part in place:
            value = value[part]
        borders = _borders(_schema(place), value)
        choices = [st.sampled_from(_ODD_VALUES), st.just(DROPPED if place else {})]
        # Twice, since most of what is interesting lies at the borders.
        choices += [st.sampled_from(borders)] * 2 if borders else []
        found["spec"] = _bent(found["spec"], place, draw(st.one_of(choices)))
    return found


def _as_kubectl_sends(value: Any) -> Any:
    """kubectl's JSON has 3 for YAML's 3.0; the API server itself takes 3.0 only where no expression reads it."""
    if isinstance(value, dict):
        return {name: _as_kubectl_sends(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_as_kubectl_sends(below) for below in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


def _judgement(deployment: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What pydantic makes of an object: the spec with its defaults, or why it is refused."""
    try:
        return validate(json.loads(json.dumps(deployment))).spec.to_dict(), ""
    except ValidationError as error:
        return {}, str(error)


def test_pydantic_and_the_api_server_judge_alike(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts: Counter[str] = Counter()

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(objects())
    def judge_alike(deployment: dict[str, Any]) -> None:
        answer = api.dry_run(_as_kubectl_sends(deployment))
        assert answer.status_code in (201, 400, 422), answer.text
        theirs = answer.json()["message" if answer.is_error else "spec"]
        ours, refusal = _judgement(deployment)
        verdicts["refused" if refusal else "accepted"] += 1
        if refusal or answer.is_error:
            assert refusal, f"only the API server refuses: {theirs}"
            assert answer.is_error, f"only pydantic refuses: {refusal}"
        else:
            assert ours == theirs

    with capsys.disabled():
        print(f"\nsame verdict: PILOTAGE_SEED={SEED}", end=" ", flush=True)
        judge_alike()
        print(dict(verdicts), end=" ")
    # Else the objects show nothing: all bad, or all good.
    assert min(verdicts["accepted"], verdicts["refused"]) > EXAMPLES / 8, verdicts
