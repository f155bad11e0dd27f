"""Fetching from a mounted claim: digest, pin, limit, and nothing half-made."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime import fetch as fetching
from pilotage_runtime.digest import digest
from pilotage_runtime.failure import TRANSIENT, Reason, StartFailure, report
from pilotage_runtime.fetched import model_root, read_marker
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources.transfer import Transfer
from tests.runtime.conftest import environment


def settings(tmp_path: Path, **changes: Any) -> FetchSettings:
    claim = tmp_path / "claim"
    claim.mkdir(exist_ok=True)
    return FetchSettings(
        **{
            "model_uri": "pvc://claim/model.onnx",
            "model_dir": tmp_path / "models",
            "model_claim_dir": claim,
            "pinned_digest_file": tmp_path / "digest",
            "credentials_dir": tmp_path / "credentials",
            **changes,
        }
    )


def fails(stated: FetchSettings) -> StartFailure:
    with pytest.raises(StartFailure) as failure:
        fetching.fetch(stated, sleep=lambda _: None)
    # Whatever went wrong: nothing that serve could take for a model, nothing half-made.
    assert read_marker(stated.model_dir) is None
    assert list(stated.model_dir.glob("*")) in ([], [stated.model_dir / ".partial"])
    assert (stated.model_dir / ".partial").exists() <= (failure.value.reason in TRANSIENT)
    return failure.value


@contextmanager
def a_disk_that_takes(most: int) -> Iterator[None]:
    """So much of each file, as a full disk does it: the write that crosses the end is short, only the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def content(models: Path, tmp_path: Path) -> bytes:
    data = (models / "iris" / "1" / "model.onnx").read_bytes()
    (tmp_path / "claim").mkdir(exist_ok=True)
    (tmp_path / "claim" / "model.onnx").write_bytes(data)
    return data


def test_a_file_is_fetched_with_its_digest_and_size(tmp_path: Path, content: bytes) -> None:
    marker = fetching.fetch(settings(tmp_path, model_digest=sha256(content)))
    assert (marker.digest, marker.bytes) == (sha256(content), len(content))
    assert (model_root(tmp_path / "models") / "model.onnx").read_bytes() == content


def test_a_folder_is_fetched_and_its_digest_is_that_of_the_manifest(tmp_path: Path, models: Path) -> None:
    stated = settings(tmp_path, model_uri="pvc://claim/", model_claim_dir=models / "fraud" / "1")
    marker = fetching.fetch(stated)
    listing = subprocess.check_output(
        r"find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum",
        shell=True, cwd=models / "fraud" / "1",
    )  # fmt: skip
    assert marker.digest == sha256(listing)
    assert sorted(path.name for path in model_root(tmp_path / "models").iterdir()) == [
        "contract.json",
        "model.onnx",
    ]


def test_the_manifest_is_in_the_order_of_bytes_whatever_the_folders(tmp_path: Path) -> None:
    """As `LC_ALL=C sort` has it: neither by folders first nor by anybody's alphabet."""
    claim = tmp_path / "claim"
    for name in ("a/z.onnx", "a.onnx", "a-b/y", "Z", "é", "e/x", "10", "9"):
        (claim / name).parent.mkdir(parents=True, exist_ok=True)
        (claim / name).write_text(name)
    listing = subprocess.check_output(
        r"find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum", shell=True, cwd=claim
    )
    assert digest(claim) == sha256(listing)


def test_another_digest_than_stated_is_refused(tmp_path: Path, content: bytes) -> None:
    failure = fails(settings(tmp_path, model_digest=sha256(b"other")))
    assert (failure.stage, failure.reason, failure.exit_code) == ("Verify", "DigestMismatch", 1)
    assert sha256(content) in failure.message


def test_content_that_changed_since_the_revisions_first_pod_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "digest").write_text(sha256(content) + "\n")
    fetching.fetch(settings(tmp_path, model_dir=tmp_path / "first"))
    (tmp_path / "claim" / "model.onnx").write_bytes(content + b"\x08\x09")
    failure = fails(settings(tmp_path))
    assert (failure.stage, failure.reason, failure.exit_code) == ("Verify", "ModelContentChanged", 1)


def test_a_model_beyond_the_limit_is_refused(tmp_path: Path, content: bytes) -> None:
    failure = fails(settings(tmp_path, max_model_bytes=len(content) - 1))
    assert (failure.reason, failure.exit_code) == ("TooLarge", 1)
    assert f"the model is {len(content)} bytes; this install allows {len(content) - 1}" in failure.message


