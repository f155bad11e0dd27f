"""Wiring: from a folder with a model to an application that serves it."""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from pilotage_runtime import contract as contracts
from pilotage_runtime import cpu, formats
from pilotage_runtime.engine import Engine
from pilotage_runtime.failure import Stage
from pilotage_runtime.fetched import model_root
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.log import AccessLog
from pilotage_runtime.services import admin
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.server import DrainingServer
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Slot
from pilotage_runtime.warmup import warm_up

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has answered once."""

    engine: Engine
    platform: str
    seconds: float


def load(settings: ServeSettings) -> Loaded:
    """Load, warm up and infer once; raise StartFailure otherwise."""
    started = time.perf_counter()
    found = formats.detect(model_root(settings.model_dir), Stage.LOAD, settings.model_format)
    threads = settings.threads or cpu.threads(settings.workers)
    model = by_format.load(found, LoadOptions(threads=threads))
    folder = found.path.parent
    engine = Engine(settings.model_name, model, contracts.refine(model.contract(), folder), threads)
    warm_up(engine)
    # The first answer has shown what the file does not state: the classes of a ZipMap.
    engine.refine(contracts.refine(model.contract(), folder))
    seconds = time.perf_counter() - started
    # What is loaded stays: the collector need not walk it again and again while requests wait.
    gc.collect()
    gc.freeze()
    logger.info(
        "model ready", extra={"model": settings.model_name, "seconds": round(seconds, 3), "threads": threads}
    )
    return Loaded(engine, model.platform, seconds)


def server(
    settings: ServeSettings, loaded: Loaded, slot: Slot, on_started: Callable[[], None]
) -> DrainingServer:
    """Put the layers on top of each other."""
    slot.start(loaded.seconds)
    lifecycle = Lifecycle()
    access_log = AccessLog()
    infer = InferHandler(loaded.engine, slot, settings.max_body_bytes)
    rest = admin.build(loaded.engine, loaded.platform, lifecycle, on_stop=loaded.engine.close)
    edge = Edge(infer, rest, slot, lifecycle, access_log)
    return DrainingServer(edge, lifecycle, settings.drain_seconds, access_log, on_started)
