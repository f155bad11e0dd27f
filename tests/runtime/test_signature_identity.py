"""Models signed by an identity: a real check, against a Sigstore that the tests run themselves."""

import datetime as dt
import json
import shutil
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import sigstore as sigstore_package

from pilotage_runtime import fetch as fetching
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.fetched import model_root
from tests.runtime.private_sigstore import PrivateSigstore, Signer, certificate_in
from tests.runtime.test_fetch import fails, settings
from tests.runtime.test_signature import added, changed, removed

TEAM = Signer("team@example.com", "https://accounts.example.com")


@pytest.fixture
def sigstore() -> PrivateSigstore:
    return PrivateSigstore()


@pytest.fixture
def model(tmp_path: Path, models: Path, sigstore: PrivateSigstore) -> Path:
    """A folder on the claim, signed by the team."""
    folder = tmp_path / "claim" / "fraud"
    shutil.copytree(models / "fraud" / "1", folder)
    sigstore.sign(folder, TEAM, tmp_path / "signing.key")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """What was looked for on a network: never anything, whatever the signature is worth."""
    asked: list[object] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


def expecting(tmp_path: Path, sigstore: PrivateSigstore, signer: Signer = TEAM, **changes: Any) -> Any:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(sigstore.trust_config()))
    return settings(
        tmp_path,
        **{
            "model_uri": "pvc://claim/fraud",
            "signature_identity": signer.identity,
            "signature_issuer": signer.issuer,
            "signature_trust_config": trust,
            **changes,
        },
    )


def refused(stated: Any) -> StartFailure:
    failure = fails(stated)
    assert (failure.stage, failure.reason, failure.exit_code) == ("Verify", "SignatureInvalid", 1)
    return failure


def test_a_model_signed_by_the_expected_identity_is_fetched_without_a_network(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore
) -> None:
    stated = expecting(tmp_path, sigstore)
    fetching.fetch(stated)
    found = {path.name: path.read_bytes() for path in model_root(stated.model_dir).iterdir()}
    assert found == {path.name: path.read_bytes() for path in model.iterdir()}


def test_a_workload_is_an_identity_too(tmp_path: Path, model: Path, sigstore: PrivateSigstore) -> None:
    pipeline = Signer("https://git.example.com/shop/train/.ci/release@main", "https://git.example.com")
    (model / "model.sig").unlink()
    sigstore.sign(model, pipeline, tmp_path / "signing.key")
    fetching.fetch(expecting(tmp_path, sigstore, pipeline))


def test_a_signature_outlives_its_certificate(tmp_path: Path, model: Path, sigstore: PrivateSigstore) -> None:
    """The certificate lasts minutes; the log's entry says that the model was signed within them."""
    (model / "model.sig").unlink()
    last_week = sigstore.but(now=sigstore.now - dt.timedelta(days=7))
    last_week.sign(model, TEAM, tmp_path / "signing.key")
    fetching.fetch(expecting(tmp_path, sigstore))


@pytest.mark.parametrize(
    "expected",
    [
        Signer("stranger@example.com", TEAM.issuer),
        Signer("Team@example.com", TEAM.issuer),
        Signer("example.com", TEAM.issuer),
    ],
    ids=lambda signer: signer.identity,
)
def test_another_identity_is_refused(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore, expected: Signer
) -> None:
    message = refused(expecting(tmp_path, sigstore, expected)).message
    assert "the signature does not hold" in message
    # Whom it was expected from and who it was: the reader sees which of the two to correct.
    assert expected.identity in message
    assert TEAM.identity in message


@pytest.mark.parametrize("issuer", ["https://elsewhere.example.com", "https://accounts.example.com/"])
def test_the_same_name_by_another_issuer_is_refused(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore, issuer: str
) -> None:
    message = refused(expecting(tmp_path, sigstore, signature_issuer=issuer)).message
    assert "the signature does not hold" in message
    assert issuer in message


def another_ca(ours: PrivateSigstore) -> PrivateSigstore:
    return ours.but(ca=PrivateSigstore().ca)


def another_log_of_certificates(ours: PrivateSigstore) -> PrivateSigstore:
    return ours.but(certificates_log=PrivateSigstore().certificates_log)