def test_bytes_beyond_the_limit_are_refused_also_where_no_size_was_announced() -> None:
    transfer = Transfer(limit=10)
    transfer.add(10)
    with pytest.raises(StartFailure, match="more than 10 bytes"):
        transfer.add(1)


def test_what_was_fetched_before_is_compared_with_the_digest_that_is_stated_now(
    tmp_path: Path, content: bytes
) -> None:
    """On a laptop the folder outlives the call, and the next one may name a digest."""
    fetching.fetch(settings(tmp_path))
    assert fails(settings(tmp_path, model_digest=sha256(b"other"))).reason == "DigestMismatch"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://claim/nothing.onnx", "NotFound"),
        ("pvc://claim/../secret", "InvalidURI"),
        ("pvc://claim/%2e%2e/secret", "InvalidURI"),
        ("http://example.com/model.onnx", "InvalidURI"),
        ("ftp://example.com/m", "InvalidURI"),
        ("https://", "InvalidURI"),
        ("https://user:word@example.com/m", "InvalidURI"),
        ("s3://B_AD/key", "InvalidURI"),
        ("s3://bucket", "InvalidURI"),
    ],
)
def test_a_uri_that_leads_nowhere_is_the_models_fault(
    tmp_path: Path, content: bytes, uri: str, reason: str
) -> None:
    (tmp_path / "secret").write_bytes(content)
    failure = fails(settings(tmp_path, model_uri=uri))
    assert (failure.reason, failure.exit_code) == (reason, 1)


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_on_a_laptop_a_model_may_be_any_path(tmp_path: Path, content: bytes, form: str) -> None:
    stated = settings(tmp_path, model_uri=form.format(tmp_path / "claim" / "model.onnx"))
    assert fetching.fetch(stated).digest == sha256(content)


@pytest.mark.parametrize("folder", ["models", "."])
def test_an_images_model_is_in_its_folder_models_or_is_all_of_it(
    tmp_path: Path, content: bytes, folder: str
) -> None:
    image = tmp_path / "image"
    (image / folder).mkdir(parents=True)
    (image / folder / "model.onnx").write_bytes(content)
    if folder == "models":
        (image / "beside").write_bytes(b"not the model's")
    stated = settings(tmp_path, model_uri="oci://registry.example/m:1", model_image_dir=image)
    assert fetching.fetch(stated).digest == sha256(content)
    (image / folder / "stolen").symlink_to("/etc/passwd")
    again = settings(
        tmp_path, model_uri=stated.model_uri, model_image_dir=image, model_dir=tmp_path / "again"
    )
    assert fails(again).reason == "UnsafeArchive"


def test_a_sealed_model_is_fetched_as_it_is(tmp_path: Path, content: bytes) -> None:
    from pilotage_runtime import sealed  # noqa: PLC0415

    path = tmp_path / "claim" / "model.onnx"
    sealed.seal(path, tmp_path / "sealed", bytes(32))
    (tmp_path / "sealed").replace(path)
    stated = settings(tmp_path)
    assert fetching.fetch(stated).digest == sha256(path.read_bytes())
    assert (model_root(stated.model_dir) / "model.onnx").read_bytes() == path.read_bytes()


def test_a_link_out_of_the_claim_is_refused_and_one_inside_is_followed(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "claim" / "folder"
    folder.mkdir()
    (folder / "model.onnx").symlink_to("../model.onnx")
    fetching.fetch(settings(tmp_path, model_uri="pvc://claim/folder", model_dir=tmp_path / "inside"))
    (folder / "stolen").symlink_to(tmp_path / "secret")
    assert fails(settings(tmp_path, model_uri="pvc://claim/folder")).reason == "UnsafeArchive"


@pytest.mark.parametrize("to", ["weights", "nowhere", "link", "."])
def test_a_link_to_anything_but_a_file_is_not_left_out_in_silence(
    tmp_path: Path, content: bytes, to: str
) -> None:
    (tmp_path / "claim" / "weights").mkdir()
    (tmp_path / "claim" / "link").symlink_to(to)
    failure = fails(settings(tmp_path, model_uri="pvc://claim/"))
    assert (failure.reason, failure.exit_code) == ("UnsafeArchive", 1)
    assert "'link' links to no file of the claim" in failure.message
    # A link that the URI names itself is followed.
    (tmp_path / "claim" / "latest").symlink_to("weights")
    (tmp_path / "claim" / "weights" / "model.onnx").write_bytes(content)
    latest = settings(tmp_path, model_uri="pvc://claim/latest", model_dir=tmp_path / "latest")
    assert fetching.fetch(latest).digest == sha256(content)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../b", "", "back\\slash", "new\nline", ".."])
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartFailure) as failure:
        Transfer(1).target(tmp_path, name)
    assert failure.value.reason == "UnsafeArchive"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mod\udce8le.onnx", "which is not UTF-8: rename it"),
        ("a/" + "é" * 128, "which is longer than"),
        ("a/" * 512 + "b", "which is longer than"),
    ],
    ids=["latin-1", "long", "deep"],
)
def test_a_file_name_that_no_disk_takes_is_the_models_fault(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(StartFailure, match=why) as failure:
        Transfer(1).target(tmp_path, name)
    assert (failure.value.reason, failure.value.exit_code) == ("UnsafeArchive", 1)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("a/b", "a//b", "falls on another one"),
        ("a", "./a", "falls on another one"),
        ("a/b", "a", "falls on a folder"),
        ("a", "a/b/c", "falls on a folder, or into another file"),
    ],
)
def test_files_that_would_fall_on_each_other_are_refused(
    tmp_path: Path, first: str, second: str, why: str
) -> None:
    """To a store their names are different ones."""
    transfer = Transfer(1)
    transfer.target(tmp_path, first)
    with pytest.raises(StartFailure, match=why) as failure:
        transfer.target(tmp_path, second)
    assert (failure.value.reason, failure.value.exit_code) == ("UnsafeArchive", 1)
    transfer.target(tmp_path, "a/c" if first == "a/b" else "b")


