from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import yaml
from cryptography import x509

from pilotage_dev import pki
from pilotage_dev.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path


def test_the_api_servers_certificate_is_for_every_way_to_reach_it(tmp_path: Path) -> None:
    stack = Stack(folder=tmp_path)
    pki.create(stack)
    certificate = x509.load_pem_x509_certificate((stack.pki / "apiserver.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((stack.pki / "ca.crt").read_bytes())

    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert {"10.96.0.1", "10.244.0.1", "127.0.0.1"} <= set(addresses)
    ssl.create_default_context(cadata=(stack.pki / "ca.crt").read_text())


def test_what_is_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    stack = Stack(folder=tmp_path)
    pki.create(stack)
    for file in [stack.kubeconfig, *stack.pki.iterdir()]:
        assert file.stat().st_mode & 0o077 == 0, file


def test_each_part_acts_under_its_own_name(tmp_path: Path) -> None:
    stack = Stack(folder=tmp_path)
    pki.create(stack)
    tokens = dict(line.split(",")[:2] for line in (stack.pki / "tokens.csv").read_text().splitlines())

    kubelet = yaml.safe_load(stack.kubeconfig_of("kubelet").read_text())
    admin = yaml.safe_load(stack.kubeconfig.read_text())

    assert tokens[kubelet["users"][0]["user"]["token"]] == "kubelet"
    assert tokens[admin["users"][0]["user"]["token"]] == "admin"
    assert admin["clusters"][0]["cluster"]["server"] == "https://10.244.0.1:16443"