def another_log_of_signatures(ours: PrivateSigstore) -> PrivateSigstore:
    return ours.but(signatures_log=PrivateSigstore().signatures_log)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (another_ca, "certificate chain"),
        (another_log_of_certificates, "SCT"),
        (another_log_of_signatures, "invalid log entry"),
    ],
)
def test_another_root_of_trust_is_refused(
    tmp_path: Path,
    model: Path,
    sigstore: PrivateSigstore,
    part: Callable[[PrivateSigstore], PrivateSigstore],
    why: str,
) -> None:
    """Each part alone: none of the three is believed on another's word."""
    message = refused(expecting(tmp_path, part(sigstore))).message
    assert "the signature does not hold" in message
    assert why in message


@pytest.mark.parametrize("change", [changed, added, removed])
def test_what_happened_to_the_files_after_signing_is_refused(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore, change: Callable[[Path], None]
) -> None:
    change(model)
    message = refused(expecting(tmp_path, sigstore)).message
    assert "Signature mismatch" in message
    assert "contract.json" in message or "added.txt" in message


Tampering = Callable[[dict[str, Any], PrivateSigstore], None]


def entry_of(bundle: dict[str, Any]) -> dict[str, Any]:
    return bundle["verificationMaterial"]["tlogEntries"][0]


