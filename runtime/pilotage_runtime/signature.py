"""OpenSSF model signatures: whoever signed the files is the one that the ModelDeployment trusts.

The signature is the file model.sig at the top of the model's folder, as `model_signing sign` leaves it. It covers
every file beside it, so that an added file is refused like a changed one. A key or a certificate is checked without
any network; an identity needs a trust configuration (a file), since the roots of trust would be asked for elsewhere.
"""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilotage_runtime.failure import Reason, Stage, StartFailure

NAME = "model.sig"
_LARGEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Trusted:
    """Who must have signed: a public key, or roots of certificates (both PEM), or an identity."""

    public_key: str | None = None
    certificates: str | None = None
    identity: str | None = None
    issuer: str | None = None
    trust_config: Path | None = None

    @property
    def asked(self) -> bool:
        """Whether a signature is asked for at all."""
        return bool(self.public_key or self.certificates or self.identity)


def verify(folder: Path, trusted: Trusted) -> None:
    """Raise StartFailure unless every file of the folder is as the trusted one signed it."""
    path = folder / NAME
    if not path.is_file():
        raise _invalid(
            f"the model has no signature: the file {NAME} should lie at the top of its folder (model_signing sign)"
        )
    if path.stat().st_size > _LARGEST_BYTES:
        raise _invalid(f"{NAME} is larger than {_LARGEST_BYTES} bytes")
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        verifier = _verifier(trusted, Path(beside))
        with _aside(path, Path(beside) / NAME) as signature:
            try:
                verifier.verify(folder, signature)
            except Exception as error:  # the library raises what sigstore, cryptography and its parsers do
                raise _invalid(
                    f"the signature does not hold: {' '.join(str(error).split())[:500]}"
                ) from error


def _verifier(trusted: Trusted, folder: Path) -> Any:
    try:
        from model_signing import verifying  # noqa: PLC0415 - loads all of sigstore
    except ImportError as error:
        raise StartFailure(
            Stage.VERIFY,
            Reason.LOAD_FAILED,
            f"checking a signature needs {error.name}, which is missing here: pip install 'pilotage[signing]'",
        ) from error
    try:
        if trusted.public_key:
            return verifying.Config().use_elliptic_key_verifier(
                public_key=_written(folder / "key.pem", trusted.public_key)
            )
        if trusted.certificates:
            chain = [_written(folder / "certificates.pem", trusted.certificates)]
            return verifying.Config().use_certificate_verifier(certificate_chain=chain)
        if not trusted.issuer or trusted.trust_config is None:
            raise _invalid("an identity needs its issuer and a trust configuration too")
        return verifying.Config().use_sigstore_verifier(
            identity=trusted.identity or "", oidc_issuer=trusted.issuer, trust_config=trusted.trust_config
        )
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise _invalid(f"what should be trusted cannot be read: {error}") from error


@contextmanager
def _aside(path: Path, to: Path) -> Generator[Path]:
    """Take the signature out of the folder for a while: it does not cover itself."""
    path.rename(to)
    try:
        yield to
    finally:
        to.rename(path)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _invalid(message: str) -> StartFailure:
    return StartFailure(Stage.VERIFY, Reason.SIGNATURE_INVALID, message)
