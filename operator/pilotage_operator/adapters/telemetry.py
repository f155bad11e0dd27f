"""The operator's own metrics, named as controller-runtime names them, and its JSON log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import orjson
from prometheus_client import Counter, Gauge, Histogram

reconciles = Counter("controller_runtime_reconcile", "Reconciles by result.", ["controller", "result"])
reconcile_errors = Counter("controller_runtime_reconcile_errors", "Reconciles that failed.", ["controller"])
reconcile_seconds = Histogram(
    "controller_runtime_reconcile_time_seconds", "Time of a reconcile.", ["controller"]
)
queue_depth = Gauge("workqueue_depth", "ModelDeployments that wait for a reconcile.", ["name"])
leader = Gauge("leader_election_master_status", "1 while this process holds the Lease.", ["name"])
rollbacks = Counter("pilotage_rollbacks", "Revisions taken back.", ["namespace", "modeldeployment"])
phase = Gauge(
    "pilotage_phase",
    "1 for the phase that a ModelDeployment is in; one that holds for hours needs a person.",
    ["namespace", "modeldeployment", "phase"],
)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Shown:
    """The series of each ModelDeployment, from its first reconcile until it is gone."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, str], str] = {}

    def show(self, namespace: str, name: str, now: str) -> None:
        """Tell the phase; the count of rollbacks begins at 0, or its first rise would go unseen."""
        rollbacks.labels(namespace, name)
        before = self._phases.get((namespace, name))
        if before != now:
            if before:
                phase.remove(namespace, name, before)
            phase.labels(namespace, name, now).set(1)
            self._phases[namespace, name] = now

    def forget(self, namespace: str, name: str) -> None:
        before = self._phases.pop((namespace, name), None)
        if before:
            phase.remove(namespace, name, before)
            rollbacks.remove(namespace, name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `extra` fields stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(told, default=str).decode()