def another_root_hash(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    proof = entry_of(bundle)["inclusionProof"]
    proof["rootHash"] = proof["hashes"][0]


def another_neighbour(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    proof = entry_of(bundle)["inclusionProof"]
    proof["hashes"] = [proof["rootHash"]]


def another_place(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    entry_of(bundle)["inclusionProof"]["logIndex"] = "0"


def a_checkpoint_by_nobody(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    checkpoint = entry_of(bundle)["inclusionProof"]["checkpoint"]
    note, _signature = checkpoint["envelope"].split("\n\n")
    stranger = PrivateSigstore().checkpoint(2, bytes(32)).split("\n\n")[1]
    checkpoint["envelope"] = f"{note}\n\n{stranger}"


def a_checkpoint_of_another_tree(bundle: dict[str, Any], ours: PrivateSigstore) -> None:
    entry_of(bundle)["inclusionProof"]["checkpoint"]["envelope"] = ours.checkpoint(2, bytes(32))


def a_later_time(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    entry = entry_of(bundle)
    entry["integratedTime"] = str(int(entry["integratedTime"]) + 1)


def no_promise(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    del entry_of(bundle)["inclusionPromise"]


def no_proof(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    del entry_of(bundle)["inclusionProof"]


def no_entry(bundle: dict[str, Any], _: PrivateSigstore) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (another_root_hash, "inclusion proof contains invalid root hash"),
        (another_neighbour, "inclusion proof contains invalid root hash"),
        (another_place, "inclusion proof contains invalid root hash"),
        (a_checkpoint_by_nobody, "checkpoint: Signature not found"),
        (a_checkpoint_of_another_tree, "invalid root hash signature"),
        (a_later_time, "invalid inclusion promise"),
        (no_promise, "must contain an inclusion promise"),
        (no_proof, "inclusionProof"),
        (no_entry, "exactly one log entry"),
    ],
)
def test_an_entry_that_the_log_does_not_prove_is_refused(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore, tamper: Tampering, why: str
) -> None:
    bundle = json.loads((model / "model.sig").read_text())
    tamper(bundle, sigstore)
    (model / "model.sig").write_text(json.dumps(bundle))
    message = refused(expecting(tmp_path, sigstore)).message
    assert "the signature does not hold" in message
    assert why in message


def test_the_logs_entry_of_another_model_is_refused(
    tmp_path: Path, model: Path, models: Path, sigstore: PrivateSigstore
) -> None:
    """All of it is genuine, the certificate included; but it was another model that was logged."""
    other = tmp_path / "other"
    shutil.copytree(models / "iris" / "1", other)
    sigstore.sign(other, TEAM, tmp_path / "signing.key")
    bundle = json.loads((model / "model.sig").read_text())
    stolen = json.loads((other / "model.sig").read_text())
    bundle["verificationMaterial"]["tlogEntries"] = stolen["verificationMaterial"]["tlogEntries"]
    (model / "model.sig").write_text(json.dumps(bundle))
    assert "log entry payload hash does not match" in refused(expecting(tmp_path, sigstore)).message


def test_a_signature_made_after_its_certificate_expired_is_refused(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore
) -> None:
    """A stolen key is worth nothing once its minutes are over."""
    late = sigstore.but(now=sigstore.now + dt.timedelta(hours=1))
    bundle = json.loads((model / "model.sig").read_text())
    certificate = certificate_in(bundle)
    bundle["verificationMaterial"]["tlogEntries"] = [late.entry(certificate, bundle["dsseEnvelope"])]
    (model / "model.sig").write_text(json.dumps(bundle))
    assert "not valid at validation time" in refused(expecting(tmp_path, sigstore)).message


def test_a_key_in_place_of_an_identity_is_refused(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore
) -> None:
    """Whoever signs with a bare key has proven no identity."""
    bundle = json.loads((model / "model.sig").read_text())
    bundle["verificationMaterial"] = {"publicKey": {"hint": "x"}, "tlogEntries": []}
    (model / "model.sig").write_text(json.dumps(bundle))
    assert "expected certificate" in refused(expecting(tmp_path, sigstore)).message


def no_authority(trust: dict[str, Any]) -> None:
    trust["trustedRoot"]["certificateAuthorities"] = []


def no_log(trust: dict[str, Any]) -> None:
    trust["trustedRoot"]["tlogs"] = []


def a_later_form(trust: dict[str, Any]) -> None:
    trust["trustedRoot"]["mediaType"] = "application/vnd.dev.sigstore.trustedroot.v0.2+json"


def a_bare_root(trust: dict[str, Any]) -> None:
    root = trust.pop("trustedRoot")
    trust.clear()
    trust.update(root)


@pytest.mark.parametrize("spoil", [no_authority, no_log, a_later_form, a_bare_root])
def test_a_trust_configuration_that_cannot_be_used_is_refused_as_that(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore, spoil: Callable[[dict[str, Any]], None]
) -> None:
    stated = expecting(tmp_path, sigstore)
    trust = sigstore.trust_config()
    spoil(trust)
    stated.signature_trust_config.write_text(json.dumps(trust))
    assert "what should be trusted cannot be read" in refused(stated).message


def test_a_trust_configuration_that_is_not_there_is_refused_as_that(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore
) -> None:
    stated = expecting(tmp_path, sigstore, signature_trust_config=tmp_path / "absent.json")
    message = refused(stated).message
    assert "what should be trusted cannot be read" in message
    assert "absent.json" in message


@pytest.mark.parametrize("missing", ["signature_identity", "signature_issuer", "signature_trust_config"])
def test_an_identity_that_is_stated_in_part_is_refused_and_never_unchecked(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore, missing: str
) -> None:
    changes: dict[str, Any] = {missing: None}
    message = refused(expecting(tmp_path, sigstore, **changes)).message
    assert "an identity needs its issuer and a trust configuration" in message


def test_an_identity_beside_a_key_is_refused_since_only_one_of_them_would_be_checked(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore
) -> None:
    message = refused(
        expecting(tmp_path, sigstore, signature_public_key="-----BEGIN PUBLIC KEY-----")
    ).message
    assert "one of a public key, certificates and an identity" in message


@pytest.mark.parametrize("empty", ["signature_public_key", "signature_certificates", "signature_identity"])
def test_what_is_stated_and_empty_is_refused_and_never_unchecked(
    tmp_path: Path, model: Path, empty: str
) -> None:
    """Such as an environment variable whose value was lost on its way."""
    refused(settings(tmp_path, model_uri="pvc://claim/fraud", **{empty: ""}))


def test_the_public_instances_files_make_a_trust_configuration(
    tmp_path: Path, model: Path, sigstore: PrivateSigstore
) -> None:
    """As the how-to puts it together; the files here are those that its client is shipped with."""
    folder = next(Path(sigstore_package.__file__).parent.glob("_store/*cdn.sigstore.dev"))
    stated = expecting(tmp_path, sigstore)
    stated.signature_trust_config.write_text(
        json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
                "trustedRoot": json.loads((folder / "trusted_root.json").read_text()),
                "signingConfig": json.loads((folder / "signing_config.v0.2.json").read_text()),
            }
        )
    )
    # It is read, and does not believe a CA of ours.
    assert "certificate chain" in refused(stated).message
