"""containerd with runc and the CNI plugins, all its files in the stack's own folder."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from pilotage_dev.errors import StackError
from pilotage_dev.leftovers import NETWORK
from pilotage_dev.part import Part, Tier
from pilotage_dev.process import Command
from pilotage_dev.stack import BRIDGE, POD_CIDR, Stack

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.internal.v1.restart", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  # Otherwise the network namespaces are mounted where other programs keep theirs.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""


def socket(stack: Stack) -> Path:
    return stack.folder_of("containerd") / "containerd.sock"


def ctr(stack: Stack, *arguments: str) -> str:
    """Run containerd's own client in Kubernetes' namespace of the stack's containerd."""
    done = subprocess.run(
        ["ctr", f"--address={socket(stack)}", "--namespace=k8s.io", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"ctr {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def _network(stack: Stack) -> str:
    folder = stack.folder_of("containerd")
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": NETWORK,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "ipMasq": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "subnet": POD_CIDR,
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": f"{folder}/addresses",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )


def _prepare(stack: Stack) -> None:
    folder = stack.folder_of("containerd")
    (folder / "config.toml").write_text(CONFIG.format(folder=folder, socket=socket(stack)))
    networks = stack.folder_of("containerd/cni")
    (networks / "10-bridge.conflist").write_text(_network(stack))


def _command(stack: Stack) -> Command:
    return Command(("containerd", "--config", f"{stack.folder_of('containerd')}/config.toml"))


def _ready(stack: Stack) -> bool:
    try:
        ctr(stack, "version")
    except StackError:
        return False
    return True


CONTAINERD = Part(
    name="containerd",
    tier=Tier.NODE,
    after=("network",),
    prepare=_prepare,
    command=_command,
    ready=_ready,
)
