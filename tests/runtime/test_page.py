"""The page at /, in a real browser, and what it is sent with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.runtime.browser import Page, browser
from tests.runtime.conftest import Server, Servers, eventually

HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>'


@pytest.fixture
def page(tmp_path: Path):
    with browser(tmp_path) as page:
        yield page


def _open(page: Page, server: Server) -> None:
    page.open(f"http://127.0.0.1:{server.port}/")
    page.eventually("document.getElementById('asking')?.hidden === false")


def test_a_person_fills_in_the_features_and_sees_the_label(page: Page, serve: Servers, models: Path) -> None:
    server = serve(models / "iris", "iris")
    _open(page, server)
    assert "iris, version 1" in page.text()
    # The contract's sample is filled in already.
    assert page.evaluate("document.getElementById('field-0').value") == "5"
    for label, value in (("petal length (cm)", "5.8"), ("petal width (cm)", "2.2")):
        page.type(label, value)
    page.click("Infer")
    page.eventually("!document.getElementById('answering').hidden")
    first = page.evaluate("document.querySelector('.output li.most span').textContent")
    assert first == "virginica"
    assert page.evaluate("document.querySelector('.value').textContent") == "2"
    assert page.evaluate("document.querySelectorAll('meter').length") == 3
    assert " ms" in page.text()
    assert page.problems == []


def test_the_curl_line_asks_what_the_fields_say(page: Page, serve: Servers, models: Path) -> None:
    server = serve(models / "iris", "iris")
    _open(page, server)
    page.type("petal length (cm)", "5.8")
    line = page.evaluate("document.getElementById('curl').textContent")
    assert line.startswith(f"curl -s 'http://127.0.0.1:{server.port}/v2/models/iris/infer'")
    body = json.loads(line.partition(" -d '")[2].removesuffix("'"))
    assert body["inputs"][0]["data"][2] == 5.8


def test_what_is_no_number_is_told_beside_the_field_and_not_sent(
    page: Page, serve: Servers, models: Path
) -> None:
    _open(page, serve(models / "iris", "iris"))
    page.type("petal length (cm)", "wide")
    page.click("Infer")
    assert "petal length (cm): “wide” is no number" in page.eventually(
        "document.getElementById('invalid').textContent"
    )
    assert page.evaluate("document.getElementById('answering').hidden")


def test_a_refusal_is_shown_in_the_servers_words(page: Page, serve: Servers, models: Path) -> None:
    _open(page, serve(models / "iris", "iris"))
    page.click("Edit as JSON")
    page.evaluate("document.getElementById('editor').value = '{\"inputs\": []}'")
    page.click("Infer")
    page.eventually("!document.getElementById('answering').hidden")
    assert "400: " in page.text()


def test_names_and_labels_that_look_like_html_stay_text(
    page: Page, serve: Servers, models: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(models / "iris" / "1", hostile)
    contract = json.loads((hostile / "contract.json").read_text())
    contract["feature_names"] = [f"{HOSTILE} {at}" for at in range(4)]
    for output in contract["outputs"]:
        if "labels" in output.get("parameters", {}):
            output["parameters"]["labels"] = [f"{HOSTILE} {at}" for at in range(3)]
    (hostile / "contract.json").write_text(json.dumps(contract))
    _open(page, serve(hostile, "iris"))
    page.click("Infer")
    page.eventually("!document.getElementById('answering').hidden")
    text = page.text()
    assert f"{HOSTILE} 0" in text
    assert f"{HOSTILE} 2" in text
    assert page.evaluate("document.querySelectorAll('img, script').length") == 1
    assert page.evaluate("document.title") == "Pilotage"
    assert page.problems == []


def test_the_policy_stops_a_script_that_got_in_all_the_same(page: Page, serve: Servers, models: Path) -> None:
    """Break the first wall on purpose: the second holds."""
    _open(page, serve(models / "iris", "iris"))
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"document.title=1\">')"
    )
    eventually(lambda: page.evaluate("1") and page.problems)
    assert "Content Security Policy" in page.problems[0]
    assert page.evaluate("document.title") == "Pilotage"


def test_the_docs_are_drawn_by_this_server_alone(page: Page, serve: Servers, models: Path) -> None:
    server = serve(models / "iris", "iris")
    here = f"http://127.0.0.1:{server.port}/"
    page.open(f"{here}docs")
    paths = server.client.get("/openapi.json").json()["paths"]
    page.eventually(f"document.querySelectorAll('.opblock').length >= {len(paths)}")
    assert "/v2/models/iris/generate_stream" in page.evaluate("document.body.textContent").replace(
        "\u200b", ""
    )
    page.evaluate(
        "document.querySelector('#operations-inference-infer_iris .opblock-summary-control').click()"
    )
    page.eventually(
        "document.querySelector('#operations-inference-infer_iris .opblock-body')?.innerText.length > 99"
    )
    assert f"{here}docs/swagger-ui-bundle.js" in page.requested
    assert [url for url in page.requested if not url.startswith((here, "data:"))] == []
    assert page.problems == []


def test_the_docs_come_with_headers_that_keep_them_to_themselves(serve: Servers, models: Path) -> None:
    server = serve(models / "iris", "iris")
    answer = server.client.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in answer.text
    for name, kind in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        file = server.client.get(f"/docs/{name}")
        assert (file.status_code, file.headers["content-type"].partition(";")[0]) == (200, kind)
    assert server.client.get("/redoc").status_code == 404


def test_the_page_comes_with_headers_that_keep_it_to_itself(serve: Servers, models: Path) -> None:
    server = serve(models / "iris", "iris")
    answer = server.client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http:" not in answer.text
    assert "https:" not in answer.text
    refused: httpx.Response = server.client.post("/")
    assert refused.status_code == 405
    assert "/" not in server.client.get("/openapi.json").json()["paths"]
