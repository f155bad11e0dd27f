"""The operator with many objects: how soon it brings them where they should be, and what it costs.

    python -m bench.objects [--objects 50] [--rest 60]

A real etcd, API server, controller manager and scheduler on loopback, beside any stack; the pods are kwok's, which
are ready as soon as they are scheduled, and minReadySeconds is 0: what is left is the operator's time and
Kubernetes' own. Istio's and the Prometheus operator's CRDs are there, so that every child is made; Prometheus is
not, and a first deployment asks for none. Every object has a host, a gateway and a digest. Measured:

- converge: all objects are created one after the other; seconds until all are Stable and their routes were seen in
  place, and the same for an object from its creation.
- at rest: for as long as `--rest` says, once the operator wrote nothing for 10 s. Any write but to its own Lease
  makes the exit code 1.
- edit: all objects get another minReplicas at once; seconds until all HorizontalPodAutoscalers say so, which is
  the operator's work, and until all Deployments have the pods, which is Kubernetes'.

Requests are those that the API server's audit log has of the operator, by its user agents; a look is one reconcile.
A CPU second a minute is 1/60 of a core; the API server's are those that it spends on everybody.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pilotage_dev import api, gobuild, kubectl, paths
from pilotage_dev.control_plane import ControlPlane
from pilotage_dev.errors import StackError
from pilotage_dev.part import Part, Tier
from pilotage_dev.parts.apiserver import APISERVER
from pilotage_dev.parts.controller_manager import CONTROLLER_MANAGER
from pilotage_dev.parts.kwok import KWOK
from pilotage_dev.parts.scheduler import SCHEDULER
from pilotage_dev.process import Command
from pilotage_dev.stack import Stack
from pilotage_operator.core import names

OPERATOR = "pilotage-operator"
AGENTS = ('"userAgent":"pilotage-operator"', '"userAgent":"kopf/')
LEASE = {"create leases", "update leases"}
READS = {"get", "list", "watch"}
DEPLOYMENTS = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
AUTOSCALERS = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"
WORKLOADS = "/apis/apps/v1/namespaces/default/deployments"
FEW, MORE = 2, 3
WITHIN_SECONDS = 600
QUIET_SECONDS = 10


def main() -> int:
    """Measure, print, and fail if the operator writes at rest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=50, help="ModelDeployments (default 50)")
    parser.add_argument("--rest", type=int, default=60, help="seconds at rest that are counted (default 60)")
    options = parser.parse_args()
    # As Ctrl-C does: everything that was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    port = _free_port()
    beside = (SCHEDULER, KWOK, DEFINITIONS, _operator(port))
    with tempfile.TemporaryDirectory(prefix="pilotage-objects-") as folder:
        print("a control plane, a node and the operator start …", flush=True)
        try:
            with ControlPlane(Path(folder), audit=True, beside=beside) as plane:
                return Bench(plane, options.objects).run(options.rest)
        except StackError as error:
            sys.exit(str(error))


def _define(stack: Stack) -> None:
    for path in (
        paths.REPOSITORY / "crds",
        gobuild.source_file("istio-crds.yaml"),
        gobuild.source_file("prometheus-operator-crds"),
    ):
        kubectl.apply_definitions(stack, path)


DEFINITIONS = Part(
    name="definitions",
    tier=Tier.CONTROL_PLANE,
    after=("kube-apiserver",),
    prepare=_define,
    # A new kind is served before its store is: until then the API server answers 429.
    ready=lambda stack: api.healthy(stack.kubeconfig, DEPLOYMENTS),
)


def _operator(port: int) -> Part:
    """The operator of this working tree as a process, with the rights of the administrator."""

    def command(stack: Stack) -> Command:
        environment = {
            "KUBECONFIG": str(stack.kubeconfig),
            "PILOTAGE_NAMESPACE": "default",
            "PILOTAGE_RUNTIME_IMAGE": "runtime:1",
            "PILOTAGE_ALLOWED_HOSTS": json.dumps({"*": ["*.example.com"]}),
            "PILOTAGE_ALLOWED_GATEWAYS": json.dumps(["istio-system/public"]),
            "PILOTAGE_PROMETHEUS_URL": "http://127.0.0.1:9",
            "PILOTAGE_HEALTH_PORT": str(port),
            "PILOTAGE_METRICS_PORT": "0",
        }
        return Command((sys.executable, "-m", "pilotage_operator"), environment)

    return Part(
        name=OPERATOR,
        tier=Tier.CONTROL_PLANE,
        after=(CONTROLLER_MANAGER.name, SCHEDULER.name, KWOK.name, DEFINITIONS.name),
        command=command,
        ports=lambda _: (("127.0.0.1", port),),
        ready=lambda _: api.answers(f"http://127.0.0.1:{port}/healthz"),
        grace=30,
    )


