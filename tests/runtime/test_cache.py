"""The node's cache: one download for many pods, and nothing believed that a neighbour may have written."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime import cache as caching
from pilotage_runtime import fetch as fetching
from pilotage_runtime.cache import Cache
from pilotage_runtime.fetched import model_root
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources.transfer import CHUNK_BYTES, Transfer
from tests.runtime.conftest import ROOT, eventually
from tests.runtime.test_fetch import a_disk_that_takes, fails, settings, sha256

WHOLE = b"\x08\x09\x3a\x00"  # the smallest ONNX: a version and an empty graph


class Counted:
    """A store that counts how often it is asked."""

    def __init__(self, content: bytes = WHOLE) -> None:
        self.content = content
        self.asked = 0
        self.before: Callable[[], Any] = lambda: None

    def download(self, into: Path, transfer: Transfer) -> None:
        self.asked += 1
        self.before()
        transfer.add(len(self.content))
        transfer.target(into, "model.onnx").write_bytes(self.content)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(fetching, "open_source", lambda _: counted)
    return counted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def pod(tmp_path: Path, name: str, **changes: Any) -> FetchSettings:
    stated = {"model_uri": "s3://models/m", "model_digest": sha256(WHOLE), "cache_wait_seconds": 20}
    place = {"model_dir": tmp_path / name, "cache_dir": tmp_path / "cache"}
    return settings(tmp_path, **{**stated, **place, **changes})


def entry(folder: Path, content: bytes = WHOLE) -> Path:
    return folder / "objects" / sha256(content).removeprefix("sha256:")


def served(stated: FetchSettings) -> bytes:
    return (model_root(stated.model_dir) / "model.onnx").read_bytes()


def test_the_second_pod_asks_no_store_and_has_files_of_its_own(
    tmp_path: Path, folder: Path, store: Counted
) -> None:
    first, second = pod(tmp_path, "first"), pod(tmp_path, "second")
    markers = [fetching.fetch(stated) for stated in (first, second)]
    assert store.asked == 1
    assert markers[0] == markers[1]
    # No neighbour that changes the cache later changes what is served.
    (entry(folder) / "model.onnx").write_bytes(b"hostile")
    assert served(second) == WHOLE


def test_folders_are_kept_whole(tmp_path: Path, folder: Path) -> None:
    files = {"model.onnx": WHOLE, "below/weights": b"w", "below/deeper/empty": b""}
    for name, data in files.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
    cache = Cache(folder, 1 << 30, 0)
    found = fetching.digest(tmp_path / "files")
    cache.put(tmp_path / "files", found)
    into = tmp_path / "into"
    into.mkdir()
    assert cache.take(found, into, 1 << 30)
    taken = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert taken == files


def test_a_revisions_first_pod_asks_the_store_and_later_ones_find_its_pin(
    tmp_path: Path, folder: Path, store: Counted
) -> None:
    fetching.fetch(pod(tmp_path, "first", model_digest=None))
    fetching.fetch(pod(tmp_path, "again", model_digest=None))
    assert store.asked == 2
    (tmp_path / "digest").write_text(sha256(WHOLE))
    fetching.fetch(pod(tmp_path, "second", model_digest=None))
    assert store.asked == 2


@pytest.mark.parametrize("content", [b"hostile", b""])
def test_other_content_under_the_digests_name_is_noticed_removed_and_replaced(
    tmp_path: Path, folder: Path, store: Counted, content: bytes
) -> None:
    entry(folder).mkdir(parents=True)
    (folder / "incoming").mkdir()
    (entry(folder) / "model.onnx").write_bytes(content)
    stated = pod(tmp_path, "pod")
    fetching.fetch(stated)
    assert served(stated) == WHOLE
    assert (entry(folder) / "model.onnx").read_bytes() == WHOLE


def planted_links(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret").write_bytes(WHOLE)
    entry(folder).mkdir(parents=True)
    (entry(folder) / "model.onnx").symlink_to(tmp_path / "secret")


def planted_link_to_a_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "model.onnx").write_bytes(WHOLE)
    (folder / "objects").mkdir()
    entry(folder).symlink_to(tmp_path / "secrets")


def planted_pipe(tmp_path: Path, folder: Path) -> None:
    entry(folder).mkdir(parents=True)
    os.mkfifo(entry(folder) / "model.onnx")


def planted_pipe_for_a_lock(tmp_path: Path, folder: Path) -> None:
    (folder / "turns").mkdir()
    os.mkfifo(folder / "turns" / entry(folder).name)


def planted_file_for_a_folder(tmp_path: Path, folder: Path) -> None:
    (folder / "objects").write_bytes(b"")


def planted_giant(tmp_path: Path, folder: Path) -> None:
    entry(folder).mkdir(parents=True)
    with (entry(folder) / "model.onnx").open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "planted",
    [
        planted_links, planted_link_to_a_folder, planted_pipe, planted_pipe_for_a_lock,
        planted_file_for_a_folder, planted_giant,
    ],
)  # fmt: skip
def test_a_hostile_neighbour_gains_nothing_and_delays_nobody(
    tmp_path: Path, folder: Path, store: Counted, planted: Callable[[Path, Path], None]
) -> None:
    planted(tmp_path, folder)
    stated = pod(tmp_path, "pod", max_model_bytes=1 << 20)
    fetching.fetch(stated)
    assert served(stated) == WHOLE
    assert store.asked == 1


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, store: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    stated = pod(tmp_path, "pod", cache_dir=Path("/proc/none"))
    fetching.fetch(stated)
    assert "the node's cache cannot be used" in caplog.text


def test_a_digest_that_does_not_come_is_not_left_for_others(
    tmp_path: Path, folder: Path, store: Counted
) -> None:
    store.content = WHOLE + b"\x08\x09"
    assert fails(pod(tmp_path, "pod")).reason == "DigestMismatch"
    assert list((folder / "objects").iterdir()) == []
    (tmp_path / "digest").write_text(sha256(store.content))
    store.content = WHOLE
    fetching.fetch(pod(tmp_path, "good", pinned_digest_file=tmp_path / "none"))
    # In the cache by now; but the revision's pin is another.
    assert fails(pod(tmp_path, "other")).reason == "ModelContentChanged"


def test_two_pods_at_once_fetch_once(tmp_path: Path, folder: Path, store: Counted) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(20)

    store.before = wait
    stated = [pod(tmp_path, str(number)) for number in range(2)]
    threads = [threading.Thread(target=fetching.fetch, args=(each,)) for each in stated]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    assert not eventually_done(threads[1], 0.5)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert store.asked == 1
    assert [served(each) for each in stated] == [WHOLE, WHOLE]


def eventually_done(thread: threading.Thread, seconds: float) -> bool:
    thread.join(seconds)
    return not thread.is_alive()


def test_who_waited_long_enough_goes_on_alone(
    tmp_path: Path, folder: Path, store: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "turns").mkdir()
    with (folder / "turns" / entry(folder).name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetching.fetch(pod(tmp_path, "pod", cache_wait_seconds=0.3))
    assert store.asked == 1
    assert "another pod still fetches" in caplog.text


def test_what_was_used_longest_ago_leaves_first_and_what_is_in_use_never(
    tmp_path: Path, folder: Path
) -> None:
    cache = Cache(folder, 2000, 0)

    def put(number: int) -> str:
        files = tmp_path / str(number)
        files.mkdir()
        (files / "model.onnx").write_bytes(bytes([number]) * 900)
        found = fetching.digest(files)
        cache.put(files, found)
        os.utime(folder / "objects" / found[7:], (number, number))
        return found

    def take(wanted: str) -> bool:
        (tmp_path / "into").mkdir(exist_ok=True)
        (tmp_path / "into" / "model.onnx").unlink(missing_ok=True)
        return cache.take(wanted, tmp_path / "into", 1 << 20)

    first, second = put(1), put(2)
    assert take(first)
    third = put(3)
    assert [take(wanted) for wanted in (first, second, third)] == [True, False, True]
    os.utime(folder / "objects" / first[7:], (1, 1))
    os.utime(folder / "objects" / third[7:], (3, 3))
    in_use = os.open(folder / "objects" / first[7:], os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    fourth = put(4)
    os.close(in_use)
    assert [take(wanted) for wanted in (first, third, fourth)] == [True, False, True]


def held(tmp_path: Path, folder: Path, *names: str) -> tuple[Cache, str]:
    """A cache that holds a model with files of these names, and the model's digest."""
    files = tmp_path / "files"
    files.mkdir()
    for name in names:
        (files / name).write_bytes(name.encode() * 300)
    cache = Cache(folder, 1 << 20, 0)
    cache.put(files, fetching.digest(files))
    (tmp_path / "into").mkdir()
    return cache, fetching.digest(files)


