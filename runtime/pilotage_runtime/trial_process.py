"""The process in which a load is tried: it loads what comes on its standard input, predicts, and tells."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import orjson

from pilotage_runtime.contract import TensorSpec
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_ROWS = 256


def main() -> int:
    """Run with format, name, seconds and bytes."""
    form, name, seconds, memory = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    # Libraries print; what is told goes where they cannot.
    told = os.dup(1)
    os.dup2(2, 1)
    _contain(seconds)
    by_format.library(form)
    file = ModelFile(Path(name), form, sys.stdin.buffer.read())
    # Not the address space: an allocator that may not reserve any waits for ever.
    _limit(resource.RLIMIT_DATA, _data() + memory)
    os.write(told, orjson.dumps(_outcome(file, memory)))
    # At once: what a damaged model has left behind may crash where it is freed.
    os._exit(0)


def _outcome(file: ModelFile, memory: int) -> dict[str, object]:
    try:
        model = by_format.build(file, LoadOptions(threads=1))
        contract = model.contract()
        inputs = {spec.name: _values(spec) for spec in contract.inputs}
    except StartFailure as failure:
        if isinstance(failure.__cause__, MemoryError):
            message = f"takes more than {memory // 2**20} MiB to load"
            return {"stage": Stage.LOAD, "reason": Reason.INVALID_MODEL, "message": message, "bare": True}
        return {"stage": failure.stage, "reason": failure.reason, "message": failure.message, "bare": False}
    with contextlib.suppress(Exception):  # that no row can be answered is for the warm-up to find and to say
        model.run(inputs, [spec.name for spec in contract.outputs])
    return {}


def _values(spec: TensorSpec) -> np.ndarray:
    """Make a row of zeros, and others that take other ways through the trees."""
    shape = [_ROWS, *(1 if size == -1 else size for size in spec.shape[1:])]
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    chance = np.random.default_rng(0)
    values = chance.normal(size=shape) * 10.0 ** chance.integers(-3, 6, (_ROWS, *[1] * (len(shape) - 1)))
    values[0] = 0
    values[1] = np.nan if spec.allow_non_finite else 0
    return values.astype(spec.dtype)


def _contain(seconds: int) -> None:
    """See to it that this process ends, alone, and leaves no copy of the model."""
    # Where memory runs out, this process is to go and not the server.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A dump, which a crash may hand to the node, would hold a decrypted model.
    libc.prctl(_PR_SET_DUMPABLE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, seconds)


def _limit(kind: int, wanted: int) -> None:
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _data() -> int:
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
