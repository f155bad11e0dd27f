"""A control plane alone, on loopback and in a folder: a real API server for tests, beside any stack."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pilotage_dev import gobuild, process, runner
from pilotage_dev.errors import StackError
from pilotage_dev.parts.apiserver import APISERVER
from pilotage_dev.parts.controller_manager import CONTROLLER_MANAGER
from pilotage_dev.parts.etcd import ETCD
from pilotage_dev.process import Process
from pilotage_dev.runner import PartFailedError
from pilotage_dev.stack import MARK, Ports, Stack

if TYPE_CHECKING:
    from types import TracebackType

    from pilotage_dev.part import Part

PARTS = (ETCD, APISERVER, CONTROLLER_MANAGER)
OWNER = "owner"


class ControlPlane:
    """etcd, API server and controller manager for the length of a `with`; no node, so no pod runs.

    Parts beside them may change that; one with a program of `dev/go` goes by that program's name.

    >>> with ControlPlane(tmp_path, audit=True) as cluster:
    ...     subprocess.run([cluster.kubectl, "--kubeconfig", cluster.kubeconfig, "get", "namespaces"])
    """

    def __init__(self, folder: Path, audit: bool = False, beside: tuple[Part, ...] = ()) -> None:
        self._parts = (*PARTS, *beside)
        self._stack = Stack(
            folder=folder.absolute(), address="127.0.0.1", ports=Ports(*_free_ports()), audit=audit
        )

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._stack.kubeconfig

    @property
    def audit_log(self) -> Path:
        """One JSON event a line; there only if asked for."""
        return self._stack.audit_log

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return self._stack.api_url

    @property
    def node_pair(self) -> tuple[Path, Path]:
        """Certificate and key by which the API server knows a kubelet on this machine."""
        return self._stack.pki / "kubelet-server.crt", self._stack.pki / "kubelet-server.key"

    @property
    def kubectl(self) -> Path:
        """The kubectl of the same version."""
        return gobuild.binary("kubectl")

    def process(self, part: str) -> Process:
        """The process of a part that runs."""
        found = Process.read(self._stack.pid_file(part))
        if found is None:
            raise StackError(f"{part} does not run")
        return found

    def log(self, part: str) -> Path:
        """What a part wrote."""
        return self._stack.log(part)

    def check(self) -> None:
        """Raise what there is to say about a part that died."""
        if dead := runner.dead_parts(self._stack, self._parts):
            raise PartFailedError(self._stack, dead[0], "died")

    def __enter__(self) -> Self:
        gobuild.build(["kubectl", *(part.name for part in self._parts)])
        _end_orphans()
        if myself := Process.of(os.getpid()):
            myself.save(self._stack.folder / OWNER)
        try:
            runner.up(self._stack, self._parts, _silent)
        except BaseException:
            runner.down(self._stack, self._parts, _silent)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        runner.down(self._stack, self._parts, _silent)


def _end_orphans() -> None:
    """End the control planes of test runs that were killed and could not do it themselves."""
    orphans: list[Process] = []
    for each, folder in process.marked(MARK):
        owner = Process.read(Path(folder) / OWNER)
        if (owner is not None and not owner.alive()) or not Path(folder).exists():
            orphans.append(each)
    process.end(orphans, grace=1)


def _silent(_: str) -> None:
    """Say nothing: in a test only what fails is of interest."""


def _free_ports() -> list[int]:
    """Return free loopback ports, one for each that a control plane needs."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in Ports.__dataclass_fields__]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
