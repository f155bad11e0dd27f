from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pilotage_dev import lock, paths
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_lock_names_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock.claim(file)

    owner = lock.owner(file)

    assert owner is not None
    assert owner.pid == os.getpid()
    assert owner.clone == str(paths.REPOSITORY)
    assert owner.since in str(owner)


def test_a_stack_of_another_clone_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    with monkeypatch.context() as other:
        other.setattr(paths, "REPOSITORY", tmp_path / "other")
        lock.claim(file)
    with pytest.raises(
        StackError, match=rf"{tmp_path}/other since .* stop it first with `{tmp_path}/other/dev/dev down`"
    ):
        lock.claim(file)


def test_while_one_brings_the_stack_up_another_is_told_who(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with lock.held(file):
        lock.claim(file)
        with (
            pytest.raises(StackError, match=f"going up or down just now, by .*pid {os.getpid()}"),
            lock.held(file),
        ):
            pass
    with lock.held(file):
        lock.release(file)
    assert lock.owner(file) is None
