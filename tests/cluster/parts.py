"""The real parts that these tests need; where they cannot be had, one line says why."""

from __future__ import annotations

import os
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NoReturn

import pytest
from kubernetes.aio import client, config

from pilotage_dev import gobuild
from pilotage_dev.control_plane import ControlPlane
from pilotage_dev.errors import StackError
from pilotage_operator.adapters.kubernetes import Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path


@contextmanager
def control_plane_in(folder: Path) -> Generator[ControlPlane]:
    """Run etcd, API server and controller manager with their state in a folder."""
    with ExitStack() as running:
        try:
            cluster = running.enter_context(ControlPlane(folder, audit=True))
        except StackError as error:
            _missing("control plane", error)
        yield cluster


@asynccontextmanager
async def connected(plane: ControlPlane) -> AsyncGenerator[Cluster]:
    """The operator's own connection, as the administrator."""
    configuration = client.Configuration()
    await config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    async with Cluster(client.ApiClient(configuration)) as cluster:
        yield cluster


def helm_binary() -> str:
    """Give the path of Helm, built from its pinned source where it is not there yet."""
    try:
        gobuild.build(("helm",))
    except StackError as error:
        _missing("Helm", error)
    return str(gobuild.binary("helm"))


def _missing(part: str, error: StackError) -> NoReturn:
    """Skip with the reason; in CI, where every part can be had, fail."""
    reason = f"no {part} on this machine: {error}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
