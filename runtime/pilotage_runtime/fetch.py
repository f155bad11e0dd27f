"""`pilotage-runtime fetch`: download, verify, and only then show the model to `serve`."""

import contextlib
import logging
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pilotage_runtime import archive, formats, sealed, signature
from pilotage_runtime.cache import Cache
from pilotage_runtime.content import RUN_CODE
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
from pilotage_runtime.signature import Trusted
from pilotage_runtime.sources import open_source
from pilotage_runtime.sources.journal import Journal
from pilotage_runtime.sources.parts import PART_BYTES
from pilotage_runtime.sources.transfer import Transfer

ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_PARTIAL = ".partial"
_NEAR = frozenset({"", "file", "oci", "pvc"})
_FILES, _JOURNAL, _UNPACKED = "files", "journal", "unpacked"

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
    except Exception as error:
        # A fault of ours, which content brings about and no store that comes back mends: so it condemns as a model's.
        logger.exception("unexpected failure while fetching")
        failure = StartFailure(
            Stage.VERIFY,
            Reason.LOAD_FAILED,
            f"the fetch failed unexpectedly: {type(error).__name__}: {error}",
        )
        report(failure, settings.termination_log)
        return failure.exit_code
    write_termination_message(
        settings.termination_log,
        {"stage": Stage.VERIFY, "reason": "Fetched", "digest": marker.digest, "bytes": marker.bytes},
    )
    return 0


def fetch(settings: FetchSettings, sleep: Callable[[float], object] = time.sleep) -> Marker:
    """Bring the model to its folder, whole and verified, or raise StartFailure.

    After a failure nothing is left but parts that a later run of this pod goes on behind.
    """
    model_dir = settings.model_dir
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        present = _already_there(settings)
        if present is not None:
            logger.info("already fetched", extra={"digest": present.digest})
            return present
        shutil.rmtree(model_dir / CONTENT, ignore_errors=True)
        partial = model_dir / _PARTIAL
        (partial / _FILES).mkdir(parents=True, exist_ok=True)
        journal = Journal(partial / _JOURNAL, settings.model_uri, PART_BYTES)
        try:
            marker = _bring_and_place(settings, partial, journal, sleep)
            journal.clear()
        except StartFailure as failure:
            if failure.reason not in TRANSIENT:
                journal.clear()
            raise
        finally:
            if journal.empty:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if disk_full(error):
            raise StartFailure(
                Stage.DOWNLOAD, Reason.DISK_FULL, f"the model does not fit on its volume: {error}"
            ) from error
        raise StartFailure(
            Stage.DOWNLOAD, Reason.STORE_UNAVAILABLE, f"cannot write {model_dir}: {error}"
        ) from error
    return marker


def _bring_and_place(
    settings: FetchSettings, partial: Path, journal: Journal, sleep: Callable[[float], object]
) -> Marker:
    files = partial / _FILES
    marker = _bring(settings, files, journal, sleep)
    served = _unpacked(files, partial / _UNPACKED, settings.max_model_bytes)
    if served is not files:
        marker.unpacked = digest(served)
    trusted = _trusted(settings)
    if trusted.asked:
        signature.verify(served, trusted)
        logger.info("the signature holds", extra={"digest": marker.digest})
    # What a sealed model is, only serve can tell, which has the keys.
    if not sealed.envelope(formats.choose(served, Stage.VERIFY, settings.model_format)):
        found = formats.detect(served, Stage.VERIFY, settings.model_format, trusted=settings.trusted)
        if found.format in RUN_CODE and served is not files:
            # serve compares the files as they lie, and the digest that vouches for them is the archive's.
            raise StartFailure(
                Stage.VERIFY,
                Reason.UNTRUSTED_FORMAT,
                f"{found.path.name} is {found.format}, which runs code, and came in an archive, whose digest says nothing "
                "of the files that would run: store them unpacked, and state their digest",
            )
    # serve runs as another container of the pod and may have another user.
    served.chmod(0o755)
    served.rename(settings.model_dir / CONTENT)
    written = settings.model_dir / f"{MARKER}.new"
    written.write_text(marker.model_dump_json())
    written.rename(settings.model_dir / MARKER)
    logger.info("fetched", extra={"digest": marker.digest, "bytes": marker.bytes})
    return marker


