"""The images of the stack: built once for each content, kept as archives, put into containerd."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pilotage_dev import buildah, debian, gobuild, paths
from pilotage_dev.errors import StackError
from pilotage_dev.parts import containerd

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotage_dev.stack import Stack

ALERTMANAGER_FILES = Path("/usr/share/prometheus/alertmanager")


@dataclass(frozen=True)
class Image:
    """One image: its name in the cluster, and what it is made of."""

    name: str
    reference: str
    dockerfile: Callable[[], str]
    # Files in the build's context: where they lie there, and here.
    context: Callable[[], dict[str, Path]]
    needs_base: bool = False

    def key(self) -> str:
        """Change whenever anything changes that the image is built from."""
        return _key(self, self.context())

    def lay_out(self, folder: Path) -> dict[str, Path]:
        """Copy the build's context into the folder and return the copies by name."""
        copies: dict[str, Path] = {}
        for name, file in self.context().items():
            copies[name] = folder / name
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copies[name])
        return copies

    def archive(self, key: str) -> Path:
        return paths.cache() / "images" / f"{self.name}-{key}.tar"


def _key(image: Image, context: dict[str, Path]) -> str:
    digest = hashlib.sha256(image.dockerfile().encode())
    if image.needs_base:
        digest.update(debian.key().encode())
    for name, file in sorted(context.items()):
        digest.update(f"{name}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _scratch(entrypoint: str) -> str:
    return f'FROM scratch\nCOPY root/ /\nENTRYPOINT ["{entrypoint}"]\n'


def _program(name: str, inside: str) -> dict[str, Path]:
    return {f"root{inside}": gobuild.binary(name)}


def _alertmanager() -> dict[str, Path]:
    program = Path("/usr/bin/prometheus-alertmanager")
    linked = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    libraries = [Path(found) for found in re.findall(r"(/\S+) \(0x", linked)]
    templates = list(ALERTMANAGER_FILES.glob("*.tmpl"))
    if not templates:
        raise StackError(f"{ALERTMANAGER_FILES} has no templates: reinstall Debian's prometheus-alertmanager")
    return {f"root{file}": file for file in [program, *libraries, *templates]}


def _of_project(name: str) -> Image:
    """Return an image from the project's own Dockerfile."""

    def context() -> dict[str, Path]:
        top = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "hatch_build.py")
        folders = (paths.REPOSITORY / "cli", paths.REPOSITORY / name)
        code = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        files = [file for each in top if (file := paths.REPOSITORY / each).exists()] + code
        return {
            str(file.relative_to(paths.REPOSITORY)): file
            for file in files
            if "__pycache__" not in file.parts and file.suffix != ".binpb"
        }

    return Image(
        name=name,
        reference=f"localhost/pilotage-{name}:dev",
        dockerfile=(paths.REPOSITORY / f"Dockerfile.{name}").read_text,
        context=context,
        needs_base=True,
    )


PAUSE = Image(
    "pause", "localhost/pause:1", partial(_scratch, "/pause"), partial(_program, "pause", "/pause")
)  # fmt: skip
PROMETHEUS = Image(
    "prometheus",
    "localhost/prometheus:dev",
    partial(_scratch, "/bin/prometheus"),
    partial(_program, "prometheus", "/bin/prometheus"),
)
CONFIG_RELOADER = Image(
    "config-reloader",
    "localhost/prometheus-config-reloader:dev",
    partial(_scratch, "/bin/prometheus-config-reloader"),
    partial(_program, "prometheus-config-reloader", "/bin/prometheus-config-reloader"),
)
ALERTMANAGER = Image(
    "alertmanager",
    "localhost/alertmanager:dev",
    partial(_scratch, "/usr/bin/prometheus-alertmanager"),
    _alertmanager,
)
OPERATOR = _of_project("operator")
RUNTIME = _of_project("runtime")
# The local stack runs it as a process; only kind needs it as an image.
STORE = Image(
    "store",
    "localhost/versitygw:dev",
    partial(_scratch, "/versitygw"),
    partial(_program, "versitygw", "/versitygw"),
)
IMAGES = (PAUSE, PROMETHEUS, CONFIG_RELOADER, ALERTMANAGER, RUNTIME, OPERATOR)


def named(name: str) -> Image:
    """Return the image with this short name or this name in the cluster."""
    for image in IMAGES:
        if name in (image.name, image.reference):
            return image
    known = ", ".join(image.name for image in IMAGES)
    raise StackError(f"no image is called {name!r}; known are {known}")


def build(image: Image, say: Callable[[str], None]) -> Path:
    """Return the image's archive, built if anything that it is made of changed."""
    if (archive := image.archive(image.key())).exists():
        return archive
    began = time.monotonic()
    say(f"building image {image.name} …")
    buildah.tidy()
    if image.needs_base:
        buildah.provide_base(say)
    with tempfile.TemporaryDirectory(prefix="pilotage-image-") as folder:
        copies = image.lay_out(Path(folder))
        # The files may be changed while this runs: the key is of what is built.
        archive = image.archive(_key(image, copies))
        buildah.build(image.reference, image.dockerfile(), Path(folder))
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_suffix(f".{os.getpid()}")
    buildah.save(image.reference, unfinished)
    for earlier in archive.parent.glob(f"{image.name}-*.tar"):
        earlier.unlink()
    unfinished.rename(archive)
    say(f"built image {image.name} in {time.monotonic() - began:.0f} s")
    return archive


def load(stack: Stack, image: Image, say: Callable[[str], None]) -> None:
    """Build the image, if anything that it is made of changed, and put it into the stack's containerd."""
    load_archive(stack, build(image, say))


def load_built(stack: Stack, image: Image) -> None:
    """Put the image, as it was last built, into the stack's containerd."""
    built = list((paths.cache() / "images").glob(f"{image.name}-*.tar"))
    if len(built) != 1:
        raise StackError(f"the image {image.name} is not built: run `dev/dev build`")
    load_archive(stack, built[0])


def load_archive(stack: Stack, archive: Path) -> None:
    """Put an image that `docker save` or `buildah push docker-archive:` wrote into the stack's containerd."""
    if not archive.is_file():
        raise StackError(f"there is no image archive at {archive}")
    containerd.ctr(stack, "images", "import", str(archive))
