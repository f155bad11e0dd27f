"""`pilotage serve` from the first line that it prints to the last."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pilotage_cli import remote
from pilotage_runtime.digest import digest
from pilotage_runtime.settings import FetchSettings, ServeSettings
from tests.cli.conftest import Terminal, paste
from tests.runtime.browser import browser
from tests.runtime.test_s3 import server as s3

__all__ = ["s3"]


@pytest.fixture
def many(models: Path, tmp_path: Path) -> Path:
    """A folder of many models, one of them broken."""
    folder = tmp_path / "many"
    for name, version in (("iris", "1"), ("fraud", "1"), ("fraud", "2")):
        shutil.copytree(models / name / version, folder / name / version)
    (folder / "broken" / "1").mkdir(parents=True)
    shutil.copy(models / "broken" / "truncated.onnx", folder / "broken" / "1" / "model.onnx")
    return folder


def test_a_file_is_served_and_the_printed_line_works_as_pasted(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris" / "1" / "model.onnx")
    assert "iris  version 1, onnxruntime_onnx  batching on" in running.text
    status, body = paste(running.curl)
    assert status == 200
    # The folder's contract.json counts for its file as well.
    assert json.loads(body)["outputs"][0]["data"] == [0]
    for path in ("/", "/docs", "/v2/health/ready"):
        assert running.get(path).status_code == 200
    metrics = next(line for line in running.text.splitlines() if line.startswith("Metrics")).split()[-1]
    assert "inference_requests_total" in httpx.get(metrics, trust_env=False).text
    assert running.stop() == 0
    assert "Traceback" not in running.text


def test_the_page_whose_address_is_printed_works_in_a_browser(
    terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    running = terminal.serve(models / "iris")
    address = next(line.split()[-1] for line in running.text.splitlines() if line.startswith("By hand"))
    with browser(tmp_path) as page:
        page.open(address)
        page.eventually("document.getElementById('asking')?.hidden === false")
        page.click("Infer")
        page.eventually("document.querySelector('.output li.most span')?.textContent === 'setosa'")
        # What the page shows to paste is what `serve` prints, and answers the same.
        line = page.evaluate("document.getElementById('curl').textContent")
        assert page.problems == []
    assert paste(line) == paste(running.curl)


def test_only_this_machine_reaches_it_unless_asked_otherwise(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris")
    port = f":{int(running.url.rpartition(':')[2]):04X}"
    local = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [address for address in local if address.endswith(port)] == [f"0100007F{port}"]


def test_a_file_by_itself_is_asked_with_zeros(terminal: Terminal, models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "iris" / "1" / "model.onnx", tmp_path / "petals.onnx")
    running = terminal.serve(tmp_path / "petals.onnx")
    assert "/v2/models/petals/infer" in running.curl
    assert paste(running.curl)[0] == 200


def test_a_folder_of_many_shows_them_all_and_why_one_is_missing(terminal: Terminal, many: Path) -> None:
    running = terminal.serve(many)
    assert "fraud  versions 1, 2" in running.text
    assert "iris  version 1" in running.text
    assert "broken version 1 is UNAVAILABLE: InvalidModel" in running.text
    assert paste(running.curl)[0] == 200


def test_two_workers_are_served_and_stopped_the_same_way(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris", "--workers", 2)
    assert paste(running.curl)[0] == 200
    assert running.stop() == 0
    assert "Traceback" not in running.text


def test_a_terminal_gets_words_and_ctrl_c_ends_it(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris", terminal=True)
    assert paste(running.curl)[0] == 200
    assert running.get("/%1b%5b31mred").status_code == 404
    running.wait_for("POST /v2/models/iris/infer")
    text = running.wait_for("404 GET")
    assert '{"time"' not in text
    assert "\x1b[31mred" not in running._text  # a path does not paint the terminal
    running.type(b"\x03")
    assert running.process.wait(5) == 0
    assert "Traceback" not in running.text


def test_a_narrow_terminal_cuts_no_address_off(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris", terminal=True, columns=40)
    lines = running.text.splitlines()
    assert f"{running.url}/docs" in next(line for line in lines if line.startswith("The interface's doc"))
    assert f"{running.url}/" in next(line for line in lines if line.startswith("By hand"))
    assert paste(running.curl)[0] == 200


def test_ctrl_c_while_several_workers_load_leaves_no_traceback(terminal: Terminal, models: Path) -> None:
    for seconds in (0.5, 1.0, 1.5):
        running = terminal.start("serve", models / "iris", "--port", "0", "--workers", "2", terminal=True)
        time.sleep(seconds)
        running.type(b"\x03")
        assert running.process.wait(15) in (0, 130), running.text
        assert "Traceback" not in running.text


def test_grpc_is_served_where_it_is_asked_for(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris", "--grpc-port", "0")
    address = next(line for line in running.text.splitlines() if line.startswith("gRPC")).split()[-1]
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), 5).close()


def test_many_requests_a_second_are_summed_up_on_a_terminal(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris", terminal=True)
    assert terminal.run("bench", running.url, "--requests", "500", "--seconds", "5").returncode == 0
    text = running.wait_for("requests more")
    assert text.count("POST /v2/models/iris/infer") < 100


def test_elsewhere_the_log_is_json_alone_on_standard_output(terminal: Terminal, models: Path) -> None:
    from tests.cli.conftest import COMMAND, surroundings  # noqa: PLC0415

    process = subprocess.Popen(
        [*COMMAND, "serve", str(models / "iris"), "--port", "0"],
        env=surroundings(terminal.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    while "Ctrl-C" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(2)
    lines = process.stdout.read().splitlines()
    assert process.wait(10) == 0
    assert "serving" in [json.loads(line)["message"] for line in lines if '"access"' not in line]


def test_a_model_from_s3_is_fetched_once(terminal: Terminal, s3: tuple[Path, int]) -> None:
    keys = {
        "AWS_ACCESS_KEY_ID": "pilotage",
        "AWS_SECRET_ACCESS_KEY": "pilotage-secret",
        "AWS_ENDPOINT_URL": f"http://localhost:{s3[1]}",
        "AWS_REGION": "us-east-1",
    }
    running = terminal.serve("s3://models/fraud/1", **keys)
    assert ", fetched and verified" in running.text
    assert "/v2/models/fraud/infer" in running.curl
    assert paste(running.curl)[0] == 200
    assert running.stop() == 0
    # Nobody listens there: what comes now comes from the cache, whose digest was counted again.
    nowhere = {**keys, "AWS_ENDPOINT_URL": "http://localhost:1"}
    again = terminal.serve("s3://models/fraud/1", **nowhere)
    assert ", from the cache" in again.text
    assert paste(again.curl)[0] == 200
    kept = next(terminal.home.glob("cache/pilotage/models/*/model/model.onnx"))
    kept.write_bytes(b"something else")
    refused = terminal.run(
        "serve", "s3://models/fraud/1", "--port", "0", **keys, PILOTAGE_MODEL_DIGEST="sha256:" + "0" * 64
    )
    assert refused.returncode == 1
    assert "(Verify: DigestMismatch)" in refused.stderr
    assert not list(terminal.home.glob("pilotage-keys-*"))


def test_without_keys_a_bucket_is_asked_for_what_anybody_may_read(
    terminal: Terminal, s3: tuple[Path, int]
) -> None:
    place = {"AWS_ENDPOINT_URL": f"http://localhost:{s3[1]}", "AWS_REGION": "us-east-1"}
    refused = terminal.run("serve", "s3://models/fraud/1", "--port", "0", **place)
    assert refused.returncode == 75
    assert "the bucket models is not public" in refused.stderr
    half = terminal.run("serve", "s3://models/fraud/1", "--port", "0", AWS_ACCESS_KEY_ID="pilotage", **place)
    assert "lacks AWS_SECRET_ACCESS_KEY" in half.stderr


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("s3://models/fraud", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}),
        ("hf://acme/fraud", {"HF_TOKEN"}),
        ("gs://models/fraud", None),
        ("https://example.com/model.onnx", None),
    ],
)
def test_a_store_is_given_its_own_keys_only(
    monkeypatch: pytest.MonkeyPatch, uri: str, kept: set[str] | None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "HF_TOKEN"):
        monkeypatch.setenv(name, name.lower())
    monkeypatch.delenv("PILOTAGE_CREDENTIALS_DIR", raising=False)
    with remote.credentials(uri):
        folder = os.environ.get("PILOTAGE_CREDENTIALS_DIR")
        found = None if folder is None else {path.name for path in Path(folder).iterdir()}
    assert found == kept
    assert "PILOTAGE_CREDENTIALS_DIR" not in os.environ


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored, as nohup has it for all that it starts."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_fetch_that_is_ended_leaves_no_key_behind(terminal: Terminal, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        keys = {
            "AWS_ACCESS_KEY_ID": "pilotage",
            "AWS_SECRET_ACCESS_KEY": "pilotage-secret",
            "AWS_ENDPOINT_URL": f"http://localhost:{silent.getsockname()[1]}",
        }
        running = terminal.start("serve", "s3://models/fraud/1", "--port", "0", **keys)
        silent.accept()[0].close()  # asked, so the keys lie there
        silent.accept()
        assert list(terminal.home.glob("pilotage-keys-*"))
        running.process.send_signal(number)
        assert running.process.wait(20) == 128 + number
    assert not list(terminal.home.glob("pilotage-keys-*"))
    assert "Traceback" not in running.text


def test_a_port_that_is_taken_names_the_flag_and_who_has_it(terminal: Terminal, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = terminal.run("serve", models / "iris", "--port", port)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"pilotage: port {port} of 127.0.0.1 is taken by another program: stop that one, or choose another port "
        "with --port N (--port 0 takes a free one)\n"
    )
    running = terminal.serve(models / "iris")
    refused = terminal.run("serve", models / "iris", "--port", running.url.rpartition(":")[2])
    assert "taken by another `pilotage serve`" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nowhere.onnx"], 2, "nowhere.onnx does not exist; name a model file, a folder, or a URI"),
        (["~nobody-here/m"], 2, "~nobody-here/m does not exist; name a model file"),
        (["{iris}", "--wrokers", "2"], 2, "unrecognized arguments: --wrokers 2"),
        (
            ["{iris}", "--workers", "99"],
            2,
            "--workers (PILOTAGE_WORKERS): Input should be less than or equal to 64",
        ),
        (["{iris}", "--name", "a/b"], 2, "--name (PILOTAGE_MODEL_NAME): String should match pattern"),
        (["{iris}", "--host", "192.0.2.1"], 2, "cannot listen on 192.0.2.1 port 8080 (--port, --host)"),
        (
            ["{iris}", "--port", "18080", "--metrics-port", "18080"],
            2,
            "--metrics-port (PILOTAGE_METRICS_PORT): Value error, 18080 is the http_port already",
        ),
        (
            ["{iris}", "--host", "192.0.2.1", "--port", "0"],
            2,
            "cannot listen on 192.0.2.1 port 0 (--port, --host)",
        ),
        (["https://[host/model.onnx"], 2, "https://[host/model.onnx is no URI: Invalid IPv6 URL"),
        (["ftp://host/model.onnx"], 1, "(Download: InvalidURI)"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_loads(
    terminal: Terminal, models: Path, arguments: list[str], status: int, sentence: str
) -> None:
    given = [argument.replace("{iris}", str(models / "iris")) for argument in arguments]
    refused = terminal.run("serve", *given)
    assert refused.returncode == status
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", ["serve", "inspect"])
def test_what_lies_here_must_have_the_digest_that_is_stated(
    terminal: Terminal, models: Path, many: Path, command: str
) -> None:
    other = "sha256:" + "0" * 64
    for target in (models / "iris" / "1", models / "iris" / "1" / "model.onnx"):
        for more in ([], ["--trusted"]):
            refused = terminal.run(command, target, "--digest", other, *more, PILOTAGE_HTTP_PORT="0")
            assert (refused.returncode, refused.stdout) == (1, "")
            assert (
                f"has digest {digest(target)}, but --digest is {other} (Verify: DigestMismatch)"
                in refused.stderr
            )
    refused = terminal.run(command, many, "--digest", other, PILOTAGE_HTTP_PORT="0")
    assert refused.returncode == 2
    assert (
        "--digest is that of one model, but there are 4: broken/1, fraud/1, fraud/2, iris/1" in refused.stderr
    )


def test_with_its_digest_a_model_that_lies_here_is_served(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris" / "1", "--digest", digest(models / "iris" / "1"))
    assert paste(running.curl)[0] == 200


@pytest.mark.parametrize("command", ["serve", "inspect"])
def test_a_signature_of_what_lies_here_is_not_passed_over(
    terminal: Terminal, models: Path, command: str
) -> None:
    folder = models / "iris" / "1"
    for given, more in (
        (["--signature-identity", "a@example.com"], {}),
        ([], {"PILOTAGE_SIGNATURE_PUBLIC_KEY": "-----BEGIN PUBLIC KEY-----"}),
    ):
        refused = terminal.run(command, folder, *given, PILOTAGE_HTTP_PORT="0", **more)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert (
            f"a signature is checked of what is fetched: name the folder as {folder.as_uri()}"
            in refused.stderr
        )
    # As it is named there, it is checked.
    refused = terminal.run(
        command,
        folder.as_uri(),
        "--signature-public-key",
        "-----BEGIN PUBLIC KEY-----",
        PILOTAGE_HTTP_PORT="0",
    )
    assert refused.returncode == 1
    assert "(Verify: SignatureInvalid)" in refused.stderr


@pytest.mark.parametrize("command", ["serve", "inspect"])
def test_a_cache_that_cannot_be_written_is_named(terminal: Terminal, command: str) -> None:
    (terminal.home / "cache").touch()
    refused = terminal.run(command, "https://host/model.onnx")
    assert refused.returncode == 1
    assert f"the cache {terminal.home}/cache/pilotage/models" in refused.stderr
    assert "name another in XDG_CACHE_HOME" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_failed_load_says_stage_and_reason(terminal: Terminal, models: Path) -> None:
    running = terminal.start("serve", models / "broken" / "truncated.onnx", "--port", "0", terminal=True)
    assert running.process.wait(30) == 1
    assert "error truncated.onnx: " in running.text
    assert "(Load: InvalidModel)" in running.text
    assert "Traceback" not in running.text


def test_every_setting_has_a_flag(terminal: Terminal) -> None:
    told = terminal.run("serve", "--help").stdout
    settings = {*ServeSettings.model_fields, *FetchSettings.model_fields}
    in_a_pod = {"model_dir", "model_uri", "termination_log", "pinned_digest_file", "model_claim_dir"}
    missing = [name for name in settings - in_a_pod if f"[PILOTAGE_{name.upper()}]" not in told]
    assert missing == []


def test_the_environment_counts_where_no_flag_is_given(terminal: Terminal, models: Path) -> None:
    stated = {"PILOTAGE_MODEL_NAME": "flowers", "PILOTAGE_MAX_BATCH_SIZE": "1"}
    running = terminal.serve(models / "iris", **stated)
    assert "flowers  version 1" in running.text
    assert "batching off: switched off" in running.text
    running = terminal.serve(models / "iris", "--name", "petals", **stated)
    assert "petals  version 1" in running.text
