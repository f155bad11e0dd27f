from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pilotage_dev import gobuild

if TYPE_CHECKING:
    from pathlib import Path

GO_MOD = """\
module example.org/parts

go 1.26.4

require example.org/one v1.2.3

require (
\texample.org/two v4.5.6 // indirect
)
"""
BUILD = """\
ldflags = "-s -w"

[stamps]
"example.org/one/version.v" = "example.org/two"

[[binary]]
name = "one"
package = "example.org/one/cmd/one"
tags = ["small"]

[[binary]]
name = "two"
package = "./two"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "go.mod").write_text(GO_MOD)
    (tmp_path / "go.sum").write_text("example.org/one v1.2.3 h1:aaaa=\n")
    (tmp_path / "build.toml").write_text(BUILD)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "main.go").write_text("package main\n\nfunc main() {}\n")
    return tmp_path


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "build.toml", "two/main.go"])
def test_the_key_changes_with_everything_that_a_program_is_built_from(folder: Path, file: str) -> None:
    before = gobuild.load(folder).key
    with (folder / file).open("a") as opened:
        opened.write("\n")
    assert gobuild.load(folder).key != before


def test_the_key_stays_when_another_file_changes(folder: Path) -> None:
    before = gobuild.load(folder).key
    (folder / "README.md").write_text("not built from")
    assert gobuild.load(folder).key == before


def test_a_renamed_source_is_another_key(folder: Path) -> None:
    before = gobuild.load(folder).key
    (folder / "two" / "main.go").rename(folder / "two" / "start.go")
    assert gobuild.load(folder).key != before


def test_a_stamped_variable_takes_the_version_that_go_mod_pins(folder: Path) -> None:
    one, two = gobuild.load(folder).binaries
    assert one.ldflags == two.ldflags == "-s -w -X example.org/one/version.v=v4.5.6"
    assert one.tags == ("small",)
    assert two.tags == ()


def test_only_what_is_not_there_is_missing(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    module = gobuild.load(folder)
    monkeypatch.setattr(gobuild, "modules", lambda: (module,))
    programs = module.output / "bin"
    programs.mkdir(parents=True)
    (programs / "one").touch()
    (programs / ".two.unfinished").touch()  # a build that was interrupted

    assert [binary.name for _, binary in gobuild.missing()] == ["two"]
    assert gobuild.missing(["one"]) == []


def test_every_program_that_a_part_starts_is_built_by_a_module() -> None:
    names = {binary.name for module in gobuild.modules() for binary in module.binaries}
    assert {"etcd", "kube-apiserver", "kubelet", "pilot-discovery", "versitygw", "helm", "promtool"} <= names
    with pytest.raises(gobuild.StackError, match=r"no Go part is called 'nginx'; known are containerd, "):
        gobuild.binary("nginx")


def test_a_file_is_taken_from_its_module_without_building_anything(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = tmp_path_factory.mktemp("module")
    (downloaded / "crds").mkdir()
    (downloaded / "crds" / "one.yaml").write_text("kind: One\n")
    with (folder / "build.toml").open("a") as opened:
        opened.write('\n[[file]]\nname = "one-crds"\nmodule = "example.org/one"\npath = "crds"\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    module = gobuild.load(folder)
    monkeypatch.setattr(gobuild, "modules", lambda: (module,))
    monkeypatch.setattr(gobuild, "_require_go", lambda: None)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        gobuild, "_go", lambda _, *arguments: asked.append(arguments) or json.dumps({"Dir": str(downloaded)})
    )

    for _ in range(2):
        assert (gobuild.source_file("one-crds") / "one.yaml").read_text() == "kind: One\n"
    assert asked == [("mod", "download", "-json", "example.org/one")], "taken once"