@dataclass(frozen=True)
class Moment:
    """Where the operator's counters stand."""

    at: float
    cpu_seconds: dict[str, float]
    requests: int


@dataclass(frozen=True)
class Spent:
    """What the operator used between two moments."""

    seconds: float
    cpu_seconds: dict[str, float]
    """By part: the operator's own and the API server's, which answers everybody."""
    reads: Counter[str]
    writes: Counter[str]

    @property
    def looks(self) -> int:
        return self.reads[f"get {names.PLURAL}"]


class Audit:
    """The operator's requests in the API server's audit log, read as it grows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0
        self.requests: list[dict[str, Any]] = []

    def update(self) -> None:
        if self._log.stat().st_size < self._read:
            raise StackError("the audit log was rotated, so requests would be missed: take fewer objects")
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(line.decode())

    def _take(self, line: str) -> None:
        if not any(agent in line for agent in AGENTS):
            return
        entry = json.loads(line)
        # A watch is counted when it begins, everything else when it is answered.
        if entry["stage"] == ("ResponseStarted" if entry["verb"] == "watch" else "ResponseComplete"):
            self.requests.append(entry)


class Watch:
    """When each object at a path was first seen as it should be, by a watch in a thread of its own."""

    def __init__(self, client: httpx.Client, path: str, true: Callable[[dict[str, Any]], bool]) -> None:
        self.seen: dict[str, float] = {}
        version = client.get(path).raise_for_status().json()["metadata"]["resourceVersion"]
        threading.Thread(target=self._follow, args=(client, path, version, true), daemon=True).start()

    @property
    def last(self) -> float:
        return max(self.seen.values())

    def _follow(
        self, client: httpx.Client, path: str, version: str, true: Callable[[dict[str, Any]], bool]
    ) -> None:
        query = {"watch": "true", "resourceVersion": version}
        # The API server ends before this thread does.
        with (
            contextlib.suppress(httpx.TransportError),
            client.stream("GET", path, params=query, timeout=None) as events,
        ):
            for line in events.iter_lines():
                found = json.loads(line)["object"]
                if found["metadata"]["name"] not in self.seen and true(found):
                    self.seen[found["metadata"]["name"]] = time.monotonic()


class Bench:
    """The three measurements, on a cluster that is up."""

    def __init__(self, plane: ControlPlane, objects: int) -> None:
        self._plane = plane
        self._names = [f"model-{number:03}" for number in range(objects)]
        self._client = api.client(plane.kubeconfig)
        self._audit = Audit(plane.audit_log)
        self._pids = {part: plane.process(part).pid for part in (OPERATOR, APISERVER.name)}

    def run(self, rest_seconds: int) -> int:
        print(f"{len(self._names)} objects, {os.cpu_count()} CPUs", flush=True)
        self._converge()
        self._settle()
        wrote = self._rest(rest_seconds)
        self._edit()
        return 1 if wrote else 0

    def _converge(self) -> None:
        stable = Watch(self._client, DEPLOYMENTS, _stable)
        before, created = self._now(), dict[str, float]()
        for name in self._names:
            created[name] = time.monotonic()
            self._client.post(DEPLOYMENTS, json=_object(name)).raise_for_status()
        self._wait(stable, "are Stable and routed")
        spent = self._since(before)
        each = [stable.seen[name] - created[name] for name in self._names]
        spread = f"an object median {statistics.median(each):.1f}, slowest {max(each):.1f}"
        print(f"converge: all Stable and routed after {stable.last - before.at:.1f} s; {spread}")
        self._tell(spent)
        print(f"    writes: {_listed(spent.writes)}", flush=True)

    def _settle(self) -> None:
        """Wait until the operator wrote nothing but its Lease for a while."""
        began = written = time.monotonic()
        before = self._now()
        while time.monotonic() - written < QUIET_SECONDS:
            self._bounded(began, "the operator still writes")
            time.sleep(1)
            if self._since(before).writes.keys() - LEASE:
                written, before = time.monotonic(), self._now()
        print(f"{written - began:6.1f} s  until the last write", flush=True)

    def _rest(self, seconds: int) -> bool:
        """Tell what is spent at rest; returns whether anything but the Lease was written."""
        before = self._now()
        while time.monotonic() - before.at < seconds:
            self._plane.check()
            time.sleep(1)
        spent = self._since(before)
        wrong = Counter({what: count for what, count in spent.writes.items() if what not in LEASE})
        reads, looks = (count * 60 / spent.seconds for count in (spent.reads.total(), spent.looks))
        read = f"{reads:.0f} reads a minute in {looks:.0f} looks"
        print(f"at rest: {_listed(wrong)} written but the Lease in {spent.seconds:.0f} s; {read}")
        self._tell_process(spent)
        return bool(wrong)

    def _edit(self) -> None:
        autoscalers = Watch(self._client, AUTOSCALERS, lambda each: each["spec"]["minReplicas"] == MORE)
        workloads = Watch(
            self._client, WORKLOADS, lambda each: each["status"].get("availableReplicas") == MORE
        )
        before = self._now()
        edit = functools.partial(
            self._client.patch,
            headers={"Content-Type": "application/merge-patch+json"},
            json={"spec": {"scaling": {"minReplicas": MORE}}},
        )
        with ThreadPoolExecutor(8) as pool:
            for answer in pool.map(edit, [f"{DEPLOYMENTS}/{name}" for name in self._names]):
                answer.raise_for_status()
        self._wait(autoscalers, "autoscalers follow")
        spent = self._since(before)
        self._wait(workloads, "Deployments have the pods")
        pods = f"all pods were there after {workloads.last - before.at:.1f} s"
        print(f"edit: all autoscalers followed after {autoscalers.last - before.at:.1f} s; {pods}")
        self._tell(spent)

    def _tell(self, spent: Spent) -> None:
        reads, writes, looks = (
            count / len(self._names) for count in (spent.reads.total(), spent.writes.total(), spent.looks)
        )
        print(f"    an object: {reads:.1f} reads and {writes:.1f} writes in {looks:.1f} looks")
        self._tell_process(spent)

    def _tell_process(self, spent: Spent) -> None:
        used = [
            f"{part} {seconds * 60 / spent.seconds:.1f} CPU seconds a minute"
            for part, seconds in spent.cpu_seconds.items()
        ]
        resident = _resident(self._pids[OPERATOR])
        print(f"    {', '.join(used)}; the operator holds {resident} MiB", flush=True)

    def _now(self) -> Moment:
        self._audit.update()
        used = {part: _cpu_seconds(pid) for part, pid in self._pids.items()}
        return Moment(time.monotonic(), used, len(self._audit.requests))

    def _since(self, before: Moment) -> Spent:
        now = self._now()
        counted = {True: Counter[str](), False: Counter[str]()}
        for entry in self._audit.requests[before.requests : now.requests]:
            counted[entry["verb"] in READS][_request(entry)] += 1
        used = {part: seconds - before.cpu_seconds[part] for part, seconds in now.cpu_seconds.items()}
        return Spent(now.at - before.at, used, counted[True], counted[False])

    def _wait(self, watch: Watch, what: str) -> None:
        """Wait until all objects were seen as they should be, and tell how many are."""
        began = told = time.monotonic()
        while (done := len(watch.seen)) < len(self._names):
            self._bounded(began, f"{done} of {len(self._names)} {what}")
            if time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"{told - began:6.1f} s  {done} of {len(self._names)} {what}", flush=True)
            time.sleep(0.1)
        print(f"{time.monotonic() - began:6.1f} s  all {done} {what}", flush=True)

    def _bounded(self, began: float, what: str) -> None:
        self._plane.check()
        if time.monotonic() - began > WITHIN_SECONDS:
            end = self._plane.log(OPERATOR).read_text(errors="replace")[-4000:]
            raise StackError(f"after {WITHIN_SECONDS} s {what}. The end of the operator's log:\n{end}")


def _object(name: str) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": f"s3://models/{name}/1", "digest": f"sha256:{'a' * 64}"},
            "routing": {"hosts": [f"{name}.example.com"], "gateways": ["istio-system/public"]},
            "rollout": {"minReadySeconds": 0},
            "scaling": {"minReplicas": FEW},
        },
    }


def _stable(deployment: dict[str, Any]) -> bool:
    status = deployment.get("status", {})
    routed = [each["status"] for each in status.get("conditions", []) if each["type"] == "TrafficRouted"]
    return status.get("phase") == "Stable" and routed == ["True"]


def _request(entry: dict[str, Any]) -> str:
    """The verb and the resource; what has none, such as a list of an API group, by its path."""
    target = entry.get("objectRef", {})
    resource = target.get("resource", entry["requestURI"])
    return f"{entry['verb']} {resource}" + (f"/{target['subresource']}" if "subresource" in target else "")


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{what} {n}" for what, n in counted.most_common()) or "nothing"


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
