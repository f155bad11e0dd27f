"""Every reason that a condition or an Event may carry, found in the operator's source.

A reason is what is passed as the parameter `reason` of anything in `core` (Move, Event, Verdict, Failure and the
helpers around them), the third of a condition's four parts, or the first of a refusal's two. A name that is passed
is followed to what the same function assigns to it. Reasons that come from outside (the kubelet's, the runtime's)
are sets in `pods.py` and an enum of the runtime.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pilotage_operator.core import pods
from pilotage_runtime.failure import Reason

CORE = Path(pods.__file__).parent
DECIDING = tuple(CORE / f"{name}.py" for name in (
    "conditions", "facts", "hosts", "moves", "plan", "pods", "rollback", "rollout", "verdict",
))  # fmt: skip
TELLING = CORE.parent / "handlers" / "reconcile.py"
_WORD = re.compile(r"[A-Z][a-z]+([A-Z0-9][A-Za-z0-9]*)?\Z")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def of_the_operator() -> set[str]:
    """What the operator may say by itself or take over from a pod."""
    trees = [ast.parse(path.read_text()) for path in (*DECIDING, TELLING)]
    places = {name: at for tree in trees for name, at in _parameters(tree)}
    found = {reason for tree in trees for reason in _passed(tree, places)}
    return found | pods.MODEL_REASONS | pods._IMAGE_REASONS | pods._SETUP_REASONS


def of_the_runtime() -> set[str]:
    return {reason.value for reason in Reason}


def words() -> set[str]:
    """Every literal of the deciding modules that looks like a reason."""
    return {
        node.value
        for tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _WORD.match(node.value)
    }


def _trees() -> Iterator[ast.Module]:
    for path in DECIDING:
        yield ast.parse(path.read_text())


def _parameters(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, position) of each function's or dataclass' `reason`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = [item.target.id for item in node.body if _is_field(item)]
        elif isinstance(node, Function):
            names = [argument.arg for argument in node.args.args]
        else:
            continue
        if "reason" in names:
            yield node.name, names.index("reason")


def _is_field(item: ast.stmt) -> bool:
    return isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)


def _passed(tree: ast.Module, places: dict[str, int]) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, Function):
            for node in ast.walk(function):
                for value in _reasons_in(node, places):
                    yield from _literals(value, function)


def _reasons_in(node: ast.AST, places: dict[str, int]) -> Iterator[ast.expr]:
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in places:
            yield from arguments[places[name] : places[name] + 1]
            yield from (keyword.value for keyword in keywords if keyword.arg == "reason")
        case ast.Call(
            func=ast.Attribute(attr="append", value=ast.Name(id="refusals")), args=[ast.Tuple(elts=e)]
        ):
            yield e[0]
        case ast.Tuple(elts=[_, _, reason, _]):
            yield reason


def _literals(value: ast.expr, function: ast.AST) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other):
            yield from _literals(one, function)
            yield from _literals(other, function)
        case ast.BoolOp(values=values):
            for each in values:
                yield from _literals(each, function)
        case ast.Name(id=name):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and any(_named(target, name) for target in node.targets):
                    yield from _literals(node.value, function)


def _named(target: ast.expr, name: str) -> bool:
    return isinstance(target, ast.Name) and target.id == name