def test_the_longest_names_are_fetched(tmp_path: Path, content: bytes) -> None:
    deep = Path(*["a"] * 511, "b")
    for name in ("é" * 127, str(deep)):
        path = tmp_path / "claim" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")
    stated = settings(tmp_path, model_uri="pvc://claim/")
    fetching.fetch(stated)
    assert (model_root(stated.model_dir) / deep).read_bytes() == b"x"


def test_a_claims_file_whose_name_is_not_utf_8_is_told_in_words_that_can_be_read(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "claim" / os.fsdecode(b"le\xe9.txt")).write_bytes(b"x")
    assert (
        r"a file named 'le\udce9.txt', which is not UTF-8"
        in fails(settings(tmp_path, model_uri="pvc://claim/")).message
    )


@pytest.mark.parametrize(
    ("broken", "reason"), [("pickle.onnx", "UntrustedFormat"), ("truncated.onnx", "InvalidModel")]
)
def test_what_is_no_model_is_refused_before_serve_sees_it(
    tmp_path: Path, models: Path, broken: str, reason: str
) -> None:
    failure = fails(settings(tmp_path, model_uri=f"pvc://claim/{broken}", model_claim_dir=models / "broken"))
    assert (failure.stage, failure.reason, failure.exit_code) == ("Verify", reason, 1)


def test_transient_failures_are_retried_with_rising_pauses_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flaky:
        def __init__(self, failures: int) -> None:
            self.left = failures

        def download(self, into: Path, transfer: Transfer) -> None:
            assert list(into.iterdir()) == []
            transfer.target(into, "half.onnx").write_bytes(b"\x08\x09half")
            if self.left:
                self.left -= 1
                raise StartFailure(fetching.Stage.DOWNLOAD, Reason.TRUNCATED, "broke off")
            (into / "half.onnx").unlink()
            (into / "model.onnx").write_bytes(whole)

    whole = b"\x08\x09\x3a\x00"  # the smallest ONNX: a version and an empty graph
    pauses: list[float] = []
    steady, hopeless = Flaky(4), Flaky(5)
    monkeypatch.setattr(fetching, "open_source", lambda _: steady)
    assert fetching.fetch(settings(tmp_path), sleep=pauses.append).digest == sha256(whole)
    assert len(pauses) == 4
    assert all(0.5 * 2**at <= pause <= 2**at for at, pause in enumerate(pauses))
    monkeypatch.setattr(fetching, "open_source", lambda _: hopeless)
    failure = fails(settings(tmp_path, model_dir=tmp_path / "again"))
    assert (failure.reason, failure.exit_code) == ("Truncated", 75)


def test_a_full_disk_is_the_infrastructures_fault(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def download(self, into: Path, transfer: Transfer) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "open_source", lambda _: Full())
    failure = fails(settings(tmp_path))
    assert (failure.reason, failure.exit_code) == ("DiskFull", 75)


def test_an_earlier_fetch_of_this_pod_is_kept_only_if_its_bytes_still_match(
    tmp_path: Path, content: bytes
) -> None:
    stated = settings(tmp_path)
    fetching.fetch(stated)
    (tmp_path / "claim" / "model.onnx").unlink()
    assert fetching.fetch(stated).digest == sha256(content)
    (model_root(stated.model_dir) / "model.onnx").write_bytes(b"tampered")
    assert fails(stated).reason == "NotFound"


