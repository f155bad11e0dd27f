"""Run one target for a while: `python -m fuzz TARGET --seconds N`.

Needs atheris (the extra `fuzz`). What it finds is kept in build/fuzz/TARGET; a crash is written there too: mend its
cause, and keep its bytes, made as small as they go, in fuzz/corpus/TARGET.
"""

import argparse
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

from fuzz.names import CORPUS, NAMES

_MOST_BYTES = 4096
_MOST_MEGABYTES = 2048
_SLOWEST_SECONDS = 10


def main() -> None:
    """Fuzz, after the corpus has been replayed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    stated = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed: pip install 'pilotage[fuzz]'")
    # Each refusal would be a line; here, for whoever replays the corpus in a test may want its log.
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["pilotage_runtime", "uvicorn"]):
        targets = importlib.import_module("fuzz.targets")
    found = Path("build") / "fuzz" / stated.target
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={stated.seconds}",
            f"-max_len={_MOST_BYTES}",
            f"-timeout={_SLOWEST_SECONDS}",
            f"-rss_limit_mb={_MOST_MEGABYTES}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
            str(found),
            str(CORPUS / stated.target),
        ],
        targets.TARGETS[stated.target],
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
