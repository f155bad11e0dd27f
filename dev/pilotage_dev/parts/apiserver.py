"""kube-apiserver, with RBAC, aggregation and an audit log."""

from __future__ import annotations

import yaml

from pilotage_dev import api, pki
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command
from pilotage_dev.stack import SERVICE_CIDR, Stack

# Who did what to which object, once per request: what a role is compared with, and writes are counted in.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "nonResourceURLs": ["*"]}, {"level": "Metadata"}],
}


def _prepare(stack: Stack) -> None:
    pki.create(stack)
    policy = stack.folder_of("kube-apiserver") / "audit-policy.yaml"
    policy.write_text(yaml.safe_dump(AUDIT_POLICY))


def _command(stack: Stack) -> Command:
    keys = stack.pki
    arguments = [
        stack.binary("kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{stack.ports.etcd}",
        f"--bind-address={stack.address}",
        f"--secure-port={stack.ports.api}",
        f"--advertise-address={stack.address}",
        f"--tls-cert-file={keys}/apiserver.crt",
        f"--tls-private-key-file={keys}/apiserver.key",
        f"--token-auth-file={keys}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--anonymous-auth=false",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys}/service-accounts.pub",
        f"--service-account-signing-key-file={keys}/service-accounts.key",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--allow-privileged=true",
        "--enable-aggregator-routing=true",
        f"--requestheader-client-ca-file={keys}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={keys}/front-proxy-client.crt",
        f"--proxy-client-key-file={keys}/front-proxy-client.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        f"--kubelet-client-certificate={keys}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={keys}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--v=1",
    ]
    if not stack.has_node:
        # No pod could reach a loopback address: no endpoints for the service `kubernetes`.
        arguments.append("--endpoint-reconciler-type=none")
    if stack.audit:
        arguments += [
            f"--audit-policy-file={stack.folder_of('kube-apiserver')}/audit-policy.yaml",
            f"--audit-log-path={stack.audit_log}",
            "--audit-log-maxsize=200",
            "--audit-log-maxbackup=5",
        ]
    return Command(tuple(arguments))


def _ports(stack: Stack) -> tuple[Address, ...]:
    return ((stack.address, stack.ports.api),)


def _ready(stack: Stack) -> bool:
    return api.healthy(stack.kubeconfig, "/readyz")


APISERVER = Part(
    name="kube-apiserver",
    tier=Tier.CONTROL_PLANE,
    after=("etcd",),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
    grace=3,  # it waits for its watchers, who end after it
)