def test_the_limit_of_size_counts_for_what_comes_out_of_the_cache_too(
    tmp_path: Path, folder: Path, store: Counted
) -> None:
    fetching.fetch(pod(tmp_path, "first"))
    assert fails(pod(tmp_path, "second", max_model_bytes=len(WHOLE) - 1)).reason == "TooLarge"


def test_pods_may_copy_the_same_model_at_once(tmp_path: Path, folder: Path) -> None:
    cache, wanted = held(tmp_path, folder, "model.onnx")
    in_use = os.open(folder / "objects" / wanted[7:], os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    assert cache.take(wanted, tmp_path / "into", 1 << 20)
    os.close(in_use)


def test_too_many_files_are_not_copied_and_none_of_them_stays(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, wanted = held(tmp_path, folder, "a", "b", "c")
    monkeypatch.setattr(caching, "MAX_FILES", 2)
    assert not cache.take(wanted, tmp_path / "into", 1 << 20)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_pod_whose_disk_is_full_does_not_blame_the_cache(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "model.onnx").write_bytes(bytes(CHUNK_BYTES + 2000))
    found = fetching.digest(files)
    cache = Cache(folder, 1 << 30, 0)
    cache.put(files, found)

    def apart(*_: Any) -> int:
        raise OSError(errno.EXDEV, "the node's disk and the pod's are two")

    monkeypatch.setattr(os, "copy_file_range", apart)
    (tmp_path / "into").mkdir()
    with a_disk_that_takes(CHUNK_BYTES + 1000):
        assert not cache.take(found, tmp_path / "into", 1 << 30)
    assert "the node's cache cannot be read" in caplog.text
    assert cache.take(found, tmp_path / "into", 1 << 30)


def test_what_becomes_visible_is_on_the_disk_before_and_its_name_after(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves a whole model or none."""
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def told(descriptor: int) -> None:
        visible = any((folder / "objects").iterdir())
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, visible))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    held(tmp_path, folder, "a", "b")
    assert {name for name, visible in synced if not visible} > {"a", "b"}
    assert [name for name, visible in synced if visible] == ["objects"]


def test_the_bound_holds_also_for_what_others_add_meanwhile(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_in = caching._copy_in

    def meanwhile(files: Path, into: Path) -> None:
        theirs = folder / "objects" / ("0" * 64)
        theirs.mkdir()
        (theirs / "model.onnx").write_bytes(bytes(1 << 20))
        os.utime(theirs, (1, 1))
        copy_in(files, into)

    monkeypatch.setattr(caching, "_copy_in", meanwhile)
    _, ours = held(tmp_path, folder, "model.onnx")
    assert [path.name for path in (folder / "objects").iterdir()] == [ours[7:]]


def test_a_model_larger_than_the_cache_evicts_nothing(tmp_path: Path, folder: Path, store: Counted) -> None:
    fetching.fetch(pod(tmp_path, "small"))
    store.content = WHOLE + b"\x32\x7f" + bytes(127)
    fetching.fetch(pod(tmp_path, "large", model_digest=sha256(store.content), cache_max_bytes=100))
    assert [path.name for path in (folder / "objects").iterdir()] == [entry(folder).name]


_PUT = """
import os, sys
from pathlib import Path
from pilotage_runtime import cache
def stop(path):
    print("here", flush=True)
    while True: pass
cache._sync = stop
cache.Cache(Path(sys.argv[1]), 1 << 30, 0).put(Path(sys.argv[2]), sys.argv[3])
"""


def test_a_crash_in_the_middle_leaves_nothing_that_counts_and_is_cleaned_up(
    tmp_path: Path, folder: Path, store: Counted
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "model.onnx").write_bytes(WHOLE)
    process = subprocess.Popen(
        [sys.executable, "-c", _PUT, folder, files, sha256(WHOLE)], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    (left,) = (folder / "incoming").iterdir()
    # While it lives nobody sweeps it away.
    fetching.fetch(pod(tmp_path, "beside"))
    assert left.exists()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert entry(folder).is_dir()
    other = WHOLE + b"\x08\x09"
    store.content = other
    fetching.fetch(pod(tmp_path, "after", model_digest=sha256(other)))
    eventually(lambda: not left.exists())
    assert sorted(path.name for path in (folder / "objects").iterdir()) == sorted(
        [entry(folder).name, entry(folder, other).name]
    )
    assert list((folder / "incoming").iterdir()) == []
