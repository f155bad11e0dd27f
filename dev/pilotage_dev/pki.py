"""The stack's own authority, its certificates and its tokens; made anew each time a stack comes up."""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from typing import TYPE_CHECKING

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pilotage_dev.stack import NODE, Stack

if TYPE_CHECKING:
    from pathlib import Path

LIFETIME = dt.timedelta(days=30)
SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
# Each part acts under its own name, all with an administrator's rights.
USERS = (
    "admin",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "metrics-server",
    "istiod",
    "prometheus-operator",
    "kwok",
)


class Authority:
    """A certificate authority in a folder; each pair it signs lies there as NAME.crt and NAME.key."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, organization: str | None = None, hosts: tuple[str, ...] = ()) -> None:
        """Write a pair for a client, or, with hosts, for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(x509.Name(attributes), self._name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        _write(self._folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        _write(self._folder / f"{name}.key", _private(key))


def create(stack: Stack) -> None:
    """Write all certificates, the tokens and the kubeconfigs of a stack."""
    folder = stack.pki
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = Authority(folder, "ca")
    ca.sign("apiserver", hosts=(*SERVER_NAMES, "127.0.0.1", "10.96.0.1", stack.address))
    ca.sign("apiserver-kubelet-client", organization="system:masters")
    ca.sign("kubelet-server", hosts=(NODE, "127.0.0.1", stack.address))
    Authority(folder, "front-proxy-ca").sign("front-proxy-client")

    accounts = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "service-accounts.key", _private(accounts))
    public = accounts.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(folder / "service-accounts.pub", public)

    tokens = {user: secrets.token_hex(16) for user in USERS}
    rows = (f'{token},{user},{user},"system:masters"\n' for user, token in tokens.items())
    _write(folder / "tokens.csv", "".join(rows).encode())
    for user, token in tokens.items():
        file = stack.kubeconfig if user == "admin" else stack.kubeconfig_of(user)
        _write(file, _kubeconfig(stack, user, token))


def _kubeconfig(stack: Stack, user: str, token: str) -> bytes:
    import base64  # noqa: PLC0415

    authority = base64.b64encode((stack.pki / "ca.crt").read_bytes()).decode()
    name = "pilotage-dev"
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": stack.api_url, "certificate-authority-data": authority}}
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "current-context": name,
        }
    ).encode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(file: Path, content: bytes) -> None:
    """Write a secret: readable by its owner only from the first moment."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_bytes(content)
