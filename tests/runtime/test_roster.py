"""Numbers of versions: kept for ever by those that were ever wanted, used up by no others, and not without end."""

from pathlib import Path

import pytest

from pilotage_runtime import roster as rosters
from pilotage_runtime.catalog import Location
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.loading import Loading
from pilotage_runtime.repository import Repository
from pilotage_runtime.roster import Roster
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Sheet
from tests.runtime.conftest import Servers
from tests.runtime.test_repository import scale


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one model; nothing is loaded from what has no files."""
    (tmp_path / "repository" / "a" / "1").mkdir(parents=True)
    return tmp_path / "repository"


def add(folder: Path, model: str, *versions: int) -> None:
    for version in versions:
        (folder / model / str(version)).mkdir(parents=True)


def test_a_version_keeps_its_number_for_ever(folder: Path) -> None:
    roster = Roster(folder, "m")
    add(folder, "b", 1, 2)
    roster.replace("b", found := roster.find("b"))
    roster.replace("b", {})
    add(folder, "c", 1)
    roster.replace("c", roster.find("c"))
    assert roster.find("b") == found
    assert list(roster.wanted) == [1, 4]


def test_a_load_that_fails_uses_no_number_up(folder: Path) -> None:
    roster = Roster(folder, "m")
    add(folder, "b", 1, 2)
    add(folder, "c", 1)
    assert list(roster.find("b")) == [2, 3]
    assert list(roster.find("c")) == [2]


def test_more_versions_than_can_be_counted_are_refused_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rosters, "MAX_SLOTS", 5)
    roster = Roster(folder, "m")
    add(folder, "many", 1, 2, 3, 4)
    add(folder, "few", 1, 2, 3)
    with pytest.raises(StartFailure) as failure:
        roster.find("many")
    assert failure.value.message == (
        "4 new versions came; one server counts at most 4 versions in its life, and 1 of these are used up"
    )
    roster.replace("few", roster.find("few"))
    assert sorted(roster.wanted) == [1, 2, 3, 4]
    with pytest.raises(StartFailure, match="4 of these are used up"):
        roster.find("many")
    assert list(roster.find("a")) == [1]


async def test_what_a_failed_load_left_is_not_counted_as_the_next_ones(tmp_path: Path) -> None:
    sheet = Sheet()
    loading = Loading(ServeSettings(model_dir=tmp_path, model_name="m"), Repository(sheet))
    scale(tmp_path / "five" / "model.onnx", 5)
    five = {1: Location("five", "1", tmp_path / "five")}
    sheet.slot(1).features.place("of the model that failed")
    sheet.slot(1).predicted(3, ())
    await loading.prepare(five)
    loading.commit("five", five)
    assert sheet.slot(1).features.listed() == []
    sheet.slot(1).features.place("its own")
    scale(tmp_path / "five" / "model.onnx", 55)
    await loading.prepare(five)
    loading.commit("five", five)
    assert sheet.slot(1).features.listed() == ["its own"]


def test_a_folder_with_too_many_versions_is_refused_over_http(tmp_path: Path, serve: Servers) -> None:
    folder = tmp_path / "repository"
    scale(folder / "five" / "model.onnx", 5)
    server = serve(folder, repository_control=True)
    add(folder, "many", *range(1, 4096))
    answer = server.client.post("/v2/repository/models/many/load")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(
        "4095 new versions came; one server counts at most 4095 versions"
    )
    scale(folder / "six" / "model.onnx", 6)
    assert server.client.post("/v2/repository/models/six/load").status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_numbered_ends_the_start_with_a_reason(
    tmp_path: Path, serve: Servers, workers: int
) -> None:
    folder = tmp_path / "repository"
    add(folder, "many", *range(1, 4097))
    (folder / "other").mkdir()
    server = serve.start(folder, workers=workers)
    assert server.wait_exit() == 1
    assert '"reason":"LoadFailed"' in server.log()
    assert "4097 new versions came" in server.log()
    assert "Traceback" not in server.log()
