"""TorchScript and exported programs through torch; `torch_archive` vets both before torch reads them."""

import io
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils._pytree import tree_unflatten

from pilotage_runtime.contract import Contract, TensorSpec, complete
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular, torch_archive
from pilotage_runtime.loaders.base import LoadOptions, Tensors
from pilotage_runtime.tensors import DATATYPES

_DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}  # fmt: skip
_BFLOAT16 = DATATYPES["BF16"].dtype
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _TorchModel:
    """A module of tensors. Its answers are named by the contract, in the order in which it gives them.

    A dictionary whose keys are the contract's names is read by them.
    """

    platform = "pytorch"

    def __init__(self, module: Any, contract: Contract, options: LoadOptions) -> None:
        torch.set_num_threads(options.threads)
        self._device = torch.device(options.device)
        self._precision = None if options.precision == "float32" else _PRECISIONS[options.precision]
        self._module = module.to(self._device)
        if self._precision is not None:
            self._module = self._module.to(self._precision)
        self._contract = contract
        self._places = {spec.name: (at, spec.dtype) for at, spec in enumerate(contract.outputs)}

    def contract(self) -> Contract:
        """Give the contract with which it was loaded."""
        return self._contract

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Infer without a tape; arrays become tensors without a copy where they may."""
        with torch.inference_mode():
            answer = self._call({name: self._tensor(array) for name, array in inputs.items()})
            if isinstance(answer, Mapping) and answer.keys() == self._places.keys():
                # The names that its author gave say more than their order.
                answer = [answer[name] for name in self._places]
            tensors = [answer] if isinstance(answer, torch.Tensor) else list(_flat(answer))
            if len(tensors) != len(self._places):
                raise ValueError(
                    f"the model gave {len(tensors)} tensors, but its contract names {len(self._places)} outputs"
                )
            return [self._array(tensors[at], dtype) for at, dtype in map(self._places.__getitem__, outputs)]

    def close(self) -> None:
        """Free the module, and what a GPU holds of it."""
        del self._module
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _call(self, tensors: dict[str, torch.Tensor]) -> Any:
        return self._module(**tensors)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # torch has no read-only tensors: what a request's own bytes back is copied.
        plain = array if array.flags.writeable else array.copy()
        # numpy's bfloat16 is not torch's: they share the bits alone.
        tensor = (
            torch.from_numpy(plain.view(np.int16)).view(torch.bfloat16)
            if plain.dtype == _BFLOAT16
            else torch.from_numpy(plain)
        ).to(self._device)
        return tensor.to(self._precision) if self._precision and tensor.is_floating_point() else tensor

    def _array(self, tensor: torch.Tensor, dtype: np.dtype) -> np.ndarray:
        if dtype == _BFLOAT16:
            return tensor.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().view(dtype)
        plain = tensor.float() if tensor.dtype in (torch.bfloat16, self._precision) else tensor
        return plain.cpu().numpy().astype(dtype, copy=False)


class TorchScriptModel(_TorchModel):
    """TorchScript says the names of its inputs and nothing else, so contract.json has to."""

    platform = "pytorch_torchscript"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        _require_device(options)
        module = _loaded(
            file, torch_archive.script, lambda archive: torch.jit.load(archive, map_location="cpu")
        )
        module.eval()
        arguments = module.forward.schema.arguments[1:]
        if strange := [argument.name for argument in arguments if str(argument.type) != "Tensor"]:
            raise StartFailure(
                Stage.LOAD,
                Reason.INVALID_MODEL,
                f"{file.path.name}: forward takes {', '.join(strange)}, which are no tensors; wrap the module in one "
                "whose forward takes tensors only",
            )
        super().__init__(
            module, complete(file.folder, "TorchScript", [argument.name for argument in arguments]), options
        )


class ExportedModel(_TorchModel):
    """An exported program, which says names, types and shapes itself; outputs are named after their nodes."""

    platform = "pytorch_export"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        _require_device(options)
        exported = _loaded(file, torch_archive.program, torch.export.load)
        try:
            contract = _exported_contract(exported)
            module = exported.module()
        except (KeyError, RuntimeError, ValueError, AttributeError) as error:
            raise tabular.refused(file, "torch", error) from error
        super().__init__(module, contract, options)
        self._names = [spec.name for spec in contract.inputs]
        self._form = exported.call_spec.in_spec

    def _call(self, tensors: dict[str, torch.Tensor]) -> Any:
        """The program keeps its arguments' form: some by place, some by name, some in a tuple."""
        arguments, named = tree_unflatten([tensors[name] for name in self._names], self._form)
        return self._module(*arguments, **named)


def _loaded(file: ModelFile, vet: Callable[[BinaryIO], BinaryIO], load: Callable[[BinaryIO], Any]) -> Any:
    try:
        with file.path.open("rb") if file.content is None else io.BytesIO(file.content) as stored:
            archive = vet(stored)
    except torch_archive.UnsafeArchiveError as error:
        raise StartFailure(
            Stage.LOAD, Reason.INVALID_MODEL, f"{file.path.name} is not loaded: {error}"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is old, says torch; that is its author's business
            return load(archive)
    except Exception as error:
        raise tabular.refused(file, "torch", error) from error


def _require_device(options: LoadOptions) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise StartFailure(
            Stage.LOAD,
            Reason.LOAD_FAILED,
            "device cuda was asked for, but torch sees no GPU here: request one in runtime.resources "
            "(nvidia.com/gpu), or leave the device out",
        )


def _exported_contract(exported: Any) -> Contract:
    signature = exported.graph_signature
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    outputs = _distinct(signature.user_outputs, values)
    return Contract(
        tuple(_spec(name, values[name]) for name in signature.user_inputs),
        tuple(_spec(name, values[node]) for name, node in zip(outputs, signature.user_outputs, strict=True)),
    )


def _distinct(nodes: Sequence[str], taken: Collection[str]) -> list[str]:
    """Name outputs after their nodes; a node that is answered again gets a number that no node has."""
    names: list[str] = []
    for node in nodes:
        numbered = (f"{node}_{number}" for number in count(2))
        names.append(
            node if node not in names else next(n for n in numbered if n not in taken and n not in names)
        )
    return names


def _spec(name: str, value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(getattr(value, "dtype", None))  # pyright: ignore[reportArgumentType]
    if datatype is None or datatype not in DATATYPES:
        raise ValueError(
            f"'{name}' is {getattr(value, 'dtype', type(value).__name__)}, which cannot be carried"
        )
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    symbols = tuple(None if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name, datatype, tuple(-1 if size is None else size for size in sizes), symbols)


def _flat(answer: Any) -> Sequence[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        return [answer]
    parts = answer.values() if isinstance(answer, Mapping) else answer
    return [tensor for part in parts for tensor in _flat(part)]
