"""A model without its ZipMap answers what it answered with it, as a tensor, and names its classes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from pilotage_runtime.failure import Stage
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format, onnx_zip_map
from pilotage_runtime.loaders.base import LoadOptions, Model
from pilotage_runtime.loaders.onnx_file import MalformedOnnxError

OPTIONS = LoadOptions(threads=1)
ROWS, CLASSES = load_iris(return_X_y=True)
ROWS = ROWS.astype(np.float32)
NAMES = np.array(["setosa", "versicolor", "virginica"])[CLASSES]


@pytest.fixture(scope="module", params=["whole numbers", "negative numbers", "strings"])
def converted(request: pytest.FixtureRequest) -> bytes:
    target: Any = {"whole numbers": CLASSES, "negative numbers": CLASSES - 1, "strings": NAMES}[request.param]
    return to_onnx(LogisticRegression(max_iter=1000).fit(ROWS, target), ROWS[:1]).SerializeToString()


def loaded(model: bytes, folder: Path) -> Model:
    (folder / "model.onnx").write_bytes(model)
    return by_format.load(detect(folder, Stage.LOAD), OPTIONS)


def test_answers_are_those_with_the_zip_map(converted: bytes, tmp_path: Path) -> None:
    label, maps = ort.InferenceSession(converted).run(None, {"X": ROWS})
    model = loaded(converted, tmp_path)
    mine = model.run({"X": ROWS}, ["output_label", "output_probability"])
    assert mine[0].tolist() == label.tolist()
    spec = model.contract().output_by_name["output_probability"]
    assert (spec.datatype, spec.shape) == ("FP32", (-1, 3))
    assert spec.labels == tuple(str(name) for name in maps[0])
    assert mine[1].tolist() == [list(row.values()) for row in maps]


def test_what_is_written_is_a_model_without_a_zip_map(converted: bytes) -> None:
    bare = onnx_zip_map.stripped(converted)
    assert bare is not None
    model = onnx.load_model_from_string(bare.model)
    onnx.checker.check_model(model, full_check=True)
    before = [node.op_type for node in onnx.load_model_from_string(converted).graph.node]
    assert [node.op_type for node in model.graph.node] == [*before[:-1], "Identity"]
    assert onnx_zip_map.stripped(bare.model) is None


def test_a_file_too_large_for_it_is_served_with_its_zip_map(
    converted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = loaded(converted, tmp_path).run({"X": ROWS}, ["output_probability"])[0]
    monkeypatch.setattr(onnx_zip_map, "MOST_BYTES", len(converted) - 1)
    model = loaded(converted, tmp_path)
    assert model.run({"X": ROWS}, ["output_probability"])[0].tolist() == bare.tolist()
    assert len(model.contract().output_by_name["output_probability"].labels) == 3


def test_a_zip_map_that_is_no_output_stays(models: Path) -> None:
    model = onnx.load(models / "iris" / "1" / "model.onnx")
    model.graph.output.pop()  # the probabilities: nothing but the label is left
    assert onnx_zip_map.stripped(model.SerializeToString()) is None


def test_every_model_of_the_demonstration_loses_its_zip_map(models: Path) -> None:
    for folder in (models / "iris" / "1", models / "fraud" / "1", models / "fraud" / "2"):
        model: Any = by_format.load(detect(folder, Stage.LOAD), OPTIONS)
        assert model._zip_maps == frozenset()


def test_damaged_bytes_are_refused_and_never_crash(converted: bytes) -> None:
    chance = random.Random(7)
    for _ in range(300):
        damaged = bytearray(converted)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            onnx_zip_map.stripped(bytes(damaged[: chance.randint(1, len(damaged))]))
        except MalformedOnnxError:
            continue


def test_a_model_in_memory_needs_no_file(converted: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.enc").write_bytes(b"unreadable")
    file = detect(tmp_path / "model.onnx.enc", Stage.LOAD, opened=lambda _: converted)
    assert file.format == "ONNX"
    assert len(by_format.load(file, OPTIONS).run({"X": ROWS}, ["output_probability"])[0]) == len(ROWS)
