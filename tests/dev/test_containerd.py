from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pilotage_dev import gobuild
from pilotage_dev.parts.containerd import CONTAINERD
from pilotage_dev.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path


def test_containerd_finds_the_shim_that_was_built_with_it_before_any_other(tmp_path: Path) -> None:
    assert CONTAINERD.command is not None
    started = CONTAINERD.command(Stack(tmp_path))
    first, _, rest = started.environment["PATH"].partition(os.pathsep)
    assert f"{first}/containerd-shim-runc-v2" == str(gobuild.binary("containerd-shim-runc-v2"))
    assert f"{first}/containerd" == started.arguments[0]
    assert rest == os.environ["PATH"], "runc is Debian's"
