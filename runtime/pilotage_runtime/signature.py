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
    """Who must have signed: a public key, or roots of certificates (both PEM), or an identity. One of the three."""

    public_key: str | None = None
    certificates: str | None = None
    identity: str | None = None
    issuer: str | None = None
    trust_config: Path | None = None

    @property
    def ways(self) -> int:
        """How many of the three are stated; one that is empty or stated in part counts, and will be refused."""
        whose = (self.identity, self.issuer, self.trust_config)
        three = (
            self.public_key is not None,
            self.certificates is not None,
            any(x is not None for x in whose),
        )
        return sum(three)

    @property
    def asked(self) -> bool:
        """Whether a signature is asked for at all."""
        return self.ways > 0


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
    if trusted.ways > 1:
        raise _invalid(
            "one of a public key, certificates and an identity can be asked for, not several of them"
        )
    verifier = verifying.Config()
    try:
        if trusted.public_key is not None:
            return verifier.use_elliptic_key_verifier(
                public_key=_written(folder / "key.pem", trusted.public_key)
            )
        if trusted.certificates is not None:
            chain = [_written(folder / "certificates.pem", trusted.certificates)]
            return verifier.use_certificate_verifier(certificate_chain=chain)
        if trusted.identity and trusted.issuer and trusted.trust_config:
            return verifier.use_sigstore_verifier(
                identity=trusted.identity, oidc_issuer=trusted.issuer, trust_config=trusted.trust_config
            )
    except Exception as error:  # sigstore has a family of its own beside those of its parsers
        raise _invalid(f"what should be trusted cannot be read: {error}") from error
    raise _invalid("an identity needs its issuer and a trust configuration too, and they an identity")


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
