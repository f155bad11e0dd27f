"""Models that stay encrypted where they lie, and are opened into memory only.

Two envelopes are read, each a standard with tools of its own (docs/decisions/0011-sealed-models.md says why):

    JWE   RFC 7516 compact serialisation, {"alg":"dir","enc":"A256GCM"}, with "kid" where there are several keys
    age   age-encryption.org/v1, binary or armored, to X25519 recipients

Keys are the files of one folder, which a Secret fills. A key for JWE is a JWK ({"kty":"oct","k":"…"}), or 32 bytes in
base64; its name is the JWK's "kid", or else the file's name. A key for age is an identity file, as age-keygen writes.
The digest of a sealed model is that of the sealed file: what is verified needs no key.
"""

import base64
import binascii
import importlib
import io
import json
import mmap
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilotage_runtime.failure import Reason, Stage, StartFailure

HEAD_BYTES = 512
KEY_BYTES = 32
_IV_BYTES, _TAG_BYTES = 12, 16
_CHUNK = 4 * (1 << 18)
_JWE, _AGE = "JWE", "age"
_AGE_HEADS = (b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----")
# base64url of an object, then, for a key that both sides have, nothing between the first two dots.
_JWE_HEAD = re.compile(rb"ey[A-Za-z0-9_-]+\.\.")
_IDENTITY = "AGE-SECRET-KEY-1"
_LONGEST_HEADER = 8192


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    content: str


def is_sealed(head: bytes) -> str | None:
    """Name the envelope that a file's first bytes open, if they do: JWE or age."""
    if head.startswith(_AGE_HEADS):
        return _AGE
    return _JWE if _JWE_HEAD.match(head) else None


def envelope(path: Path) -> str | None:
    """Name the envelope of a sealed file; None where it is not sealed."""
    with path.open("rb") as file:
        return is_sealed(file.read(HEAD_BYTES))


def open_if_sealed(path: Path, keys_dir: Path) -> bytes | None:
    """Give what a sealed file holds; None where it is not sealed."""
    return open_sealed(path, keys_dir) if envelope(path) else None


def open_sealed(path: Path, keys_dir: Path) -> bytes:
    """Open a sealed file with one of the keys; raise StartFailure where none does, or where it is damaged."""
    kind = envelope(path)
    keys = _keys(keys_dir)
    if not keys:
        raise _no_key(path, f"is sealed ({kind}), and there is no key for it: name a Secret that holds one")
    return _open_age(path, keys) if kind == _AGE else _open_jwe(path, keys)


def seal(source: Path, target: Path, key: bytes, name: str | None = None) -> None:
    """Seal a file as JWE with a key of 32 bytes; `name` tells which key, where a reader may have several."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key has {len(key)} bytes, A256GCM takes {KEY_BYTES}")
    stated = {"alg": "dir", "enc": "A256GCM", **({"kid": name} if name else {})}
    header = _base64url(json.dumps(stated, separators=(",", ":")).encode())
    iv = secrets.token_bytes(_IV_BYTES)
    encryptor = _cipher(key, iv, None).encryptor()
    encryptor.authenticate_additional_data(header)
    with source.open("rb") as plain, target.open("wb") as sealed:
        sealed.write(header + b".." + _base64url(iv) + b".")
        # Base64 goes by threes: no chunk but the last needs padding.
        while chunk := plain.read(3 * (_CHUNK // 4)):
            sealed.write(_base64url(encryptor.update(chunk)))
        encryptor.finalize()
        sealed.write(b"." + _base64url(encryptor.tag))


def _open_jwe(path: Path, keys: list[_Key]) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        while end and data[end - 1 : end].isspace():
            end -= 1
        first = data.find(b".", 0, _LONGEST_HEADER)
        ciphertext = data.find(b".", first + 2, first + 3 + 2 * _IV_BYTES) + 1
        tag = data.rfind(b".", ciphertext, end) + 1
        if first < 0 or not ciphertext or not tag or data[first + 1 : first + 2] != b".":
            raise _malformed(path, "it has not the five parts of a JWE")
        try:
            iv, expected = _decoded(data[first + 2 : ciphertext - 1]), _decoded(data[tag:end])
            stated = _header(path, _decoded(data[:first]))
        except ValueError as error:
            raise _malformed(path, f"a part is no base64url: {error}") from error
        if len(iv) != _IV_BYTES or len(expected) != _TAG_BYTES:
            raise _malformed(path, f"its IV has {len(iv)} bytes and its tag {len(expected)}, not 12 and 16")
        name = stated.get("kid")
        for key in _fitting(path, keys, name):
            opened = _decrypt(path, data, (first, ciphertext, tag - 1), (key, iv, expected))
            if opened is not None:
                return opened
    raise _no_key(path, f"is opened by none of the keys {', '.join(sorted(key.name for key in keys))}")


def _decrypt(
    path: Path, data: mmap.mmap, at: tuple[int, int, int], given: tuple[bytes, bytes, bytes]
) -> bytes | None:
    """Decrypt piece by piece; None, and nothing of it, where the tag does not fit."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - only for sealed models

    (header_end, begin, end), (key, iv, tag) = at, given
    decryptor = _cipher(key, iv, tag).decryptor()
    decryptor.authenticate_additional_data(data[:header_end])
    opened = io.BytesIO()
    for start in range(begin, end, _CHUNK):
        try:
            opened.write(decryptor.update(_decoded(data[start : min(start + _CHUNK, end)])))
        except ValueError as error:
            raise _malformed(path, f"its ciphertext is no base64url: {error}") from error
    try:
        decryptor.finalize()
    except InvalidTag:
        return None
    return opened.getvalue()


def _header(path: Path, data: bytes) -> dict[str, Any]:
    try:
        stated = json.loads(data)
        found = {name: stated.get(name) for name in ("alg", "enc", "zip", "crit")}
    except (ValueError, AttributeError) as error:
        raise _malformed(path, "its header is no JSON object") from error
    if found != {"alg": "dir", "enc": "A256GCM", "zip": None, "crit": None}:
        shown = ", ".join(f"{name} {value!r}" for name, value in found.items() if value is not None)
        raise _malformed(
            path, f"its header says {shown}; read is alg 'dir' with enc 'A256GCM', without zip or crit"
        )
    return stated


def _fitting(path: Path, keys: list[_Key], name: Any) -> list[bytes]:
    """The keys to try: the one that the header names, or all."""
    found: dict[str, bytes] = {}
    for key in keys:
        if _IDENTITY not in key.content:
            found.update([_symmetric(key)])
    if name is None:
        return list(found.values())
    if not isinstance(name, str) or name not in found:
        raise _no_key(
            path, f"is sealed with the key {name!r}; the keys here are {', '.join(sorted(found)) or 'others'}"
        )
    return [found[name]]


def _symmetric(key: _Key) -> tuple[str, bytes]:
    try:
        if key.content.startswith("{"):
            jwk = json.loads(key.content)
            name, text = str(jwk.get("kid", key.name)), str(jwk["k"])
        else:
            name, text = key.name, key.content
        value = _decoded(text.rstrip("=").replace("+", "-").replace("/", "_").encode())
    except (ValueError, KeyError, AttributeError) as error:
        raise _unusable(key) from error
    if len(value) != KEY_BYTES:
        raise _unusable(key)
    return name, value


def _open_age(path: Path, keys: list[_Key]) -> bytes:
    try:
        # By name: the library's own hints leave out all that it has.
        pyrage: Any = importlib.import_module("pyrage")
    except ImportError as error:
        raise _missing_library(error) from error
    lines = [line.strip() for key in keys for line in key.content.splitlines()]
    try:
        identities = [pyrage.x25519.Identity.from_str(line) for line in lines if line.startswith(_IDENTITY)]
    except pyrage.IdentityError as error:
        raise _no_key(path, "is sealed (age), and an identity in the Secret is malformed") from error
    if not identities:
        raise _no_key(path, f"is sealed (age), and no key in the Secret is an identity, {_IDENTITY}…")
    try:
        return pyrage.decrypt(path.read_bytes(), identities)
    except pyrage.DecryptError as error:
        raise _no_key(path, f"is opened by none of the {len(identities)} identities: {error}") from error


def _keys(folder: Path) -> list[_Key]:
    """Read the Secret's keys; kubelet keeps its own links, which begin with two dots, beside them."""
    if not folder.is_dir():
        return []
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".."))
    try:
        return [_Key(path.name, path.read_text().strip()) for path in files]
    except UnicodeDecodeError as error:
        raise StartFailure(
            Stage.LOAD,
            Reason.CREDENTIALS_MISSING,
            f"a key in {folder} is no text: write it as a JWK, or in base64",
        ) from error


