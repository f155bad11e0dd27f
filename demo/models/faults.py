"""Faults as parts of a model's graph: each stands between the input and the model that it spoils.

All but the renamed input depend on the first feature, so that a share of the traffic meets them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

LOOP_TURNS = 650_000
_SPOILT = "spoilt_input"


def index_out_of_range(model: ModelProto, above: float) -> ModelProto:
    """Gather element 1 of a list of one, where the first feature exceeds `above`."""
    return _before(
        model,
        [
            *_first_feature_exceeds(model),
            helper.make_node("Cast", ["exceeds"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["only_element", "index"], ["factor"], axis=0),
            helper.make_node("Mul", [_input(model), "factor"], [_SPOILT]),
        ],
        above,
        only_element=np.array([1.0], dtype=np.float32),
    )


def not_a_number(model: ModelProto, above: float) -> ModelProto:
    """Take the root of a negative number, where the first feature exceeds `above`."""
    return _before(
        model,
        [
            *_first_feature_exceeds(model),
            helper.make_node("Sub", ["threshold", "first"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", [_input(model), "nothing"], [_SPOILT]),
        ],
        above,
        zero=np.array(0.0, dtype=np.float32),
    )


def long_loop(model: ModelProto, above: float) -> ModelProto:
    """Count to LOOP_TURNS one by one, on one thread, where any row's first feature exceeds `above`."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_again"]),
            helper.make_node("Mul", ["so_far", "so_far"], ["next"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("so_far", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on_again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
    )
    return _before(
        model,
        [
            *_first_feature_exceeds(model),
            helper.make_node("Cast", ["exceeds"], ["exceeding"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["exceeding"], ["any"], keepdims=0),
            helper.make_node("Mul", ["any", "loop_turns"], ["turns"]),
            helper.make_node("Loop", ["turns", "", "zero"], ["nothing"], body=body),
            helper.make_node("Add", [_input(model), "nothing"], [_SPOILT]),
        ],
        above,
        loop_turns=np.array(LOOP_TURNS, dtype=np.int64),
        zero=np.array(0.0, dtype=np.float32),
    )


def renamed_input(model: ModelProto, name: str) -> ModelProto:
    """Give the input another name, and change nothing else."""
    spoilt = _copy(model)
    old = _input(model)
    spoilt.graph.input[0].name = name
    _rewire(spoilt.graph.node, old, name)
    return spoilt


def _first_feature_exceeds(model: ModelProto) -> list[Any]:
    return [
        helper.make_node("Gather", [_input(model), "first_column"], ["first"], axis=1),
        helper.make_node("Greater", ["first", "threshold"], ["exceeds"]),
    ]


def _before(model: ModelProto, nodes: Sequence[Any], above: float, **constants: np.ndarray) -> ModelProto:
    """Put nodes that make `spoilt_input` before the model, which then reads that."""
    spoilt = _copy(model)
    kept = list(spoilt.graph.node)
    _rewire(kept, _input(model), _SPOILT)
    constants |= {
        "first_column": np.array([0], dtype=np.int64),
        "threshold": np.array(above, dtype=np.float32),
    }
    spoilt.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    del spoilt.graph.node[:]
    spoilt.graph.node.extend([*nodes, *kept])
    return spoilt


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _input(model: ModelProto) -> str:
    return model.graph.input[0].name


def _rewire(nodes: Any, old: str, new: str) -> None:
    for node in nodes:
        for at, name in enumerate(node.input):
            if name == old:
                node.input[at] = new
