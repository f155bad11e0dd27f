"""Predictions by class and refusals by feature, as Prometheus reads them, under names that stay true."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pilotage_runtime import names
from pilotage_runtime.classes import Classes
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.features import Feature
from pilotage_runtime.names import Names
from pilotage_runtime.telemetry import Exposition, ModelLabels, Sheet, Slot
from tests.runtime import scripted
from tests.runtime.conftest import Server, Servers, eventually
from tests.runtime.test_http import request
from tests.runtime.test_workers import worker_pids

SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [7.7, 2.6, 6.9, 2.3]


def probabilities(width: int, *labels: str) -> Contract:
    output = TensorSpec("probabilities", "FP32", (-1, width), labels=labels)
    return Contract((), (TensorSpec("label", "INT64", (-1,)), output))


def label(datatype: str, *labels: str, name: str = "label") -> Contract:
    return Contract((), (TensorSpec(name, datatype, (-1,), labels=labels),))


def shown(sheet: Sheet, metric: str) -> dict[str, float]:
    text = Exposition(lambda: {1: ModelLabels("m", "7")}, [sheet]).text().decode()
    found = dict[str, float]()
    for line in text.splitlines():
        if line.startswith(f"{metric}{{"):
            labels, value = line.removeprefix(f"{metric}{{").rsplit("} ", 1)
            found[labels.split('"')[1]] = float(value)
    return found


def classified(contract: Contract, *values: Any) -> dict[str, float]:
    sheet = Sheet()
    slot = sheet.slot(1)
    slot.start(0)
    classes = Classes(contract, slot)
    for value in values:
        classes.count(value)
    return shown(sheet, "inference_predictions_total")


@pytest.mark.parametrize("repeated", [1, 100], ids=["in a loop", "at once"])
def test_a_rows_class_is_the_likeliest_and_every_class_is_there_from_the_start(repeated: int) -> None:
    rows = np.array(
        [[0.1, 0.7, 0.2], [0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [np.nan, 0.9, 0]] * repeated, np.float32
    )
    # What is no number is of no class.
    assert classified(probabilities(3, "low", "middle", "high"), rows) == {
        "low": repeated,
        "middle": 2 * repeated,
        "high": 0,
    }
    assert classified(probabilities(3), rows).keys() == {"0", "1", "2"}


@pytest.mark.parametrize("repeated", [1, 100])
def test_the_positive_class_alone_stands_for_two(repeated: int) -> None:
    rows = np.array([[0.2], [0.9], [0.5]] * repeated, np.float32)
    assert classified(probabilities(1, "no", "yes"), rows) == {"no": repeated, "yes": 2 * repeated}


def test_a_width_that_the_contract_leaves_open_is_learnt() -> None:
    assert classified(probabilities(-1), np.array([[0.1, 0.2, 0.7]])) == {"0": 0, "1": 0, "2": 1}


@pytest.mark.parametrize(
    ("contract", "value", "counted"),
    [
        (label("INT64"), np.array([3, 3, -1]), {"3": 2, "-1": 1}),
        (label("INT64"), np.array([[3], [4]]), {"3": 1, "4": 1}),
        (label("INT64", "no", "yes", name="verdict"), np.array([1, 1, 2]), {"no": 0, "yes": 2, "2": 1}),
        (label("BYTES"), np.array(["cat", b"dog", "cat"], object), {"cat": 2, "dog": 1}),
        (label("BYTES"), np.array(["other", "x" * 100], object), {"x" * 61 + "…": 1, "other": 1}),
    ],
)
def test_without_probabilities_the_label_is_the_class(
    contract: Contract, value: Any, counted: dict[str, float]
) -> None:
    assert classified(contract, value) == counted


def test_a_number_that_is_no_label_is_no_class() -> None:
    contract = label("INT64", name="variable")
    assert Classes(contract, Sheet().slot(1)).output is None


def test_beyond_the_bound_classes_are_others() -> None:
    counted = classified(label("INT64"), np.arange(100), np.arange(100))
    assert len(counted) == names.MOST + 1
    assert counted["other"] == 2 * (100 - names.MOST)
    assert {count for name, count in counted.items() if name != "other"} == {2}


def test_names_keep_their_places_whoever_writes_them() -> None:
    memory = memoryview(bytearray(names.BYTES))
    first, second = Names(memory), Names(memory)
    assert first.places(["a", "b"]) == [0, 1]
    assert second.places(["c", "b", "a"]) == [2, 1, 0]
    assert first.place("d") == 3
    assert Names(memory).listed() == ["a", "b", "c", "d"]
    assert first.place("a\0b") == second.place("ab")


def test_names_of_threads_do_not_overwrite_each_other() -> None:
    memory = memoryview(bytearray(names.BYTES))
    places = dict[str, int]()

    def write(mine: range) -> None:
        own = Names(memory)
        for number in mine:
            places[str(number)] = own.place(str(number))

    threads = [threading.Thread(target=write, args=(range(at, 64, 4),)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(places.values()) == list(range(64))
    assert {name: at for at, name in enumerate(Names(memory).listed())} == places


def test_a_count_keeps_its_name_when_a_version_is_replaced_by_other_classes() -> None:
    old, new = Sheet(), Sheet()
    for sheet in (old, new):
        sheet.slot(1).start(0)
        Classes(probabilities(2, "no", "yes"), sheet.slot(1)).count(np.array([[0.1, 0.9]]))
    # One worker has the new file already, the other has not.
    Classes(probabilities(3, "maybe", "yes", "no"), new.slot(1)).count(np.array([[0.8, 0.1, 0.1]]))
    text = Exposition(lambda: {1: ModelLabels("m", "7")}, [old, new]).text().decode()
    for name, count in (("no", 0), ("yes", 2), ("maybe", 1)):
        assert f'inference_predictions_total{{class="{name}",model="m",version="7"}} {count}.0' in text


def test_a_successor_goes_on_under_its_predecessors_names() -> None:
    descriptor = os.memfd_create("sheet")
    first = Sheet(descriptor)
    first.slot(1).start(0)
    Classes(label("BYTES"), first.slot(1)).count(np.array(["b", "a"], object))
    successor = Sheet(descriptor)
    successor.slot(1).start(0)
    Classes(label("BYTES"), successor.slot(1)).count(np.array(["a"], object))
    assert shown(Sheet(descriptor), "inference_predictions_total") == {"b": 1, "a": 2}


def test_names_of_models_do_not_touch() -> None:
    sheet = Sheet()
    slots: list[Slot] = [sheet.slot(number) for number in (1, 2)]
    for slot in slots:
        slot.classes.places(f"{'c' * 60}{at}" for at in range(names.MOST))
        slot.features.places(f"{'f' * 60}{at}" for at in range(names.MOST))
        for at in range(names.PLACES):
            slot.classified(at, 1)
    assert all(slot.classes.listed()[-1] == "c" * 60 + "63" for slot in slots)
    assert all(slot.features.listed()[0] == "f" * 60 + "0" for slot in slots)
    assert slots[0].in_flight == slots[1].in_flight == 0
    assert not slots[1].loaded


def test_pinned_rows_in_a_batch_are_of_no_class() -> None:
    contract = Contract(
        (TensorSpec("x", "FP32", (-1,)),),
        (TensorSpec("probabilities", "FP32", (-1, 2), labels=("no", "yes")),),
    )
    sheet = Sheet()
    engine = scripted.engine(described=contract, sheet=sheet)
    entries = [scripted.Unheard(rows, unseen=unseen) for rows, unseen in ((1, False), (2, True), (1, False))]
    value = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8]])
    engine.predicted(entries, contract.outputs, [value])
    assert shown(sheet, "inference_predictions_total") == {"no": 1, "yes": 1}


def bounded(folder: Path, models: Path) -> Path:
    """The iris model whose first two features have ranges."""
    source = models / "iris" / "1"
    contract = json.loads((source / "contract.json").read_text())
    listed = contract.pop("feature_names")
    contract["features"] = [
        {"name": name, **({"minimum": 0, "maximum": 20} if at < 2 else {})} for at, name in enumerate(listed)
    ]
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "contract.json").write_text(json.dumps(contract))
    return folder


def ask(server: Server, row: list[float], **headers: str) -> int:
    url = f"{server.client.base_url}{server.infer_path}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(url, json=request(data=row), headers=named, trust_env=False).status_code


def test_workers_count_together_and_a_death_takes_neither_count_nor_name(
    models: Path, serve: Servers, tmp_path: Path
) -> None:
    server = serve(bounded(tmp_path / "iris", models), "iris", workers=2)
    first, second = eventually(lambda: len(pids := worker_pids(server)) == 2 and pids)

    def rows(name: str) -> float:
        return server.metric("inference_predictions_total", **{"class": name})

    def refused(name: str) -> float:
        return server.metric("inference_out_of_range_total", feature=name)

    assert [rows(name) for name in ("setosa", "versicolor", "virginica")] == [0, 0, 0]
    assert refused("sepal length (cm)") == refused("sepal width (cm)") == 0
    for _ in range(10):
        assert ask(server, SETOSA) == ask(server, VIRGINICA) == 200
        assert ask(server, [5, 99, 1, 1]) == 400
    assert ask(server, SETOSA, x_pilotage_pinned="1") == 200
    assert ask(server, [5, 99, 1, 1], x_pilotage_pinned="1") == 400
    server.client.close()
    for number, pid in enumerate((first, second)):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda wanted=3 + number: len(worker_pids(server)) == wanted)
        assert (rows("setosa"), rows("versicolor"), rows("virginica")) == (10, 0, 10)
        assert (refused("sepal length (cm)"), refused("sepal width (cm)")) == (0, 10)
    for _ in range(5):
        assert ask(server, SETOSA) == 200
        assert ask(server, [-1, 3, 1, 1]) == 400
    assert (rows("setosa"), rows("virginica")) == (15, 10)
    assert (refused("sepal length (cm)"), refused("sepal width (cm)")) == (5, 10)


def test_only_features_with_ranges_are_there() -> None:
    sheet = Sheet()
    features = (Feature("age", 0, 120), Feature("free"), Feature("kind", categories=(1, 2)))
    scripted.engine(
        described=Contract(
            (TensorSpec("x", "FP32", (-1, 3)),), scripted.contract().outputs, features=features
        ),
        sheet=sheet,
    )
    assert shown(sheet, "inference_out_of_range_total") == {"age": 0, "kind": 0}
