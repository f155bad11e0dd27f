"""A model behind a URI, brought to this machine once: fetched, verified, and hashed again before each use.

$XDG_CACHE_HOME/pilotage/models/DIGEST-OF-THE-URI/    as `pilotage-runtime fetch` lays it out
"""

import fcntl
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from pilotage_cli.errors import CommandError
from pilotage_cli.flags import Flags, variable
from pilotage_runtime.fetch import fetch
from pilotage_runtime.fetched import MARKER, Marker, read_marker
from pilotage_runtime.settings import FetchSettings

# What the stores' own tools read from the environment, by scheme; a pod has them as files of a Secret.
_S3_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
_CREDENTIALS = {
    "s3": (*_S3_KEYS, "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    "hf": ("HF_TOKEN",),
}  # fmt: skip
_LOOK_SECONDS = 0.1


def fetched(uri: str, flags: Flags, console: Console, *, refresh: bool) -> Path:
    """Bring a model here, or take what an earlier call brought; raise StartFailure otherwise."""
    folder = _cache() / hashlib.sha256(uri.encode()).hexdigest()[:24]
    os.environ[variable(FetchSettings, "model_uri")] = uri
    os.environ[variable(FetchSettings, "model_dir")] = str(folder)
    with _alone(folder), _unwinding(), credentials(uri):
        if refresh:
            (folder / MARKER).unlink(missing_ok=True)
        known = read_marker(folder)
        marker = _watched(flags.read(FetchSettings), folder, console)
    again = known is not None and known == marker
    console.print(
        f"{size(marker.bytes)}, {marker.digest}"
        + (", from the cache (--refresh fetches it anew)" if again else ", fetched and verified"),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return folder


def _watched(settings: FetchSettings, folder: Path, console: Console) -> Marker:
    """Fetch, and show how much has come."""
    done = threading.Event()
    with Progress(
        SpinnerColumn(), TextColumn("fetching"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        console=console, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=None)

        def watch() -> None:
            while not done.wait(_LOOK_SECONDS):
                progress.update(task, completed=_written(folder))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            return fetch(settings)
        finally:
            done.set()
            watcher.join()


def _written(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed or removed meanwhile
            continue
    return total


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Let one process at a time write there: another would take the first one's half for leftovers."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder.parent / f"{folder.name}.lock").open("w")
    except OSError as error:
        raise CommandError(
            f"the cache {folder.parent} cannot be written: {error.strerror}; name another in XDG_CACHE_HOME"
        ) from None
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _unwinding() -> Generator[None]:
    """Let a signal end what runs by an exception: killed at once, it would leave the keys' files behind."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    ours = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def credentials(uri: str) -> Generator[None]:
    """Lay the environment's keys for the store where fetch reads them, as long as it runs, unless files were named."""
    name = variable(FetchSettings, "credentials_dir")
    scheme = urlsplit(uri).scheme
    found = {key: os.environ[key] for key in _CREDENTIALS.get(scheme, ()) if os.environ.get(key)}
    # An endpoint or a region without keys would be an incomplete Secret; the driver finds them in the environment itself.
    if os.environ.get(name) or not found or (scheme == "s3" and not found.keys() & _S3_KEYS):
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="pilotage-keys-"))  # nobody else may look into it
    try:
        for key, value in found.items():
            (folder / key).write_text(value)
        os.environ[name] = str(folder)
        yield
    finally:
        os.environ.pop(name, None)
        shutil.rmtree(folder)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pilotage" / "models"


def size(count: int) -> str:
    """Write a number of bytes as a person reads it."""
    shown = float(count)
    for unit in ("bytes", "kB", "MB"):
        if shown < 1000:
            return f"{shown:.0f} {unit}" if unit == "bytes" else f"{shown:.1f} {unit}"
        shown /= 1000
    return f"{shown:.1f} GB"
