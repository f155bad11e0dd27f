"""Vets a LightGBM model before LightGBM parses it.

Its parser trusts the file: a cut one ends the whole process, and a tree whose child is itself never ends a
prediction. So what LightGBM follows without looking (sizes, children, features, categories) is checked here.
"""

import re
from collections.abc import Sequence

import numpy as np

_OF_LEAVES = frozenset({"leaf_weight", "leaf_count"})
_OF_SPLITS = frozenset({"split_gain", "internal_value", "internal_weight", "internal_count"})
_PARAMETER = re.compile(r"\[\w+: [^\n]*\]")


class MalformedLightGBMError(ValueError):
    """The text is no whole LightGBM model."""


def vet(text: str) -> None:
    """Raise MalformedLightGBMError unless every tree is whole and leads somewhere."""
    encoded = text.encode()
    head, separator, _ = encoded.partition(b"\nTree=")
    fields = _fields(head.decode())
    if not separator:
        raise MalformedLightGBMError("the file holds no tree")
    features = _number(fields, "max_feature_idx") + 1
    sizes = [int(size) for size in _numbers(fields, "tree_sizes").tolist()]
    per_iteration = _number(fields, "num_tree_per_iteration")
    if features < 1 or per_iteration < 1 or not sizes or len(sizes) % per_iteration:
        raise MalformedLightGBMError("its number of features or of trees cannot be")
    names, infos = fields.get("feature_names", "").split(" "), fields.get("feature_infos", "").split(" ")
    if len(names) != features or len(infos) != features:
        raise MalformedLightGBMError(f"it should name {features} features, but names {len(names)}")
    at = len(head) + 1
    while encoded[at : at + 1] == b"\n":
        at += 1
    for number, size in enumerate(sizes):
        tree = encoded[at : at + size] if size > 0 else b""
        if len(tree) != size or not tree.startswith(b"Tree=%d\n" % number):
            raise MalformedLightGBMError(f"tree {number} is cut, or not where the file says")
        try:
            _vet_tree(_fields(tree.decode()), features)
        except (MalformedLightGBMError, ValueError) as error:
            raise MalformedLightGBMError(f"tree {number}: {error}") from error
        at += size
    _vet_rest(encoded[at:].decode())


def _vet_rest(text: str) -> None:
    if not text.lstrip().startswith("end of trees"):
        raise MalformedLightGBMError("the file ends in the middle of its trees, or has more than it says")
    _, begun, parameters = text.partition("\nparameters:\n")
    stated, ended, _ = parameters.partition("\nend of parameters\n")
    if begun and not (ended and all(_PARAMETER.fullmatch(line) for line in stated.splitlines() if line)):
        raise MalformedLightGBMError("the file ends in the middle of its parameters, or one is no parameter")


def _vet_tree(fields: dict[str, str], features: int) -> None:
    leaves, categories = _number(fields, "num_leaves"), _number(fields, "num_cat")
    if leaves < 1 or categories < 0:
        raise MalformedLightGBMError(f"{leaves} leaves and {categories} categories cannot be")
    inner = leaves - 1
    _sized(fields, "leaf_value", leaves)
    _sized(fields, "shrinkage", 1)
    if fields.get("is_linear", "0").strip() != "0":
        _vet_linear(fields, leaves, features)
    if inner == 0:
        return  # a tree of one leaf leaves the rest empty
    for size, names in ((leaves, _OF_LEAVES), (inner, _OF_SPLITS)):
        for name in names & fields.keys():
            _sized(fields, name, size)
    split = _sized(fields, "split_feature", inner)
    thresholds = _sized(fields, "threshold", inner)
    decisions = _sized(fields, "decision_type", inner)
    _within("split_feature", split, 0, features)
    order = np.arange(inner)
    for side in ("left_child", "right_child"):
        child = _sized(fields, side, inner)
        _within(side, child, -leaves, inner)
        if (child[child >= 0] <= order[child >= 0]).any():
            raise MalformedLightGBMError(f"{side} leads back, so a prediction might never end")
    chosen = thresholds[(decisions.astype(np.int64) & 1) == 1]
    if categories or chosen.size:
        _within("threshold of a category", chosen, 0, categories)
        boundaries = _sized(fields, "cat_boundaries", categories + 1)
        words = _numbers(fields, "cat_threshold")
        if boundaries[0] != 0 or (np.diff(boundaries) < 0).any() or boundaries[-1] != len(words):
            raise MalformedLightGBMError("cat_boundaries do not divide cat_threshold")


def _vet_linear(fields: dict[str, str], leaves: int, features: int) -> None:
    _sized(fields, "leaf_const", leaves)
    counts = _sized(fields, "num_features", leaves)
    used = _numbers(fields, "leaf_features")
    if (counts < 0).any() or counts.sum() != len(used) or len(_numbers(fields, "leaf_coeff")) != len(used):
        raise MalformedLightGBMError("its linear leaves are not as many as it says")
    _within("leaf_features", used, 0, features)


def _fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _number(fields: dict[str, str], name: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", fields.get(name, "").strip()):
        raise MalformedLightGBMError(f"{name} should be a whole number, but is {fields.get(name)!r:.60}")
    return int(fields[name])


def _numbers(fields: dict[str, str], name: str) -> np.ndarray:
    try:
        return np.array(fields.get(name, "").split(), dtype=np.float64)
    except ValueError as error:
        raise MalformedLightGBMError(f"{name} should be numbers, but {error}") from error


def _sized(fields: dict[str, str], name: str, size: int) -> np.ndarray:
    numbers = _numbers(fields, name)
    if len(numbers) != size:
        raise MalformedLightGBMError(f"{name} should be {size} numbers, but is {len(numbers)}")
    return numbers


def _within(name: str, numbers: Sequence[float] | np.ndarray, lowest: int, end: int) -> None:
    values = np.asarray(numbers)
    if values.size and not ((values >= lowest) & (values < end)).all():
        raise MalformedLightGBMError(f"{name} should be {lowest} to {end - 1}")