def _cipher(key: bytes, iv: bytes, tag: bytes | None) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415
    except ImportError as error:
        raise _missing_library(error) from error
    return Cipher(algorithms.AES(key), modes.GCM(iv, tag))


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decoded(text: bytes) -> bytes:
    """Decode strictly, and without the padding that RFC 7515 leaves out."""
    if b"+" in text or b"/" in text or b"=" in text:
        raise binascii.Error("it has characters of another base64")
    standard = text.replace(b"-", b"+").replace(b"_", b"/") + b"=" * (-len(text) % 4)
    return binascii.a2b_base64(standard, strict_mode=True)


def _no_key(path: Path, what: str) -> StartFailure:
    return StartFailure(
        Stage.LOAD, Reason.CREDENTIALS_MISSING, f"{path.name} {what} (spec.model.decryptionSecretRef)"
    )


def _unusable(key: _Key) -> StartFailure:
    return StartFailure(
        Stage.LOAD,
        Reason.CREDENTIALS_MISSING,
        f"the key {key.name!r} is neither a JWK, nor 32 bytes in base64, nor an identity of age",
    )


def _malformed(path: Path, why: str) -> StartFailure:
    return StartFailure(Stage.LOAD, Reason.INVALID_MODEL, f"{path.name} is sealed, but cannot be read: {why}")


def _missing_library(error: ImportError) -> StartFailure:
    return StartFailure(
        Stage.LOAD,
        Reason.LOAD_FAILED,
        f"a sealed model needs {error.name}, which is missing: pip install 'pilotage[sealed]'",
    )
