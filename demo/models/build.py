"""Build the demonstration's models: good ones, and bad ones that are bad as model files.

    python -m demo.models.build OUTDIR

trains on the data sets that scikit-learn ships, converts with skl2onnx's defaults (so a classifier's
answer is a ZipMap) and writes, the same bytes every time:

    OUTDIR/iris/1/               flowers by four measures: a first model to try
    OUTDIR/fraud/1/              tumours by thirty measures, in the part of fraud: a logistic regression
    OUTDIR/fraud/2/              the same task, a random forest: a good new version
    OUTDIR/fraud/bad-errors/     an index out of range for about half of all inputs
    OUTDIR/fraud/bad-latency/    a loop of 300 to 700 ms for about a third of all inputs
    OUTDIR/fraud/bad-nan/        NaN for about half of all inputs
    OUTDIR/fraud/renamed-input/  takes `features` instead of `X`, so every caller's request is refused
    OUTDIR/broken/pickle.onnx    a pickle by another name
    OUTDIR/broken/truncated.onnx half of a model
    OUTDIR/requests/NAME.json    one request for curl
    OUTDIR/requests/NAME.jsonl   one request a line, over the whole held-out set, for load

    curl -d @OUTDIR/requests/iris.json -H 'Content-Type: application/json' HOST/v2/models/iris/infer

A folder holds model.onnx and contract.json: names of the features and a sample, which the runtime infers
before it is ready. The bad versions answer their sample well: like real ones they fail under traffic.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from demo.models import faults

SEED = 7
_OPSET = {"": 18, "ai.onnx.ml": 3}


def main(out: Path) -> None:
    """Write all models below `out`."""
    _iris(out)
    _fraud(out)


def _iris(out: Path) -> None:
    data: Any = load_iris()
    train, held_out, target, _ = _split(data)
    model = _logistic_regression().fit(train, target)
    row = held_out[:1]
    contract = _contract(data.feature_names, row, [str(name) for name in data.target_names], model)
    _write_model(out / "iris" / "1", _convert("iris", model, train), contract)
    _write_requests(out, "iris", held_out)


def _fraud(out: Path) -> None:
    data: Any = load_breast_cancer()
    train, held_out, target, _ = _split(data)
    first = _logistic_regression().fit(train, target)
    second = RandomForestClassifier(n_estimators=30, max_depth=6, random_state=SEED, n_jobs=1).fit(
        train, target
    )
    measure = held_out[:, 0]
    usual = held_out[np.argmin(measure)][None, :]  # below every threshold beyond which a fault begins
    labels = ["suspicious", "ordinary"]
    base = _convert("fraud", first, train)
    _write_model(out / "fraud" / "1", base, _contract(data.feature_names, usual, labels, first))
    _write_model(
        out / "fraud" / "2",
        _convert("fraud", second, train),
        _contract(data.feature_names, usual, labels, second),
    )
    half, third = float(np.median(measure)), float(np.quantile(measure, 2 / 3))
    sample = _contract(data.feature_names, usual, labels, None)
    _write_model(out / "fraud" / "bad-errors", faults.index_out_of_range(base, above=half), sample)
    _write_model(out / "fraud" / "bad-latency", faults.long_loop(base, above=third), sample)
    _write_model(out / "fraud" / "bad-nan", faults.not_a_number(base, above=half), sample)
    renamed = _contract(data.feature_names, usual, labels, None, name="features")
    _write_model(out / "fraud" / "renamed-input", faults.renamed_input(base, "features"), renamed)
    _write_requests(out, "fraud", held_out)

    broken = out / "broken"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "pickle.onnx").write_bytes(pickle.dumps({"weights": [0.1, 0.2]}, protocol=4))
    whole = base.SerializeToString(deterministic=True)
    (broken / "truncated.onnx").write_bytes(whole[: len(whole) // 2])


def _split(data: Any) -> list[Any]:
    rows = data.data.astype(np.float32)
    return train_test_split(rows, data.target, test_size=0.4, random_state=SEED, stratify=data.target)


def _logistic_regression() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _convert(name: str, model: Any, rows: np.ndarray) -> ModelProto:
    converted: Any = to_onnx(model, rows[:1], name=name, target_opset=_OPSET)
    # The converter keeps these in a set, whose order changes from run to run; a digest must not.
    opsets = sorted(converted.opset_import, key=lambda opset: opset.domain)
    del converted.opset_import[:]
    converted.opset_import.extend(opsets)
    return converted


def _contract(
    features: Any, row: np.ndarray, labels: list[str], model: Any, name: str = "X"
) -> dict[str, Any]:
    sample: dict[str, Any] = {"request": _request(row, name)}
    if model is not None:
        probabilities = [float(np.float32(value)) for value in model.predict_proba(row)[0]]
        sample["response"] = {
            "outputs": [
                {"name": "output_label", "data": [int(model.predict(row)[0])]},
                {"name": "output_probability", "data": probabilities},
            ]
        }
    return {
        "feature_names": [str(feature) for feature in features],
        "outputs": [{"name": "output_probability", "parameters": {"labels": labels}}],
        "sample": sample,
    }


def _request(rows: np.ndarray, name: str = "X") -> dict[str, Any]:
    # Through text, so that a float32 is written as the short number that it stands for.
    data = [float(str(value)) for value in rows.ravel()]
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": list(rows.shape), "data": data}]}


def _write_model(folder: Path, model: ModelProto, contract: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "contract.json").write_text(json.dumps(contract, indent=1) + "\n")


def _write_requests(out: Path, name: str, rows: np.ndarray) -> None:
    folder = out / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_request(rows[:1])) + "\n")
    lines = [json.dumps(_request(rows[at : at + 1])) + "\n" for at in range(len(rows))]
    (folder / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.models.build OUTDIR")
    main(Path(sys.argv[1]))
