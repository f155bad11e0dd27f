"""Vets torch's archives before torch reads them, and writes them anew from the parts that passed.

Both formats are zips, and torch trusts what is inside further than a file from a store deserves:

- `torch.export.load` unpickles whatever the archive marks as a pickle, evaluates the archive's expressions
  of sizes as Python (sympy's `sympify`), executes its `guards_code`, imports factories named in its tree
  specs, and opens machine code below `data/aotinductor`. So only raw tensors, a graph of known operators and
  expressions of sizes get through; everything else that it does not need is left out.
- `torch.jit.load` has an unpickler of its own, in C++, which makes nothing but tensors, containers and
  classes that the archive itself defines in TorchScript; no Python runs. But TorchScript has operators that
  read and write files (`from_file`, `save`), and `__setstate__` runs at load. So its code is searched.

Writing the archive anew makes sure that torch's reader sees what was vetted: two readers of one zip can
see different files.
"""

import ast
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import orjson

_JIT_NAMESPACES = frozenset({
    "prim", "aten", "quantized", "_quantized", "sparse", "prepacked", "mkldnn_prepacked", "torchvision",
})  # fmt: skip
_JIT_OPERATOR = re.compile(r"\b(?:torch\.)?ops\.(\w+)")
_JIT_FORBIDDEN = re.compile(r"\b(?:from_file|(?:torch|aten)\.save|_open_registration\w*)\b")
_TARGET = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized|quantized_decomposed|torchvision)\.\w+(?:\.\w+)?"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|map_impl|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_FORBIDDEN_TARGET = re.compile(r"\.(?:from_file|save)\b")
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
_EXPRESSION_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Abs", "Max", "Min", "Mod", "FloorDiv", "ModularIndexing", "PythonMod", "CleanDiv",
    "CeilDiv", "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "ToFloat", "TruncToInt",
    "RoundToInt", "Identity", "Where", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "floor", "ceiling",
})  # fmt: skip
_EXPRESSION_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.USub, ast.UAdd,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Compare, ast.Eq, ast.NotEq,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_KEPT = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(?:weights/model_weights|constants/model_constants)"
    r"_config\.json|archive_format|archive_version|byteorder|\.data/version"
)
_PROGRAM, _SAMPLE = "models/model.json", "data/sample_inputs/model.pt"
_ROOT = "model"
_MOST_COMPRESSED_BYTES = 64 * 2**20


class UnsafeArchiveError(ValueError):
    """An archive that is broken, or would do more than compute."""


def script(file: BinaryIO) -> BinaryIO:
    """Vet a TorchScript archive and give it back, written anew."""
    members = _members(file)
    for name, content in members.items():
        if name.startswith("code/") and name.endswith(".py"):
            _vet_code(name, content.decode(errors="replace"))
    return _archive(members)


def program(file: BinaryIO) -> BinaryIO:
    """Vet an exported program and give it back, written anew without what could run as Python."""
    members = _members(file)
    if _PROGRAM not in members:
        raise UnsafeArchiveError(f"it holds no {_PROGRAM}")
    kept = {name: content for name, content in members.items() if _KEPT.fullmatch(name)}
    for name, content in kept.items():
        if name.endswith("_config.json"):
            _vet_payloads(name, _json(name, content))
    stated = _json(_PROGRAM, members[_PROGRAM])
    for where, value in _walk(stated):
        _vet_value(where, value)
    _without_code(stated)
    # The sample is pickled, and only torch.compile looks at it: torch takes nothing for an empty one.
    return _archive({**kept, _PROGRAM: orjson.dumps(stated), _SAMPLE: b""})


def _members(file: BinaryIO) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            roots = {info.filename.partition("/")[0] for info in infos}
            if len(roots) != 1 or len({info.filename for info in infos}) < len(infos):
                raise UnsafeArchiveError("its files are not all below one folder, or a name is there twice")
            packed = sum(info.file_size for info in infos if info.compress_type != zipfile.ZIP_STORED)
            if packed > _MOST_COMPRESSED_BYTES:
                raise UnsafeArchiveError(f"{packed} of its bytes are compressed: torch compresses code alone")
            return {info.filename.partition("/")[2]: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise UnsafeArchiveError(f"it is cut or damaged ({error})") from error


def _archive(members: Mapping[str, bytes]) -> BinaryIO:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"{_ROOT}/{name}", content)
    written.seek(0)
    return written


def _vet_code(name: str, code: str) -> None:
    if found := _JIT_FORBIDDEN.search(code):
        raise UnsafeArchiveError(f"{name} calls {found[0]}, which reads or writes files")
    for found in _JIT_OPERATOR.finditer(code):
        if found[1] not in _JIT_NAMESPACES:
            raise UnsafeArchiveError(f"{name} calls operators of '{found[1]}', which are not torch's own")


def _vet_payloads(name: str, payloads: Any) -> None:
    for tensor, payload in payloads.get("config", {}).items():
        if payload.get("use_pickle") is not False or not re.fullmatch(
            r"(?:weight|tensor)_\d+", str(payload.get("path_name"))
        ):
            raise UnsafeArchiveError(f"{name}: '{tensor}' is a pickle and no plain tensor")


def _vet_value(where: str, value: Any) -> None:
    if where == "expr_str":
        _vet_expression(value)
    elif where == "target" and (
        not isinstance(value, str) or not _TARGET.fullmatch(value) or _FORBIDDEN_TARGET.search(value)
    ):
        raise UnsafeArchiveError(f"its graph calls {value!r:.100}, which is no operator that is allowed")
    elif where in ("in_spec", "out_spec") and value:
        for inner, kind in _walk(_json(where, str(value).encode())):
            if inner == "type" and kind not in _TREE_TYPES:
                raise UnsafeArchiveError(
                    f"it takes or gives a {kind!r:.100}; tuples, lists and dicts are served"
                )
    elif where == "custom_obj_values" and value:
        raise UnsafeArchiveError("it holds objects that are no tensors")


def _vet_expression(text: Any) -> None:
    """Let through arithmetic of sizes alone: torch hands the text to Python's `eval`."""
    if not isinstance(text, str) or len(text) > 2000:
        raise UnsafeArchiveError("one of its sizes is no expression")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnsafeArchiveError(f"the size {text!r:.100} is no expression") from error
    for node in ast.walk(tree):
        good = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Name):
            good = node.id in _EXPRESSION_FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            good = _SYMBOL.fullmatch(node.value) is not None
        if not good:
            raise UnsafeArchiveError(f"the size {text!r:.100} is more than arithmetic")


def _without_code(stated: Any) -> None:
    """Drop what torch would execute or resolve, and inference does not need."""
    stated["guards_code"] = []
    for _, value in _walk(stated):
        if isinstance(value, dict) and "target" in value:
            value["metadata"] = {}


def _walk(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in a JSON document with the name under which it lies."""
    pending = [(where, value)]
    while pending:
        name, found = pending.pop()
        yield name, found
        if isinstance(found, dict):
            pending.extend(found.items())
        elif isinstance(found, list):
            pending.extend((name, item) for item in found)


def _json(name: str, content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UnsafeArchiveError(f"{name} is no JSON ({error})") from error
