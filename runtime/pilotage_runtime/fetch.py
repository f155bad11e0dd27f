"""`pilotage-runtime fetch`: download, verify, and only then show the model to `serve`."""

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pilotage_runtime import formats
from pilotage_runtime.digest import digest
from pilotage_runtime.failure import (
    TRANSIENT,
    Reason,
    Stage,
    StartFailure,
    disk_full,
    report,
    write_termination_message,
)
from pilotage_runtime.fetched import CONTENT, MARKER, Marker, read_marker
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources import open_source
from pilotage_runtime.sources.transfer import Transfer

ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_PARTIAL = ".partial-"

logger = logging.getLogger(__name__)


def main(settings: FetchSettings) -> int:
    """Fetch and leave a termination message either way; give the exit status."""
    try:
        marker = fetch(settings)
    except StartFailure as failure:
        logger.error(  # noqa: TRY400 - the failure is explained, a traceback adds nothing
            "%s", failure.message, extra={"stage": failure.stage, "reason": failure.reason}
        )
        report(failure, settings.termination_log)
        return failure.exit_code
    write_termination_message(
        settings.termination_log,
        {"stage": Stage.VERIFY, "reason": "Fetched", "digest": marker.digest, "bytes": marker.bytes},
    )
    return 0


def fetch(settings: FetchSettings, sleep: Callable[[float], object] = time.sleep) -> Marker:
    """Bring the model to its folder, whole and verified, or raise StartFailure and leave nothing."""
    model_dir = settings.model_dir
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        present = _already_there(settings)
        if present is not None:
            logger.info("already fetched", extra={"digest": present.digest})
            return present
        for leftover in (*model_dir.glob(f"{_PARTIAL}*"), model_dir / CONTENT):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=model_dir))
        try:
            return _download_and_verify(settings, partial, sleep)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if disk_full(error):
            raise StartFailure(
                Stage.DOWNLOAD, Reason.DISK_FULL, f"the model does not fit on its volume: {error}"
            ) from error
        raise StartFailure(
            Stage.DOWNLOAD, Reason.STORE_UNAVAILABLE, f"cannot write {model_dir}: {error}"
        ) from error


def _download_and_verify(settings: FetchSettings, partial: Path, sleep: Callable[[float], object]) -> Marker:
    size = _download(settings, partial, sleep)
    found = digest(partial)
    _verify_digest(settings, found)
    formats.detect(partial, Stage.VERIFY, settings.model_format)
    marker = Marker(uri=settings.model_uri, digest=found, bytes=size)
    # serve runs as another container of the pod and may have another user.
    partial.chmod(0o755)
    partial.rename(settings.model_dir / CONTENT)
    written = settings.model_dir / f"{MARKER}.new"
    written.write_text(marker.model_dump_json())
    written.rename(settings.model_dir / MARKER)
    logger.info("fetched", extra={"digest": found, "bytes": size})
    return marker


def _download(settings: FetchSettings, partial: Path, sleep: Callable[[float], object]) -> int:
    source = open_source(settings)
    for attempt in range(1, ATTEMPTS + 1):
        transfer = Transfer(settings.max_model_bytes)
        logger.info("download begins", extra={"uri": _without_query(settings.model_uri), "attempt": attempt})
        try:
            source.download(partial, transfer)
        except StartFailure as failure:
            if failure.reason not in TRANSIENT or attempt == ATTEMPTS:
                raise
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1)  # noqa: S311 - spreads pods that start together
            logger.warning(
                "%s", failure.message, extra={"reason": failure.reason, "retry_in_seconds": round(pause, 2)}
            )
            _empty(partial)
            sleep(pause)
        else:
            return transfer.bytes
    raise AssertionError


def _verify_digest(settings: FetchSettings, found: str) -> None:
    stated = settings.model_digest
    if stated is not None and found != stated:
        raise StartFailure(
            Stage.VERIFY,
            Reason.DIGEST_MISMATCH,
            f"the model has digest {found}, but spec.model.digest is {stated}",
        )
    pinned = _pinned(settings)
    if pinned is not None and found != pinned:
        raise StartFailure(
            Stage.VERIFY,
            Reason.MODEL_CONTENT_CHANGED,
            f"the model has digest {found}, but this revision began with {pinned}: the content behind the URI has "
            "changed; publish new content under a new URI",
        )


def _already_there(settings: FetchSettings) -> Marker | None:
    """Trust what an earlier run of this pod left only after hashing it again."""
    marker = read_marker(settings.model_dir)
    if marker is None or marker.uri != settings.model_uri:
        (settings.model_dir / MARKER).unlink(missing_ok=True)
        return None
    content = settings.model_dir / CONTENT
    expected = {marker.digest, settings.model_digest or marker.digest, _pinned(settings) or marker.digest}
    if content.is_dir() and expected == {digest(content)}:
        return marker
    (settings.model_dir / MARKER).unlink(missing_ok=True)
    return None


def _pinned(settings: FetchSettings) -> str | None:
    """Read the revision's digest; the mount is optional, and empty until the first pod has reported."""
    try:
        return settings.pinned_digest_file.read_text().strip() or None
    except FileNotFoundError:
        return None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _without_query(uri: str) -> str:
    """Presigned URLs carry their secret in the query."""
    return uri.partition("?")[0]
