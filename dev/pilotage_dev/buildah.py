"""buildah, with a storage of its own: what it keeps is not among the user's images."""

from __future__ import annotations

import functools
import os
import subprocess
from typing import TYPE_CHECKING

from pilotage_dev import debian, paths
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CERTIFICATES = "/etc/ssl/certs"
# Some ten changes of the code, about 5 GB.
LAYERS = 200
BUNDLE = f"{CERTIFICATES}/ca-certificates.crt"


def build(reference: str, dockerfile: str, context: Path) -> None:
    """Build a Dockerfile as it stands, without a registry; this machine's certificate authorities hold inside."""
    _buildah(
        "build",
        "--isolation=chroot",
        "--pull-never",
        "--layers",
        f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
        f"--build-arg=PIP_CERT={BUNDLE}",
        f"--build-arg=SSL_CERT_FILE={BUNDLE}",
        "--file=-",
        f"--tag={reference}",
        str(context),
        text=dockerfile,
    )


def tidy() -> None:
    """Drop every image and layer when many have gathered: each change of the code leaves its own."""
    if len(_buildah("images", "--all", "--quiet").split()) > LAYERS:
        _buildah("rmi", "--all", "--force")


def save(reference: str, archive: Path) -> None:
    """Write the image as an archive that containerd reads."""
    _buildah("push", "--quiet", reference, f"docker-archive:{archive}:{reference}")


def provide_base(say: Callable[[str], None]) -> None:
    """Make sure that the base image is there, under the name that the Dockerfiles use."""
    found = _buildah("images", "--quiet", "--no-trunc", f"--filter=label=key={debian.key()}")
    if found.strip():
        return
    archive = debian.archive(say)
    dockerfile = f'FROM scratch\nADD {archive.name} /\nLABEL key={debian.key()}\nCMD ["python3"]\n'
    _buildah("build", "--file=-", f"--tag={debian.REFERENCE}", str(archive.parent), text=dockerfile)


@functools.cache
def _driver() -> str:
    """Choose overlay where the kernel can, which is where the storage itself is no overlay (a container)."""
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(paths.cache())],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return "vfs" if kind == "overlayfs" else "overlay"


def _buildah(*arguments: str, text: str | None = None) -> str:
    storage = paths.cache() / "buildah"
    storage.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            "buildah",
            f"--root={storage}/root",
            f"--runroot={storage}/run",
            f"--storage-driver={_driver()}",
            *arguments,
        ],
        env={**os.environ, "TMPDIR": str(storage)},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        raise StackError(f"buildah {arguments[0]} failed:\n{output[-3000:]}")
    return done.stdout
