"""Why a start failed, in the words that the operator reads from the pod's status.

The kind of a failure decides what the operator does: the model's fault rejects a revision, an
infrastructure failure holds the rollout and rejects nothing. So each reason belongs to exactly one kind.
"""

import errno
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

TERMINATION_MESSAGE_BYTES = 4096


class Stage(StrEnum):
    """The step of a model's way into service that failed."""

    DOWNLOAD = "Download"
    VERIFY = "Verify"
    LOAD = "Load"
    WARM_UP = "WarmUp"
    SERVE = "Serve"


class Reason(StrEnum):
    """Every reason that a termination message can carry."""

    NOT_FOUND = "NotFound"
    INVALID_URI = "InvalidURI"
    TOO_LARGE = "TooLarge"
    DIGEST_MISMATCH = "DigestMismatch"
    MODEL_CONTENT_CHANGED = "ModelContentChanged"
    UNKNOWN_FORMAT = "UnknownFormat"
    UNTRUSTED_FORMAT = "UntrustedFormat"
    INVALID_MODEL = "InvalidModel"
    LOAD_FAILED = "LoadFailed"
    WARM_UP_FAILED = "WarmUpFailed"
    UNSAFE_ARCHIVE = "UnsafeArchive"
    SIGNATURE_INVALID = "SignatureInvalid"
    WORKERS_CRASHED = "WorkersCrashed"
    STORE_UNAVAILABLE = "StoreUnavailable"
    ACCESS_DENIED = "AccessDenied"
    TIMED_OUT = "TimedOut"
    TRUNCATED = "Truncated"
    ADDRESS_NOT_ALLOWED = "AddressNotAllowed"
    CREDENTIALS_MISSING = "CredentialsMissing"
    DISK_FULL = "DiskFull"


INFRASTRUCTURE = frozenset(
    {
        Reason.STORE_UNAVAILABLE,
        Reason.ACCESS_DENIED,
        Reason.TIMED_OUT,
        Reason.TRUNCATED,
        Reason.ADDRESS_NOT_ALLOWED,
        Reason.CREDENTIALS_MISSING,
        Reason.DISK_FULL,
    }
)
# Worth another try within the same run: the rest needs a person, or kubelet's slower restarts.
TRANSIENT = frozenset({Reason.STORE_UNAVAILABLE, Reason.TIMED_OUT, Reason.TRUNCATED})

EXIT_MODEL = 1
EXIT_INFRASTRUCTURE = 75  # sysexits' EX_TEMPFAIL


class StartFailure(Exception):  # noqa: N818 - it is what the field calls it, not an error class
    """A model could not be fetched, loaded or warmed up."""

    def __init__(self, stage: Stage, reason: Reason, message: str) -> None:
        # The name of a file that Python could not decode holds halves of characters, which neither a log can carry
        # nor the pod's status.
        self.message = message.encode("utf-8", "replace").decode()
        super().__init__(self.message)
        self.stage = stage
        self.reason = reason

    @property
    def exit_code(self) -> int:
        """75 where trying again later may help, 1 where only other content does."""
        return EXIT_INFRASTRUCTURE if self.reason in INFRASTRUCTURE else EXIT_MODEL


def disk_full(error: OSError) -> bool:
    """Whether the volume, and not the model or the store, is what failed."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def write_termination_message(path: Path, fields: dict[str, Any]) -> None:
    """Leave one JSON line for kubelet, shortened until it fits; outside a pod there is no such file."""
    if not path.exists():
        return
    line = orjson.dumps(fields)
    if len(line) > TERMINATION_MESSAGE_BYTES:
        surplus = len(line) - TERMINATION_MESSAGE_BYTES
        message = str(fields.get("message", "")).encode()
        kept = message[: max(0, len(message) - 2 * surplus - 3)].decode(errors="ignore")
        line = orjson.dumps({**fields, "message": kept + "…"})
    path.write_bytes(line)


def report(failure: StartFailure, path: Path) -> None:
    """Write a failure where the operator looks for it."""
    write_termination_message(
        path, {"stage": failure.stage, "reason": failure.reason, "message": failure.message}
    )
