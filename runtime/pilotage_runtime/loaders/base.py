"""What every loader is given, and what it gives back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pilotage_runtime.contract import Contract
from pilotage_runtime.placement import Device, Precision

Tensors = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to run, and how far it is trusted.

    Trust comes from whoever deploys the model, never from a file beside it: who can write the model can
    write that too.
    """

    threads: int
    device: Device = "cpu"
    precision: Precision = "float32"
    trusted: bool = False
    """Code in the model's files may run; only together with `digest`, which says which files these are."""
    digest: str | None = None
    trusted_types: tuple[str, ...] = ()
    """Types, as MODULE.NAME, that a skops file may hold beside those that skops itself trusts."""


class Model(Protocol):
    """A loaded model: tensors in, tensors out, in the order asked for. It may raise anything."""

    platform: str

    def contract(self) -> Contract:
        """Say what the model itself states of its inputs and outputs."""
        ...

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Infer once; called from any thread, also from several at a time."""
        ...

    def close(self) -> None:
        """Let go of what the model holds."""
        ...


@runtime_checkable
class StreamingModel(Model, Protocol):
    """A model that answers piece by piece; its `run` gives all pieces of one answer as one."""

    def stream(self, inputs: Tensors, parameters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield outputs as they come. The generator blocks, so it belongs in a thread; whoever stops
        listening calls its `close()` there, which runs the model's own `finally`.
        """
        ...
