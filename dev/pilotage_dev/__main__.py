"""The command line: `./dev/dev up`, and what one does with a stack that is up."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from pilotage_dev import images, machine, whole
from pilotage_dev.errors import StackError
from pilotage_dev.part import Tier

DESCRIPTION = """\
A whole Kubernetes of real parts on this machine, without Docker: control plane, one node, Istio's
control plane with Envoy, Prometheus, an S3 model store. Needs root and Debian or Ubuntu."""
EXAMPLES = """\
examples:
  dev/dev up                        everything; the first time it builds for a while
  dev/dev up --only control-plane   an API server without a node
  export KUBECONFIG=/var/lib/pilotage-dev/kubeconfig
  dev/dev load-image runtime        build Dockerfile.runtime again; new pods take it
  dev/dev logs kubelet -f           follow one part's log
  dev/dev down                      stop and remove all of it"""

TIERS = {"control-plane": Tier.CONTROL_PLANE, "node": Tier.NODE, "all": Tier.ALL}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev/dev",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up", help="bring the stack up anew; leftovers of an earlier one are removed first"
    )
    commands.add_parser("down", help="stop the stack and remove what it made; its logs stay")
    commands.add_parser("status", help="say how each part is; exits 1 if one is not well")
    logs = commands.add_parser("logs", help="show the log of one part")
    logs.add_argument("part", choices=[part.name for part in whole.PARTS if part.command], metavar="PART")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    load = commands.add_parser("load-image", help="put an image into the node: IfNotPresent then finds it")
    load.add_argument(
        "image",
        metavar="IMAGE",
        help="operator or runtime, built as the code is now; or an archive (docker save)",
    )
    build = commands.add_parser("build", help="build programs and images that are missing, and start nothing")
    for command in (up, build):
        command.add_argument(
            "--only", choices=TIERS, default="all", help="how much; each holds the one before"
        )
    return parser


def _logs(part: str, follow: bool) -> None:
    log = whole.STACK.log(part)
    if not log.exists():
        raise StackError(f"{part} has written no log: {log} is not there")
    more = ["-f"] if follow else []
    os.execvp("tail", ["tail", "-n", "200" if follow else "+1", *more, str(log)])


def _load_image(name: str) -> None:
    machine.require_root()
    if Path(name).is_file():
        images.load_archive(whole.STACK, Path(name))
    else:
        images.load(whole.STACK, images.named(name), _say)


def _say(line: str) -> None:
    # `dev/dev status | head` closes the pipe early; what is under way goes on.
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


def main() -> int:
    """Do what the command line asks; a sentence and 1 if it cannot be done."""
    asked = _parser().parse_args()
    try:
        match asked.command:
            case "up":
                whole.up(TIERS[asked.only], _say)
            case "down":
                whole.down(_say)
            case "status":
                return 0 if whole.status(_say) else 1
            case "logs":
                _logs(asked.part, asked.follow)
            case "load-image":
                _load_image(asked.image)
            case _:
                machine.require_root()
                whole.build(TIERS[asked.only], _say)
                machine.install_browser(_say)
    except StackError as error:
        print(f"dev: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
