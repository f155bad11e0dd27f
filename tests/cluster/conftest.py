"""A real API server for the length of the tests in this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotage_operator.api.crd import crd
from tests.cluster.api_server import ApiServer
from tests.cluster.parts import control_plane_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotage_dev.control_plane import ControlPlane


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, API server and controller manager, without a node."""
    with control_plane_in(tmp_path_factory.mktemp("control-plane")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Iterator[ApiServer]:
    """The API server, with the CRD of this working tree established."""
    with ApiServer(control_plane.kubeconfig) as server:
        server.establish(crd())
        yield server
