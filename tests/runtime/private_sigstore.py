"""A whole Sigstore of our own, without a network: a CA, a log of certificates, a log of signatures.

It hands out what the public one does, as the clients read it: short-lived certificates with the signer's identity and
who vouched for it, their SCT, an entry of the log with its proof, a bundle of all that, and the trust configuration to
check it with. Nothing of the check is replaced.
"""

import base64
import datetime as dt
import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import model_signing
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_AS_DER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_LIFETIME = dt.timedelta(minutes=10)
_SHA256_ECDSA = b"\x04\x03"


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def _id(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Name a key as RFC 6962 does."""
    return hashlib.sha256(_spki(key)).digest()


def _ecdsa(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _vector(data: bytes) -> bytes:
    """Put TLS's two bytes of length before the data."""
    return struct.pack("!H", len(data)) + data


def _der(tag: int, data: bytes) -> bytes:
    assert len(data) < 1 << 8
    length = bytes([len(data)]) if len(data) < 1 << 7 else bytes([0x81, len(data)])
    return bytes([tag]) + length + data


def _extension(oid: x509.ObjectIdentifier, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(oid, value)


@dataclass(frozen=True)
class Signer:
    """Whom the CA certifies: an address or a URI, and the OpenID issuer that vouched for it."""

    identity: str
    issuer: str

    def name(self) -> x509.GeneralName:
        uri = "://" in self.identity
        return x509.UniformResourceIdentifier(self.identity) if uri else x509.RFC822Name(self.identity)


@dataclass(frozen=True)
class PrivateSigstore:
    """The keys of one instance, and the time at which it works: the present, if not told otherwise."""

    ca: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    certificates_log: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    signatures_log: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    began: dt.datetime = field(
        default_factory=lambda: dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=30)
    )
    now: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC).replace(microsecond=0))

    def but(self, **others: Any) -> "PrivateSigstore":
        """Give the same instance with other keys for a part of it, or at another time."""
        return replace(self, **others)

    def root(self) -> x509.Certificate:
        # Derived from the key: each rendering of the configuration holds the same root.
        return (
            x509.CertificateBuilder()
            .subject_name(self._ca_name()).issuer_name(self._ca_name())
            .public_key(self.ca.public_key()).serial_number(1)
            .not_valid_before(self.began).not_valid_after(self.began + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.ca.public_key()), critical=False)
            .sign(self.ca, hashes.SHA256())
        )  # fmt: skip

    def certificate(self, signer: Signer, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        """Certify the key as the signer's for some minutes, and log that."""
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([])).issuer_name(self._ca_name())
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(self.now).not_valid_after(self.now + _LIFETIME)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([signer.name()]), critical=True)
            .add_extension(_extension(_ISSUER, signer.issuer.encode()), critical=False)
            .add_extension(_extension(_ISSUER_AS_DER, _der(0x0C, signer.issuer.encode())), critical=False)
        )  # fmt: skip
        precertificate = made.sign(self.ca, hashes.SHA256()).tbs_certificate_bytes
        scts = _der(0x04, _vector(_vector(self._sct(precertificate))))
        return made.add_extension(_extension(_SCT_LIST, scts), critical=False).sign(self.ca, hashes.SHA256())

    def entry(self, certificate: x509.Certificate, envelope: dict[str, Any]) -> dict[str, Any]:
        """Log a signature as the second of two entries, with the proof that it is in the log."""
        body = _body(certificate, envelope)
        other = hashlib.sha256(b"\x00somebody else's entry").digest()
        top = hashlib.sha256(b"\x01" + other + hashlib.sha256(b"\x00" + body).digest()).digest()
        at = int(self.now.timestamp())
        promised = {"body": _base64(body), "integratedTime": at, "logID": _id(self.signatures_log).hex()}
        promise = _ecdsa(self.signatures_log, rfc8785.dumps({**promised, "logIndex": 1}))
        return {
            "logIndex": "1",
            "logId": {"keyId": _base64(_id(self.signatures_log))},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(at),
            "inclusionPromise": {"signedEntryTimestamp": _base64(promise)},
            "inclusionProof": {
                "logIndex": "1",
                "rootHash": _base64(top),
                "treeSize": "2",
                "hashes": [_base64(other)],
                "checkpoint": {"envelope": self.checkpoint(2, top)},
            },
            "canonicalizedBody": _base64(body),
        }

    def checkpoint(self, size: int, top: bytes) -> str:
        """Sign how large the log is and what its Merkle tree's root is, as a note."""
        note = f"log.sigstore.example - 1\n{size}\n{_base64(top)}\n"
        signature = _id(self.signatures_log)[:4] + _ecdsa(self.signatures_log, note.encode())
        return f"{note}\n\u2014 log.sigstore.example {_base64(signature)}\n"

    def sign(self, model: Path, signer: Signer, aside: Path) -> None:
        """Sign a model's folder as the signer, who has proven to be that; leaves model.sig in it."""
        key, signature = _new_key(), model / "model.sig"
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        aside.write_bytes(key.private_bytes(*pem))
        hashing = model_signing.hashing.Config().set_ignored_paths(paths=[signature])
        signing = model_signing.signing.Config().set_hashing_config(hashing)
        # The statement and its envelope are the same for a bare key: only what vouches for the key is another.
        signing.use_elliptic_key_signer(private_key=aside).sign(model, signature)
        bundle = json.loads(signature.read_text())
        certificate = self.certificate(signer, key)
        bundle["verificationMaterial"] = {
            "certificate": {"rawBytes": _base64(certificate.public_bytes(serialization.Encoding.DER))},
            "tlogEntries": [self.entry(certificate, bundle["dsseEnvelope"])],
            "timestampVerificationData": {},
        }
        signature.write_text(json.dumps(bundle))

    def trust_config(self) -> dict[str, Any]:
        """Give a ClientTrustConfig: whom to believe. Checking asks none of the addresses in it."""
        root = self.root().public_bytes(serialization.Encoding.DER)
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "sigstore.example", "commonName": "ca"},
                        "uri": "https://ca.sigstore.example",
                        "certChain": {"certificates": [{"rawBytes": _base64(root)}]},
                        "validFor": {"start": self.began.isoformat()},
                    }
                ],
                "ctlogs": [self._log(self.certificates_log, "https://certificates.sigstore.example")],
                "tlogs": [self._log(self.signatures_log, "https://log.sigstore.example")],
                "timestampAuthorities": [],
            },
            "signingConfig": {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"},
        }

    def _log(self, key: ec.EllipticCurvePrivateKey, url: str) -> dict[str, Any]:
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": _base64(_spki(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": self.began.isoformat()},
            },
            "logId": {"keyId": _base64(_id(key))},
        }

    def _ca_name(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca.sigstore.example")])

    def _sct(self, precertificate: bytes) -> bytes:
        """Promise to log a certificate: RFC 6962, 3.2, of the kind that is embedded in it."""
        version, at, extensions = b"\x00", struct.pack("!Q", int(self.now.timestamp() * 1000)), _vector(b"")
        logged = _id(self.ca) + len(precertificate).to_bytes(3, "big") + precertificate
        kind_of_signature, kind_of_entry = b"\x00", b"\x00\x01"
        signed = version + kind_of_signature + at + kind_of_entry + logged + extensions
        signature = _SHA256_ECDSA + _vector(_ecdsa(self.certificates_log, signed))
        return version + _id(self.certificates_log) + at + extensions + signature


def certificate_in(bundle: dict[str, Any]) -> x509.Certificate:
    """Read whose signature a bundle holds."""
    return x509.load_der_x509_certificate(
        base64.b64decode(bundle["verificationMaterial"]["certificate"]["rawBytes"])
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _body(certificate: x509.Certificate, envelope: dict[str, Any]) -> bytes:
    """Write an entry of the kind dsse 0.0.1: the payload's hash, the signature, and whose it is."""

    def sha256(data: bytes) -> dict[str, str]:
        return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}

    spec = {
        "envelopeHash": sha256(rfc8785.dumps(envelope)),
        "payloadHash": sha256(base64.b64decode(envelope["payload"])),
        "signatures": [
            {
                "signature": signature["sig"],
                "verifier": _base64(certificate.public_bytes(serialization.Encoding.PEM)),
            }
            for signature in envelope["signatures"]
        ],
    }
    return rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
