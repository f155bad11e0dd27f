"""containerd with runc and the CNI plugins, all its files in the stack's own folder."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from pilotage_dev.errors import StackError
from pilotage_dev.leftovers import NETWORK
from pilotage_dev.part import Part, Tier
from pilotage_dev.process import Command
from pilotage_dev.stack import BRIDGE, POD_CIDR, Stack

# Its version is the newest that this containerd knows, so that nothing has to be migrated.
CONFIG = """\
version = 4
root = "{folder}/root"
state = "{folder}/state"
temp = "{folder}/temp"
disabled_plugins = [
  "io.containerd.image-verifier.v1.bindir", "io.containerd.monitor.container.v1.restart",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[plugins."io.containerd.server.v1.grpc"]
  address = "{socket}"

[plugins."io.containerd.server.v1.ttrpc"]
  address = "{socket}.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

# Its socket would lie in /var/run, and nothing here plugs into it.
[plugins."io.containerd.nri.v1.nri"]
  disable = true

# Without these two, shims have their sockets and runc its state in /run/containerd, beside other programs'.
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{folder}/shims"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    Root = "{folder}/runc"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  # Otherwise the network namespaces are mounted where other programs keep theirs.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{folder}/cni"
"""


def socket(stack: Stack) -> Path:
    return stack.folder_of("containerd") / "containerd.sock"


def ctr(stack: Stack, *arguments: str) -> str:
    """Run containerd's own client in Kubernetes' namespace of the stack's containerd."""
    done = subprocess.run(
        [stack.binary("ctr"), f"--address={socket(stack)}", "--namespace=k8s.io", *arguments],
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
    program = Path(stack.binary("containerd"))
    # It starts its shim by name; Debian's, where there is one, is of another version.
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return Command((str(program), "--config", f"{stack.folder_of('containerd')}/config.toml"), {"PATH": path})


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
