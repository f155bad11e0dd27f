"""What the bytes of a file are: a format that is served, something known that is not, or nothing known.

Names lie, and a wrong guess may run code; so only bytes count. A table of recognisers is asked in order.
"""

import bz2
import io
import lzma
import mmap
import re
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from pilotage_runtime.loaders import onnx_file

Format = Literal[
    "ONNX", "TorchScript", "TorchExport", "Skops", "XGBoost", "LightGBM", "CatBoost", "TensorFlow",
    "Pickle", "Joblib", "Python",
]  # fmt: skip
FORMATS: tuple[Format, ...] = get_args(Format)
# These run code of the model's files when they are loaded.
RUN_CODE: frozenset[Format] = frozenset({"Pickle", "Joblib", "Python"})

HEAD_BYTES = 512
_EXPORT_TORCH = "torch.export.save(torch.export.export(model, (example,)), 'model.pt2')"
_EXPORT_ONNX = "torch.onnx.export(model, (example,), 'model.onnx')"
_EXPORT_KERAS = "keras.saving.load_model('model.keras').export('model')"
_JOBLIB_MARK = b"joblib.numpy_pickle"


@dataclass(frozen=True, slots=True)
class Unserved:
    """Something that is known, but not served: what it is, and what to do."""

    what: str
    mend: str


class BrokenContentError(ValueError):
    """The bytes begin like a known format and are none, or only a part of one."""


class Content:
    """The bytes of one model file: on disk, or in memory where the file itself is encrypted."""

    def __init__(self, path: Path, held: bytes | None = None) -> None:
        self.path = path
        self._held = held
        with self.open() as file:
            self.head = file.read(HEAD_BYTES)

    def open(self) -> BinaryIO:
        """Read from the beginning."""
        return self.path.open("rb") if self._held is None else io.BytesIO(self._held)

    def holds(self, mark: bytes) -> bool:
        """Whether these bytes are anywhere inside."""
        if self._held is not None:
            return mark in self._held
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(mark) >= 0

    def fields(self) -> frozenset[int]:
        """The numbers of the fields of a protobuf message; raise where it is none."""
        if self._held is not None:
            return onnx_file.top_fields(self._held)
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return onnx_file.top_fields(data)


def recognise(content: Content) -> Format | Unserved | None:
    """Tell what a file is; raise BrokenContentError where it is cut or damaged."""
    if not content.head:
        raise BrokenContentError("an empty file")
    for is_kind, kind in _BY_HEAD:
        if is_kind(content.head):
            return kind(content) if callable(kind) else kind
    return None


def _begins(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


def _matches(pattern: bytes) -> Callable[[bytes], bool]:
    compiled = re.compile(pattern, re.DOTALL)
    return lambda head: compiled.match(head) is not None


def _protobuf(content: Content) -> Format | None:
    """ONNX and a SavedModel both open with a small number in field 1; only the fields tell them apart."""
    try:
        fields = content.fields()
    except onnx_file.MalformedOnnxError as error:
        raise BrokenContentError(str(error)) from error
    if fields == frozenset({1, 2}):
        return "TensorFlow"
    if onnx_file.is_model(fields):
        return "ONNX"
    raise BrokenContentError("the file holds no ONNX graph")


def _zip(content: Content) -> Format | Unserved | None:
    try:
        with content.open() as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, RuntimeError, UnicodeDecodeError, OSError) as error:
        raise BrokenContentError(f"a zip archive that is cut or damaged ({error})") from error
    # torch puts everything below one folder, whose name is the file's first name.
    inside = {name.partition("/")[2] for name in names if "/" in name}
    if any(name.startswith("data/aotinductor/") for name in inside):
        return Unserved(
            "a package of AOTInductor, which is machine code", f"export the program: {_EXPORT_TORCH}"
        )
    if "archive_format" in inside and any(name.startswith("models/") for name in inside):
        return "TorchExport"
    if "serialized_exported_program.json" in names:
        return Unserved(
            "a program exported by a torch before 2.8", f"export it with a newer torch: {_EXPORT_TORCH}"
        )
    if "data.pkl" in inside:
        if any(name.startswith("code/") for name in inside):
            return "TorchScript"
        return Unserved(
            "what torch.save writes: weights (a state_dict) or a pickle, without the network's graph",
            f"export the network with its weights: {_EXPORT_TORCH}",
        )
    if "schema.json" in names:
        return "Skops"
    if {"config.json", "model.weights.h5"} <= names:
        return Unserved("a Keras archive", f"export a SavedModel: {_EXPORT_KERAS}")
    return None


def _pickle(content: Content) -> Format:
    return "Joblib" if content.holds(_JOBLIB_MARK) else "Pickle"


def _compressed(start: Callable[[Content], bytes]) -> Callable[[Content], Format | None]:
    """Joblib compresses what it likes; what another program compressed is no model."""

    def tell(content: Content) -> Format | None:
        with suppress(zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
            return "Joblib" if _is_pickle(start(content)) else None
        return None

    return tell


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 100 * 2**20


def _is_tflite(head: bytes) -> bool:
    return head[4:8] == b"TFL3"


_BY_HEAD: tuple[
    tuple[Callable[[bytes], bool], Format | Unserved | Callable[[Content], Format | Unserved | None]], ...
] = (
    (_begins(b"PK\x03\x04"), _zip),
    (
        _matches(rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."),
        Unserved(
            "what an old torch.save writes: weights (a state_dict) or a pickle, without the network's graph",
            f"export the network with its weights: {_EXPORT_TORCH}",
        ),
    ),
    (_is_pickle, _pickle),
    (_begins(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"), "Joblib"),  # zlib, joblib's usual way
    (_begins(b"\x1f\x8b"), _compressed(lambda content: zlib.decompressobj(31).decompress(content.head, 2))),
    (_begins(b"BZh"), _compressed(lambda content: bz2.BZ2File(content.open()).read(2))),
    (_begins(b"\xfd7zXZ", b"\x5d\x00\x00"), _compressed(lambda content: lzma.LZMADecompressor().decompress(content.head, 2))),
    (_begins(b"CBM1"), "CatBoost"),
    (_matches(rb"tree\r?\nversion=v"), "LightGBM"),
    (_matches(rb'\s*\{\s*"(learner|version)"\s*:|\{L.{7}.(learner|version)[\{\[]'), "XGBoost"),
    (
        _begins(b"binf"),
        Unserved("XGBoost's old binary format", "save it anew: booster.save_model('model.ubj')"),
    ),
    (
        _begins(b"ptrt", b"ftrt"),
        Unserved(
            "a TensorRT engine, which only the TensorRT and the GPU that built it can run",
            f"serve the network itself: {_EXPORT_ONNX}",
        ),
    ),
    (_begins(b"\x89HDF\r\n\x1a\n"), Unserved("HDF5, as Keras saves it", f"export a SavedModel: {_EXPORT_KERAS}")),
    (
        _is_safetensors,
        Unserved(
            "safetensors: weights without the network's graph",
            f"export the network with its weights: {_EXPORT_TORCH}",
        ),
    ),
    (
        _is_tflite,
        Unserved("TensorFlow Lite", "convert it: python -m tf2onnx.convert --tflite model.tflite --output model.onnx"),
    ),
    (
        _begins(b"GGUF"),
        Unserved(
            "GGUF: weights for llama.cpp", "serve it by a Python class (a folder with model.py) that calls llama.cpp"
        ),
    ),
    (onnx_file.looks_like_onnx, _protobuf),
)  # fmt: skip
