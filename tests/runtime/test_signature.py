"""Model signatures, made here with the library's own signer and checked without any network."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilotage_runtime import fetch as fetching
from pilotage_runtime import signature
from pilotage_runtime.fetched import model_root
from pilotage_runtime.sources.parts import InParts, RemoteFile
from tests.runtime.test_archive import tar
from tests.runtime.test_fetch import fails, settings


def key_pair(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(*pem))
    return key


def public(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.fixture
def ours(tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    return key_pair(tmp_path, "ours")


@pytest.fixture
def model(tmp_path: Path, models: Path, ours: ec.EllipticCurvePrivateKey) -> Path:
    """A folder on the claim, signed with our key."""
    folder = tmp_path / "claim" / "fraud"
    shutil.copytree(models / "fraud" / "1", folder)
    sign(folder).use_elliptic_key_signer(private_key=tmp_path / "ours.key").sign(folder, folder / "model.sig")
    return folder


def sign(folder: Path) -> model_signing.signing.Config:
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[folder / "model.sig"])
    return model_signing.signing.Config().set_hashing_config(hashing)


def signed(tmp_path: Path, **changes: Any) -> Any:
    return settings(tmp_path, **{"model_uri": "pvc://claim/fraud", **changes})


def test_a_signed_model_is_fetched_with_its_signature(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey
) -> None:
    stated = signed(tmp_path, signature_public_key=public(ours))
    fetching.fetch(stated)
    found = {path.name: path.read_bytes() for path in model_root(stated.model_dir).iterdir()}
    assert found == {path.name: path.read_bytes() for path in model.iterdir()}


def test_what_the_librarys_own_command_signed_is_accepted(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey
) -> None:
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "sign",
        "key",
        model,
        "--private_key",
        tmp_path / "ours.key",
    ]
    (model / "model.sig").unlink()
    subprocess.run([*command, "--signature", model / "model.sig"], check=True, capture_output=True)
    fetching.fetch(signed(tmp_path, signature_public_key=public(ours)))


def test_a_packed_model_is_verified_by_what_was_unpacked(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey
) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    tar(tmp_path / "claim" / "good.tar", files)
    tar(tmp_path / "claim" / "bad.tar", {**files, "extra": b"x"})
    key = public(ours)
    fetching.fetch(signed(tmp_path, model_uri="pvc://claim/good.tar", signature_public_key=key))
    bad = signed(
        tmp_path, model_uri="pvc://claim/bad.tar", signature_public_key=key, model_dir=tmp_path / "bad"
    )
    assert fails(bad).reason == "SignatureInvalid"


def changed(model: Path) -> None:
    (model / "contract.json").write_text("{}")


def added(model: Path) -> None:
    (model / "added.txt").write_bytes(b"x")


def removed(model: Path) -> None:
    (model / "contract.json").unlink()


def renamed(model: Path) -> None:
    (model / "contract.json").rename(model / "other.json")


def unsigned(model: Path) -> None:
    (model / "model.sig").unlink()


def rubbish(model: Path) -> None:
    (model / "model.sig").write_bytes(b"\x00rubbish")


def empty(model: Path) -> None:
    (model / "model.sig").write_text("{}")


def test_a_signature_beyond_every_measure_is_not_parsed(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey
) -> None:
    with (model / "model.sig").open("ab") as file:
        file.truncate((16 << 20) + 1)
    failure = fails(signed(tmp_path, signature_public_key=public(ours)))
    assert (failure.reason, failure.exit_code) == ("SignatureInvalid", 1)
    assert "model.sig is larger than" in failure.message


@pytest.mark.parametrize("change", [changed, added, removed, renamed, unsigned, rubbish, empty])
def test_what_was_not_signed_so_is_refused(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey, change: Any
) -> None:
    change(model)
    failure = fails(signed(tmp_path, signature_public_key=public(ours)))
    assert (failure.stage, failure.reason, failure.exit_code) == ("Verify", "SignatureInvalid", 1)
    # Nobody asked for a signature here: an unsigned model is served as ever.
    fetching.fetch(signed(tmp_path, model_dir=tmp_path / "unasked"))


def test_another_key_is_refused(tmp_path: Path, model: Path) -> None:
    failure = fails(signed(tmp_path, signature_public_key=public(key_pair(tmp_path, "other"))))
    assert failure.reason == "SignatureInvalid"
    assert "the signature does not hold" in failure.message
    failure = fails(signed(tmp_path, signature_public_key="no PEM"))
    assert "what should be trusted cannot be read" in failure.message


def certificate(
    key: ec.EllipticCurvePrivateKey, name: str, by: ec.EllipticCurvePrivateKey, issuer: str, *, root: bool
) -> str:
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not root, key_cert_sign=root, crl_sign=root, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )  # fmt: skip
    if not root:
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING])
        made = made.add_extension(usage, critical=False)
    return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_a_certificate_is_trusted_by_its_root(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey
) -> None:
    root, other = key_pair(tmp_path, "root"), key_pair(tmp_path, "other")
    (tmp_path / "leaf.pem").write_text(certificate(ours, "signer", root, "root", root=False))
    (tmp_path / "root.pem").write_text(certificate(root, "root", root, "root", root=True))
    sign(model).use_certificate_signer(
        private_key=tmp_path / "ours.key",
        signing_certificate=tmp_path / "leaf.pem",
        certificate_chain=[tmp_path / "root.pem"],
    ).sign(model, model / "model.sig")
    fetching.fetch(signed(tmp_path, signature_certificates=(tmp_path / "root.pem").read_text()))
    stranger = certificate(other, "root", other, "root", root=True)
    failure = fails(signed(tmp_path, signature_certificates=stranger, model_dir=tmp_path / "other"))
    assert failure.reason == "SignatureInvalid"


def test_an_identity_needs_all_that_it_is_checked_with(tmp_path: Path, model: Path) -> None:
    failure = fails(signed(tmp_path, signature_identity="team@example.com"))
    assert failure.reason == "SignatureInvalid"
    assert "its issuer and a trust configuration" in failure.message


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    failure = fails(signed(tmp_path, signature_public_key=public(ours)))
    assert (failure.reason, failure.exit_code) == ("LoadFailed", 1)
    assert "pip install 'pilotage[signing]'" in failure.message


def test_a_model_that_was_fetched_unasked_is_verified_once_a_signature_is_asked_for(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey, caplog: pytest.LogCaptureFixture
) -> None:
    """On a laptop the folder outlives the call, and the next one may ask for more than the first."""
    caplog.set_level("INFO")
    fetching.fetch(signed(tmp_path))
    stranger = signed(tmp_path, signature_public_key=public(key_pair(tmp_path, "other")))
    assert fails(stranger).reason == "SignatureInvalid"
    fetching.fetch(signed(tmp_path))
    caplog.clear()
    fetching.fetch(signed(tmp_path, signature_public_key=public(ours)))
    assert "already fetched" in caplog.messages
    assert (model_root(tmp_path / "models") / "model.sig").exists()


class InAStore:
    """The files of a folder, as a store gives them that names their version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def files(self) -> list[RemoteFile]:
        return [RemoteFile(path.name, path.name, path.stat().st_size, "1") for path in self._folder.iterdir()]

    def read(self, file: RemoteFile, start: int, end: int | None) -> list[bytes]:
        return [(self._folder / file.key).read_bytes()[start:end]]

    def checksum(self, file: RemoteFile) -> None:
        pass

    def close(self) -> None:
        pass


class KilledMeanwhile:
    def verify(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_fetch_that_is_killed_while_it_verifies_spoils_nothing_for_the_next_one(
    tmp_path: Path, model: Path, ours: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "open_source", lambda _: InParts(InAStore(model)))
    stated = signed(tmp_path, model_uri="s3://models/fraud", signature_public_key=public(ours))
    child = os.fork()
    if child == 0:
        try:
            signature._verifier = lambda *_: KilledMeanwhile()
            fetching.fetch(stated)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    fetching.fetch(stated)
    assert {path.name for path in stated.model_dir.iterdir()} == {"model", ".fetched.json"}
