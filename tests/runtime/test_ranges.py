"""Values outside a feature's range are refused, by the feature's name, with the value and the range."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotage_runtime import ranges
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.features import Feature

AGE = Feature("age", 0, 120, unit="years")
SHARE = Feature("share", maximum=0.1)
KIND = Feature("kind", categories=(1, 2, 5))
FREE = Feature("free")


def matrix(*features: Feature, datatype: str = "FP32", **changes: Any) -> Contract:
    spec = TensorSpec("X", datatype, (-1, len(features)), **changes)
    return Contract(inputs=(spec,), outputs=(), features=features)


def refusal(contract: Contract, **inputs: Any) -> str:
    with pytest.raises(Refused) as refused:
        ranges.check(contract, inputs)
    assert refused.value.status == 400
    return refused.value.message


@pytest.mark.parametrize("repeated", [1, 100], ids=["in a loop", "at once"])
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_the_feature_its_value_and_its_range_are_named(repeated: int, datatype: str) -> None:
    contract = matrix(AGE, FREE, SHARE, datatype=datatype)
    dtype = contract.inputs[0].dtype
    good = np.array([[0, 7, 0.1], [120, -7, -3]] * repeated, dtype)
    ranges.check(contract, {"X": good})
    bad = good.copy()
    bad[-1, 0] = 140  # in FP16 too
    assert (
        refusal(contract, X=bad)
        == f"feature 'age': 140 came in row {len(bad) - 1}, 0 to 120 years is expected"
    )
    bad = good.copy()
    bad[-2, 2] = 0.25
    assert refusal(contract, X=bad) == (
        f"feature 'share': 0.25 came in row {len(bad) - 2}, at most 0.1 is expected"
    )
    bad = good.copy()
    bad[-1, 0] = -1
    assert (
        refusal(contract, X=bad)
        == f"feature 'age': -1 came in row {len(bad) - 1}, 0 to 120 years is expected"
    )
    assert refusal(contract, X=np.array([[-1, 0, 0]], dtype)) == (
        "feature 'age': -1 came, 0 to 120 years is expected"
    )


@pytest.mark.parametrize("repeated", [1, 100])
def test_nan_is_outside_every_range_unless_the_contract_allows_it(repeated: int) -> None:
    rows = np.array([[np.nan, 1]] * repeated, np.float32)
    assert "feature 'age': nan came" in refusal(matrix(AGE, KIND), X=rows)
    ranges.check(matrix(AGE, KIND, allow_non_finite=True), {"X": rows})
    rows = np.array([[1, np.nan]] * repeated, np.float32)
    assert "feature 'kind': nan came" in refusal(matrix(AGE, KIND), X=rows)
    ranges.check(matrix(AGE, KIND, allow_non_finite=True), {"X": rows})
    ranges.check(matrix(FREE, FREE), {"X": rows})


def test_categories_are_compared_as_the_input_carries_them() -> None:
    contract = matrix(Feature("f", categories=(0.1, 0.2)))
    ranges.check(contract, {"X": np.array([[0.1], [0.2]], np.float32)})
    assert refusal(contract, X=np.array([[0.3]], np.float32)) == (
        "feature 'f': 0.3 came, one of 0.1, 0.2 is expected"
    )
    assert (
        refusal(matrix(KIND, datatype="INT64"), X=np.array([[1], [3]]))
        == "feature 'kind': 3 came in row 1, one of 1, 2, 5 is expected"
    )


def test_each_input_may_be_a_feature() -> None:
    colour = Feature("colour", categories=("red", "blue"))
    contract = Contract(
        inputs=(TensorSpec("age", "INT64", (-1,)), TensorSpec("colour", "BYTES", (-1, 1))),
        outputs=(),
        features=(colour, AGE),
    )
    good = {"age": np.array([30]), "colour": np.array([["red"]], object)}
    ranges.check(contract, good)
    ranges.check(contract, {**good, "colour": np.array([[b"red"]], object)})
    assert "feature 'age': 121 came" in refusal(contract, **{**good, "age": np.array([121])})
    assert (
        refusal(contract, **{**good, "colour": np.array([["x" * 99]], object)})
        == f"feature 'colour': '{'x' * 60}…' came, one of 'red', 'blue' is expected"
    )


def test_a_contract_without_ranges_has_nothing_to_compare(tmp_path: Path) -> None:
    assert matrix(FREE, FREE).bounded_columns == ()
    assert Contract(inputs=(), outputs=()).bounded_columns == ()


def test_a_single_row_costs_microseconds() -> None:
    contract = matrix(*[Feature(f"f{at}", 0, 1) for at in range(30)])
    row = {"X": np.full((1, 30), 0.5, np.float32)}
    best = 1.0
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(20):
            ranges.check(contract, row)
        best = min(best, (time.perf_counter() - started) / 20)
    assert best < 20e-6
