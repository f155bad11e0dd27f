from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pilotage_dev import process
from pilotage_dev.leftovers import mounts_below

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
tmpfs /state/kubelet/pods/a/volumes/token tmpfs rw 0 0
overlay /state/containerd/rootfs overlay rw 0 0
tmpfs /state/kubelet/pods/a/volumes/with\\040blank tmpfs rw 0 0
proc /state/containerd/rootfs/proc proc rw 0 0
tmpfs /state-of-another/x tmpfs rw 0 0
"""


def test_mounts_of_the_stack_are_found_the_deepest_first() -> None:
    found = mounts_below(Path("/state"), MOUNTS)
    assert [str(point) for point in found] == [
        "/state/kubelet/pods/a/volumes/with blank",
        "/state/kubelet/pods/a/volumes/token",
        "/state/containerd/rootfs/proc",
        "/state/containerd/rootfs",
    ]


def test_a_folder_whose_name_only_begins_alike_is_not_ours() -> None:
    assert Path("/state-of-another/x") not in mounts_below(Path("/state"), MOUNTS)


def test_of_two_mounts_on_one_point_both_are_listed() -> None:
    twice = "tmpfs /state/a tmpfs rw 0 0\ntmpfs /state/a tmpfs rw 0 0\n"
    assert mounts_below(Path("/state"), twice) == [Path("/state/a"), Path("/state/a")]


def test_a_process_is_found_by_its_mark_and_ended() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        ],
        env={**os.environ, "PILOTAGE_TEST_MARK": "here"},
    )
    found = [each for each, value in process.marked("PILOTAGE_TEST_MARK") if value == "here"]
    assert [each.pid for each in found] == [child.pid]

    process.end(found, grace=0.2)  # it ignores the request, and is made to

    assert not found[0].alive()
    assert process.marked("PILOTAGE_TEST_MARK") == []


def test_a_number_given_to_another_process_is_not_taken_for_the_first(tmp_path: Path) -> None:
    me = process.Process.of(os.getpid())
    assert me is not None
    process.Process(me.pid, me.started - 1).save(tmp_path / "earlier")
    me.save(tmp_path / "me")

    earlier = process.Process.read(tmp_path / "earlier")

    assert earlier is not None
    assert not earlier.alive()
    assert process.Process.read(tmp_path / "me") == me
    assert me.alive()


def test_a_pid_file_cut_short_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "cut").write_text('{"pid": 12')
    assert process.Process.read(tmp_path / "cut") is None
    assert process.Process.read(tmp_path / "none") is None