def test_leftovers_of_a_killed_fetch_are_never_used(tmp_path: Path, content: bytes) -> None:
    stated = settings(tmp_path)
    (stated.model_dir / ".partial" / "files").mkdir(parents=True)
    (stated.model_dir / ".partial" / "files" / "half.onnx").write_bytes(content[:50])
    (stated.model_dir / "model").mkdir()
    (stated.model_dir / "model" / "other.onnx").write_bytes(b"half")
    fetching.fetch(stated)
    assert sorted(path.name for path in stated.model_dir.iterdir()) == [".fetched.json", "model"]
    assert [path.name for path in model_root(stated.model_dir).iterdir()] == ["model.onnx"]


def test_the_command_leaves_one_json_line_for_kubelet(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    common = {
        "model_claim_dir": tmp_path / "claim",
        "model_dir": tmp_path / "models",
        "termination_log": log,
        "pinned_digest_file": tmp_path / "none",
    }

    def run(**changes: Any) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "pilotage_runtime", "fetch"], env=environment(**common, **changes), check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr
        assert all(json.loads(line) for line in done.stdout.splitlines())
        return done.returncode, json.loads(log.read_text())

    status, fields = run(model_uri="pvc://claim/model.onnx")
    assert (status, fields) == (
        0, {"stage": "Verify", "reason": "Fetched", "digest": sha256(content), "bytes": len(content)},
    )  # fmt: skip
    status, fields = run(model_uri="pvc://claim/none")
    assert (status, fields["stage"], fields["reason"]) == (1, "Download", "NotFound")
    status, fields = run()
    assert (status, fields["message"]) == (1, "PILOTAGE_MODEL_URI: Field required")
    status, fields = run(model_uri="pvc://claim/model.onnx", model_digest="md5:1")
    assert status == 1
    assert fields["message"].startswith("PILOTAGE_MODEL_DIGEST: String should match pattern")


def test_a_long_message_is_cut_to_what_kubelet_keeps(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    report(StartFailure(fetching.Stage.LOAD, Reason.LOAD_FAILED, '"é' * 5000), log)
    assert log.stat().st_size <= 4096
    assert json.loads(log.read_text())["message"].endswith("…")


def test_a_message_that_is_no_text_is_left_as_far_as_it_is_one(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    report(StartFailure(fetching.Stage.LOAD, Reason.LOAD_FAILED, "no /mod\udce8le"), log)
    assert json.loads(log.read_text())["message"] == "no /mod?le"


def test_a_fault_of_ours_is_told_with_its_traceback_and_not_taken_for_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty:
        def download(self, into: Path, transfer: Transfer) -> None:
            raise KeyError("size")

    monkeypatch.setattr(fetching, "open_source", lambda _: Faulty())
    (tmp_path / "termination-log").touch()
    assert fetching.main(settings(tmp_path, termination_log=tmp_path / "termination-log")) == 1
    assert json.loads((tmp_path / "termination-log").read_text()) == {
        "stage": "Verify", "reason": "LoadFailed", "message": "the fetch failed unexpectedly: KeyError: 'size'",
    }  # fmt: skip
    assert caplog.records[-1].exc_info
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf"])
def test_a_key_that_is_no_text_is_named(tmp_path: Path, scheme: str) -> None:
    names = {
        "s3": "AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_ACCOUNT_KEY",
        "hf": "HF_TOKEN",
    }  # fmt: skip
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / names[scheme]).write_bytes(b"\xff\xfe")
    failure = fails(settings(tmp_path, model_uri=f"{scheme}://models/m"))
    assert (failure.reason, failure.exit_code) == ("CredentialsMissing", 75)
    assert f"{names[scheme]} in the Secret is no text" in failure.message


def test_an_interrupted_fetch_ends_at_once_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    import signal  # noqa: PLC0415

    from tests.runtime.conftest import eventually  # noqa: PLC0415

    pipe = tmp_path / "claim" / "endless.onnx"
    folder = tmp_path / "claim" / "folder"
    folder.mkdir()
    os.mkfifo(pipe)
    (folder / "a.onnx").write_bytes(content)
    process = subprocess.Popen(
        [sys.executable, "-m", "pilotage_runtime", "fetch"],
        env=environment(
            model_uri="https://localhost:1/m", allow_private_addresses=True, model_dir=tmp_path / "models",
            termination_log=tmp_path / "none", pinned_digest_file=tmp_path / "none",
        ),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(lambda: list((tmp_path / "models").glob(".partial")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert list((tmp_path / "models").iterdir()) == []
