"""Whose fault it is decides the code: bad models answer 5xx, whatever they raise; and they are counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import Server, Servers, eventually


def requests(models: Path, name: str = "X") -> list[dict[str, Any]]:
    lines = (models / "requests" / "fraud.jsonl").read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    for document in documents:
        document["inputs"][0]["name"] = name
    return documents


def first_measure(document: dict[str, Any]) -> float:
    return document["inputs"][0]["data"][0]


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("bad-errors", "model 'fraud' failed: [ONNXRuntimeError]"),
        ("bad-nan", "model 'fraud' answered NaN or infinity in output 'output_probability'"),
    ],
)
def test_a_model_that_fails_for_some_inputs_answers_500_for_those_alone(
    models: Path, serve: Servers, version: str, sentence: str
) -> None:
    server = serve(models / "fraud" / version)
    documents = requests(models)[:60]
    answers = [server.infer(document) for document in documents]
    failed = [answer for answer in answers if answer.status_code == 500]
    assert all(sentence in answer.json()["error"] for answer in failed)
    assert all("\n" not in answer.json()["error"] for answer in failed)
    assert 15 <= len(failed) <= 45
    assert {answer.status_code for answer in answers} == {200, 500}
    assert server.metric("inference_requests_total", code="500") == len(failed)
    assert server.metric("inference_requests_total", code="200") == 60 - len(failed)
    # One NaN in a sum would make it NaN for ever.
    assert server.metric("inference_prediction_confidence_count") == 60 - len(failed)
    assert 0.5 < server.metric("inference_prediction_confidence_sum") / (60 - len(failed)) <= 1


def test_an_answer_later_than_the_callers_time_out_is_504_and_counted_before_the_model_ends(
    models: Path, serve: Servers
) -> None:
    server = serve(models / "fraud" / "bad-latency")
    slowest = max(requests(models), key=first_measure)
    answer = server.infer(slowest, X_Envoy_Expected_Rq_Timeout_Ms="20")
    assert answer.status_code == 504
    assert answer.json() == {"error": "no answer within the 20 ms that the caller waits"}
    assert server.metric("inference_requests_total", code="504") == 1
    assert server.metric("inference_requests_total", code="200") == 0
    assert server.metric("inference_requests_in_flight") == 0
    assert server.infer(slowest).status_code == 200
    assert server.infer(slowest, X_Envoy_Expected_Rq_Timeout_Ms="0").status_code == 200
    assert server.infer(slowest, X_Envoy_Expected_Rq_Timeout_Ms="soon").status_code == 200


def test_probes_are_answered_while_a_slow_inference_runs(models: Path, serve: Servers) -> None:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    server = serve(models / "fraud" / "bad-latency")
    slowest = max(requests(models), key=first_measure)
    server.infer(slowest)  # the first slow one may hold the loop; the second may not
    with ThreadPoolExecutor() as pool:
        inference = pool.submit(server.infer, slowest)
        eventually(lambda: server.metric("inference_requests_in_flight") == 1)
        assert server.client.get("/v2/health/live").status_code == 200
        assert not inference.done()
        assert inference.result().status_code == 200


def test_a_renamed_input_is_the_callers_400_and_no_500(models: Path, serve: Servers) -> None:
    server = serve(models / "fraud" / "renamed-input")
    answer = server.infer(requests(models)[0])
    assert answer.status_code == 400
    assert "input 'features' is missing; input 'X' is unknown" in answer.json()["error"]
    assert server.infer(requests(models, name="features")[0]).status_code == 200


def test_both_good_versions_answer_every_request(models: Path, serve: Servers) -> None:
    for version in ("1", "2"):
        server: Server = serve(models / "fraud" / version)
        assert {server.infer(document).status_code for document in requests(models)} == {200}


def test_the_models_have_the_same_bytes_every_time_and_differ_from_each_other(
    models: Path, tmp_path: Path
) -> None:
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from pilotage_runtime.digest import digest  # noqa: PLC0415
    from tests.runtime.conftest import ROOT, environment  # noqa: PLC0415

    subprocess.run(
        [sys.executable, "-m", "demo.models.build", str(tmp_path)],
        env={**environment(), "PYTHONHASHSEED": "99"}, cwd=ROOT, check=True,
    )  # fmt: skip
    folders = [*(models / "fraud").iterdir(), models / "iris" / "1"]
    digests = {folder.relative_to(models): digest(folder) for folder in folders}
    assert digests == {name: digest(tmp_path / name) for name in digests}
    assert len(set(digests.values())) == len(folders)
