"""What every loader gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pilotage_runtime.contract import Contract

Tensors = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to run."""

    threads: int


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
