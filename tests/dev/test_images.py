from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotage_dev import images
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from pathlib import Path


def image(dockerfile: str, context: dict[str, Path]) -> images.Image:
    return images.Image("x", "localhost/x:dev", lambda: dockerfile, lambda: context)


def test_an_images_key_changes_with_its_files_their_names_and_its_dockerfile(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("a = 1\n")
    first = image("FROM scratch\n", {"code.py": file}).key()
    assert image("FROM scratch\n", {"code.py": file}).key() == first
    assert image("FROM scratch\nUSER 1\n", {"code.py": file}).key() != first
    assert image("FROM scratch\n", {"other.py": file}).key() != first
    file.write_text("a = 2\n")
    assert image("FROM scratch\n", {"code.py": file}).key() != first


def test_the_projects_images_hold_their_own_half_of_the_code_only() -> None:
    for own, other in ((images.OPERATOR, "runtime/"), (images.RUNTIME, "operator/")):
        context = own.context()
        assert "pyproject.toml" in context
        assert not any(name.startswith(other) or "__pycache__" in name for name in context)


def test_an_image_is_found_by_either_name() -> None:
    assert images.named("runtime") is images.named("localhost/pilotage-runtime:dev") is images.RUNTIME
    with pytest.raises(StackError, match="no image is called 'rutnime'; known are pause, prometheus"):
        images.named("rutnime")