def _bring(
    settings: FetchSettings, files: Path, journal: Journal, sleep: Callable[[float], object]
) -> Marker:
    """Bring the files out of the node's cache or from where the URI says, and compare their digest."""
    cache = _cache(settings)
    wanted = settings.model_digest or _pinned(settings)
    # Without a digest there is nothing to ask the cache for: the first pod of a revision always asks the store.
    with cache.turn(wanted, sleep) if cache and wanted else contextlib.nullcontext():
        if cache and wanted:
            journal.trim(files)
            if journal.empty and cache.take(wanted, files, settings.max_model_bytes):
                _verify_digest(settings, wanted)
                logger.info("taken from the node's cache", extra={"digest": wanted})
                return Marker(uri=settings.model_uri, digest=wanted, bytes=_size(files))
        transfer = _download(settings, files, journal, sleep)
        found = digest(files)
        if transfer.resumed and not _is_expected(settings, found):
            # Before the model is blamed: an earlier run's parts may be what is wrong.
            logger.warning(
                "parts of an earlier run do not fit; all of it is fetched anew", extra={"digest": found}
            )
            journal.clear()
            transfer = _download(settings, files, journal, sleep)
            found = digest(files)
        _verify_digest(settings, found)
        logger.info("downloaded", extra={"digest": found, **transfer.progress()})
        if cache:
            cache.put(files, found)
    return Marker(uri=settings.model_uri, digest=found, bytes=transfer.bytes)


def _cache(settings: FetchSettings) -> Cache | None:
    """Open the cache; what lies on the node or its mounts anyway is not copied twice."""
    if settings.cache_dir is None or urlsplit(settings.model_uri).scheme in _NEAR:
        return None
    return Cache(settings.cache_dir, settings.cache_max_bytes, settings.cache_wait_seconds)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _unpacked(files: Path, into: Path, limit: int) -> Path:
    """Unpack a model that came as one archive; give the folder to serve from."""
    inside = list(files.iterdir())
    if len(inside) != 1 or not inside[0].is_file() or not archive.is_archive(inside[0]):
        return files
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    size = archive.unpack(inside[0], into, limit)
    logger.info("unpacked", extra={"archive": inside[0].name, "bytes": size})
    return into


def _download(
    settings: FetchSettings, files: Path, journal: Journal, sleep: Callable[[float], object]
) -> Transfer:
    for attempt in range(1, ATTEMPTS + 1):
        journal.trim(files)
        transfer = Transfer(settings.max_model_bytes, journal=journal, parallel=settings.parallel_downloads)
        logger.info("download begins", extra={"uri": _without_query(settings.model_uri), "attempt": attempt})
        try:
            open_source(settings).download(files, transfer)
        except StartFailure as failure:
            if failure.reason not in TRANSIENT or attempt == ATTEMPTS:
                raise
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1)  # noqa: S311 - spreads pods that start together
            logger.warning(
                "%s",
                failure.message,
                extra={
                    "reason": failure.reason,
                    "retry_in_seconds": round(pause, 2),
                    **transfer.progress(),
                },
            )
            sleep(pause)
        else:
            return transfer
    raise AssertionError


def _is_expected(settings: FetchSettings, found: str) -> bool:
    return {settings.model_digest or found, _pinned(settings) or found} == {found}


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
    """Trust what an earlier run left only after checking it again, by what is asked for now."""
    marker = read_marker(settings.model_dir)
    if marker is None or marker.uri != settings.model_uri:
        (settings.model_dir / MARKER).unlink(missing_ok=True)
        return None
    content = settings.model_dir / CONTENT
    kept = content.is_dir() and digest(content) == (marker.unpacked or marker.digest)
    if kept and _is_expected(settings, marker.digest) and _is_signed(settings, content):
        return marker
    (settings.model_dir / MARKER).unlink(missing_ok=True)
    return None


def _trusted(settings: FetchSettings) -> Trusted:
    return Trusted(
        public_key=settings.signature_public_key,
        certificates=settings.signature_certificates,
        identity=settings.signature_identity,
        issuer=settings.signature_issuer,
        trust_config=settings.signature_trust_config,
    )


def _is_signed(settings: FetchSettings, content: Path) -> bool:
    """Whether what lies here is signed as it should be; it may have come when nobody asked for a signature."""
    trusted = _trusted(settings)
    if trusted.asked:
        try:
            signature.verify(content, trusted)
        except StartFailure as failure:
            logger.warning("%s; it is fetched anew", failure.message, extra={"reason": failure.reason})
            return False
    return True


def _pinned(settings: FetchSettings) -> str | None:
    """Read the revision's digest; the mount is optional, and empty until the first pod has reported."""
    try:
        return settings.pinned_digest_file.read_text().strip() or None
    except FileNotFoundError:
        return None


def _without_query(uri: str) -> str:
    """Presigned URLs carry their secret in the query."""
    return uri.partition("?")[0]
