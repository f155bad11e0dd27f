"""Wiring: from a folder with models to an application that serves them."""

import gc
import logging
import time
from collections.abc import Callable

from pilotage_runtime import contract as contracts
from pilotage_runtime import cpu, formats, memory, sealed
from pilotage_runtime.catalog import Location
from pilotage_runtime.engine import Engine, Limits
from pilotage_runtime.failure import Stage
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.log import AccessLog
from pilotage_runtime.repository import Repository
from pilotage_runtime.services import admin, payload_log
from pilotage_runtime.services.admin import Control
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.server import Beside, DrainingServer
from pilotage_runtime.services.tracing import from_environment
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Slot
from pilotage_runtime.trial import Trials
from pilotage_runtime.warmup import warm_up

# Of a worker's share of memory, what the bodies of unanswered requests may take.
_BUFFERED_SHARE = 0.25
# gRPC calls at a time besides those that wait or run, as probes.
_OTHER_CALLS = 64

logger = logging.getLogger(__name__)


def detect(location: Location, settings: ServeSettings) -> ModelFile:
    """Find what to load, and open it where it is sealed; raise StartFailure where it is not served."""
    return formats.detect(
        location.root,
        Stage.LOAD,
        settings.model_format,
        trusted=settings.trusted,
        opened=lambda path: sealed.open_if_sealed(path, settings.decryption_keys_dir),
    )


def load(
    location: Location,
    settings: ServeSettings,
    slot: Slot,
    trials: Trials | None = None,
    found: ModelFile | None = None,
) -> Engine:
    """Load, warm up and infer once; raise StartFailure otherwise. `found` is what `detect` gave, where it was asked."""
    started = time.perf_counter()
    threads = settings.threads or cpu.threads(settings.workers)
    found = found or detect(location, settings)
    model = by_format.load(
        found,
        LoadOptions(
            threads=threads,
            device=settings.device,
            precision=settings.precision,
            trusted=settings.trusted,
            digest=settings.model_digest,
            trusted_types=tuple(settings.trusted_types),
        ),
        trials,
    )
    limits = Limits(
        threads=threads,
        max_batch_rows=settings.max_batch_size,
        max_delay_seconds=settings.max_queue_delay_milliseconds / 1000,
        max_waiting=settings.max_queue_size,
    )
    stated = contracts.refine(model.contract(), found.folder)
    engine = Engine(location.model, location.version, model, stated, limits=limits, slot=slot)
    warm_up(engine)
    # The first answer has shown what the file does not state: the classes of a ZipMap.
    engine.refine(contracts.refine(model.contract(), found.folder))
    seconds = time.perf_counter() - started
    logger.info(
        "model ready",
        extra={
            "model": location.model,
            "version": location.version,
            "seconds": round(seconds, 3),
            "threads": threads,
            "batching": engine.unbatched or "on",
        },
    )
    return engine


def settle() -> None:
    """Free what loading has left, and exempt what stays from being walked again while requests wait."""
    gc.unfreeze()
    gc.collect()
    memory.trim()
    gc.freeze()


def server(
    settings: ServeSettings,
    repository: Repository,
    control: Control,
    *,
    on_started: Callable[[], None],
    on_answered: Callable[[], None],
) -> DrainingServer:
    """Put the layers on top of each other; at the end, `on_answered` comes when only the models are left to free."""
    lifecycle = Lifecycle()
    access_log = AccessLog(
        lines_per_second=settings.access_log_lines_per_second,
        # A refusal quotes what came, and of some features nobody may see that.
        quotes_refusals=not settings.payload_log_redact,
    )
    allowed = control if settings.repository_control else None
    share = (memory.limit() or memory.total()) / settings.workers
    tracing = from_environment()
    payloads = payload_log.from_settings(settings, repository)
    held = Held(each=settings.max_body_bytes, together=int(share * _BUFFERED_SHARE))
    infer = InferHandler(repository, access_log, held, tracing=tracing, payloads=payloads)
    rest = admin.build(repository, lifecycle, held, allowed, payloads)
    edge = Edge(rest, lifecycle, access_log)
    beside = list[Beside]()
    if settings.grpc_port is not None:
        from pilotage_runtime.services.grpc_server import GrpcServer  # noqa: PLC0415 - only where it is switched on

        beside.append(
            GrpcServer(
                repository,
                lifecycle,
                access_log,
                allowed,
                held,
                host=settings.host,
                port=settings.grpc_port,
                max_calls=settings.max_queue_size + settings.max_batch_size + _OTHER_CALLS,
                tracing=tracing,
                payloads=payloads,
            )
        )
    return DrainingServer(
        edge,
        infer,
        lifecycle,
        drain_seconds=settings.drain_seconds,
        access_log=access_log,
        on_started=on_started,
        beside=beside,
        after=[payloads] if payloads is not None else [],
        on_stopped=[
            *([tracing.close] if tracing is not None else []),
            on_answered,
            repository.close,
        ],
    )
