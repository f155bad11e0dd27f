"""Vets an XGBoost model before XGBoost parses it.

Its parser trusts the file: lengths that lie crash it, and a prediction follows children and features wherever they
point. So the document is read here first, and what XGBoost follows without looking is checked.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pilotage_runtime.loaders import ubjson

_MAX_FEATURES = 2**24
_MAX_GROUPS = 2**16
# XGBoost itself keeps a category in an FP32, and takes a bit for each that is lower.
_MAX_CATEGORY = 2**24
_NOWHERE = (-1, 2**31 - 1)
_ALWAYS = ("loss_changes", "sum_hessian", "base_weights")
_CATEGORY_NODES = ("categories_nodes", "categories_segments", "categories_sizes")


class MalformedXGBoostError(ValueError):
    """The document is no whole XGBoost model."""


def vet(content: bytes) -> None:
    """Raise ValueError unless every tree is whole and leads somewhere."""
    document = ubjson.read(content) if content[:2] == b"{L" else _json(content)
    learner = _part(document, "learner")
    stated = _part(learner, "learner_model_param")
    features = _counted(stated, "num_feature", _MAX_FEATURES)
    classes = _counted(stated, "num_class", _MAX_GROUPS)
    targets = _counted(stated, "num_target", _MAX_GROUPS) if "num_target" in stated else 1
    groups = max(1, classes, targets)
    if classes > 1 and targets > 1:
        raise MalformedXGBoostError(f"{classes} classes of {targets} targets cannot be")
    _vet_scores(stated, groups)
    _vet_objective(_part(learner, "objective"), classes)
    for name in ("feature_names", "feature_types"):
        texts = learner.get(name, [])
        if not isinstance(texts, list) or not all(type(text) is str for text in texts):
            raise MalformedXGBoostError(f"{name} should be texts")
        if len(texts) not in (0, features):
            raise MalformedXGBoostError(f"{name} should be {features} texts, but is {len(texts)}")
    _texts(learner.get("attributes", {}), "attributes")
    _vet_booster(_part(learner, "gradient_booster"), features, groups)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError as error:
        raise MalformedXGBoostError("it is nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedXGBoostError(f"it holds a name twice, of {', '.join(found)[:60]}")
    return found


def _vet_scores(stated: dict[str, Any], groups: int) -> None:
    text = str(stated.get("base_score", ""))
    try:
        scores = [float(score) for score in text.removeprefix("[").removesuffix("]").split(",")]
    except ValueError as error:
        raise MalformedXGBoostError(f"base_score should be numbers, but is {text!r:.60}") from error
    if len(scores) not in (1, groups):
        raise MalformedXGBoostError(f"base_score should be {groups} numbers, but is {len(scores)}")


def _vet_objective(objective: dict[str, Any], classes: int) -> None:
    for name, parameters in objective.items():
        if name != "name":
            _texts(parameters, name)
    parameters = objective.get("softmax_multiclass_param")
    if parameters is not None and _counted(parameters, "num_class", _MAX_GROUPS) != classes:
        raise MalformedXGBoostError(f"its objective should have {classes} classes")


def _vet_booster(booster: dict[str, Any], features: int, groups: int) -> None:
    match booster.get("name"):
        case "gbtree":
            _vet_trees(_part(booster, "model"), features, groups)
        case "dart":
            model = _part(_part(booster, "gbtree"), "model")
            _vet_trees(model, features, groups)
            _numbers(booster, "weight_drop", len(model["trees"]))
        case "gblinear":
            _numbers(_part(booster, "model"), "weights", (features + 1) * groups)
        case name:
            raise MalformedXGBoostError(f"{name!r:.60} is no booster")


def _vet_trees(model: dict[str, Any], features: int, groups: int) -> None:
    stated = _part(model, "gbtree_model_param")
    trees = model.get("trees")
    count = _counted(stated, "num_trees", 2**31)
    if not isinstance(trees, list) or len(trees) != count:
        raise MalformedXGBoostError(f"it should hold {count} trees")
    _within("tree_info", _whole(model, "tree_info", count), 0, groups)
    if "num_parallel_tree" in stated:  # absent before 1.6
        _counted(stated, "num_parallel_tree", 2**31)
    if "iteration_indptr" in model:
        _vet_bounds("iteration_indptr", _whole(model, "iteration_indptr"), count)
    for number, tree in enumerate(trees):
        try:
            _vet_tree(tree, number, features, groups)
        except MalformedXGBoostError as error:
            raise MalformedXGBoostError(f"tree {number}: {error}") from error
    if "cats" in model:
        _vet_encodings(_part(model, "cats"), features)


def _vet_tree(tree: Any, number: int, features: int, groups: int) -> None:
    stated = _part(tree, "tree_param")
    if tree.get("id") != number:
        raise MalformedXGBoostError(f"its id should be its number, but is {tree.get('id')!r:.60}")
    nodes = _counted(stated, "num_nodes", 2**31)
    width = max(1, _counted(stated, "size_leaf_vector", _MAX_GROUPS + 1))
    if nodes < 1 or width not in (1, groups) or _counted(stated, "num_deleted", 2**31) >= nodes:
        raise MalformedXGBoostError("its number of nodes or of targets cannot be")
    if _counted(stated, "num_feature", _MAX_FEATURES) != features:
        raise MalformedXGBoostError(f"num_feature should be {features}")
    left, right = _whole(tree, "left_children", nodes), _whole(tree, "right_children", nodes)
    parents, split = _whole(tree, "parents", nodes), _whole(tree, "split_indices", nodes)
    # Those of nodes that were pruned too: XGBoost looks there whether they are left or right.
    _within("parents", parents[1:], 0, nodes)
    _within("the root's parent", np.isin(parents[:1], _NOWHERE), 1, 2)
    _numbers(tree, "split_conditions", nodes)
    _within("default_left", _whole(tree, "default_left", nodes), 0, 2)
    kinds = _whole(tree, "split_type", nodes) if "split_type" in tree else np.zeros(nodes, np.int64)
    _within("split_type", kinds, 0, 2)
    for name in _ALWAYS:
        _numbers(tree, name, nodes * width if name == "base_weights" else nodes)
    inner = np.flatnonzero(left != -1)
    leaves = nodes - len(inner)
    if width == 1:
        if (right[left == -1] != -1).any():
            raise MalformedXGBoostError("a leaf has a child")
    elif "leaf_weights" in tree:
        # There a leaf's right child is the place of its weights.
        _numbers(tree, "leaf_weights", leaves * width)
        _within("right_children of leaves", right[left == -1], 0, leaves)
    _within("split_indices", split[inner], 0, features)
    children = np.concatenate((left[inner], right[inner]))
    _within("children", children, 1, nodes)
    # A node with one parent, the root with none: no way leads back, so every prediction ends.
    if len(np.unique(children)) != len(children) or (parents[children] != np.tile(inner, 2)).any():
        raise MalformedXGBoostError("its children lead back or together, so a prediction might never end")
    _vet_categories(tree, inner[kinds[inner] == 1], nodes)


def _vet_categories(tree: dict[str, Any], splits: np.ndarray, nodes: int) -> None:
    if not len(splits) and "categories_nodes" not in tree:
        return
    chosen, begins, sizes = (_whole(tree, name) for name in _CATEGORY_NODES)
    categories = _whole(tree, "categories")
    if not len(chosen) == len(begins) == len(sizes) or (np.diff(chosen) <= 0).any():
        raise MalformedXGBoostError("its nodes of categories cannot be")
    _within("categories_nodes", chosen, 0, nodes)
    if not np.isin(splits, chosen).all():
        raise MalformedXGBoostError("a split by categories has none")
    _within("categories_sizes", sizes, 1, len(categories) + 1)
    if (begins != np.cumsum(sizes) - sizes).any() or sizes.sum() != len(categories):
        raise MalformedXGBoostError("categories_segments do not divide categories")
    _within("categories", categories, 0, _MAX_CATEGORY)


def _vet_encodings(encodings: dict[str, Any], features: int) -> None:
    """Check the names of categories, which a training with a table leaves in the model."""
    encoded = encodings.get("enc")
    if not isinstance(encoded, list) or len(encoded) not in (0, features):
        raise MalformedXGBoostError(f"cats should encode {features} features, or none")
    sizes = list[int]()
    for at, one in enumerate(encoded):
        if not isinstance(one, dict):
            raise MalformedXGBoostError(f"cats of feature {at} should be an object")
        values = _numbers(one, "values")
        offsets = _whole(one, "offsets") if "offsets" in one else None
        if offsets is not None and len(offsets):
            _vet_bounds(f"offsets of feature {at}", offsets, len(values))
            sizes.append(len(offsets) - 1)
        else:
            sizes.append(len(values))
    segments = _whole(encodings, "feature_segments")
    if (encoded or len(segments)) and segments.tolist() != [0, *np.cumsum(sizes).tolist()]:
        raise MalformedXGBoostError("feature_segments do not divide the categories")
    total = sum(sizes)
    _within("sorted_idx", _whole(encodings, "sorted_idx", total), 0, max(1, total))


def _vet_bounds(name: str, bounds: np.ndarray, end: int) -> None:
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != end or (np.diff(bounds) < 0).any():
        raise MalformedXGBoostError(f"{name} should rise from 0 to {end}")


def _part(document: Any, name: str) -> dict[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise MalformedXGBoostError(f"it holds no {name}")
    return found


def _texts(found: Any, name: str) -> None:
    if not isinstance(found, dict) or not all(type(text) is str for text in found.values()):
        raise MalformedXGBoostError(f"{name} should be texts by name")


def _counted(stated: dict[str, Any], name: str, end: int) -> int:
    """Read a number that XGBoost writes as a text."""
    text = stated.get(name) if isinstance(stated, dict) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if not (
        isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < end
    ):
        raise MalformedXGBoostError(f"{name} should be a number below {end}, but is {text!r:.60}")
    return int(text)


def _numbers(found: dict[str, Any], name: str, size: int | None = None) -> np.ndarray:
    values: Sequence[Any] | np.ndarray = found.get(name, ())
    if isinstance(values, list):
        # JSON has truth values beside the numbers; what is neither is an array of objects or texts.
        values = np.array(values) if values else np.zeros(0, np.int64)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "biuf":
        raise MalformedXGBoostError(f"{name} should be numbers")
    if size is not None and len(values) != size:
        raise MalformedXGBoostError(f"{name} should be {size} numbers, but is {len(values)}")
    return values


def _whole(found: dict[str, Any], name: str, size: int | None = None) -> np.ndarray:
    values = _numbers(found, name, size)
    if values.dtype.kind == "f":
        raise MalformedXGBoostError(f"{name} should be whole numbers")
    return values.astype(np.int64)


def _within(name: str, numbers: np.ndarray, lowest: int, end: int) -> None:
    if numbers.size and not ((numbers >= lowest) & (numbers < end)).all():
        raise MalformedXGBoostError(f"{name} should be {lowest} to {end - 1}")
