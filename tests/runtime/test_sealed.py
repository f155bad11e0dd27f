"""Sealed models: the two envelopes, their keys, and every way in which one does not open."""

import base64
import json
import os
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilotage_runtime import sealed
from pilotage_runtime.failure import StartFailure

KEY = bytes(range(32))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "first").write_text(base64.b64encode(KEY).decode() + "\n")
    return tmp_path / "keys"


def sealed_file(tmp_path: Path, data: bytes, key: bytes = KEY, name: str | None = None) -> Path:
    (tmp_path / "plain").write_bytes(data)
    sealed.seal(tmp_path / "plain", tmp_path / "model.onnx", key, name)
    return tmp_path / "model.onnx"


def refused(path: Path, keys: Path) -> StartFailure:
    with pytest.raises(StartFailure) as failure:
        sealed.open_sealed(path, keys)
    assert failure.value.stage == "Load"
    return failure.value


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def decoded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 786_432, 786_433, 5_000_001])
def test_what_was_sealed_opens_to_the_same_bytes(tmp_path: Path, keys: Path, size: int) -> None:
    data = os.urandom(size)
    path = sealed_file(tmp_path, data)
    assert sealed.is_sealed(path.read_bytes()[: sealed.HEAD_BYTES]) == "JWE"
    assert sealed.open_if_sealed(path, keys) == data


def test_a_sealed_file_is_what_rfc_7516_says(tmp_path: Path) -> None:
    """Opened here as the RFC tells, without the code that is tested."""
    parts = sealed_file(tmp_path, b"a model", name="first").read_bytes().split(b".")
    header, encrypted_key, iv, ciphertext, tag = parts
    assert json.loads(decoded(header)) == {"alg": "dir", "enc": "A256GCM", "kid": "first"}
    assert encrypted_key == b""
    assert AESGCM(KEY).decrypt(decoded(iv), decoded(ciphertext) + decoded(tag), header) == b"a model"


def test_what_another_tool_sealed_is_opened(tmp_path: Path, keys: Path) -> None:
    header = encoded(b'{ "enc" : "A256GCM" , "alg" : "dir" , "typ" : "JOSE" }')
    iv = os.urandom(12)
    sealed_text = AESGCM(KEY).encrypt(iv, b"a model", header)
    parts = [header, b"", encoded(iv), encoded(sealed_text[:-16]), encoded(sealed_text[-16:])]
    (tmp_path / "model.onnx").write_bytes(b".".join(parts) + b"\n")
    assert sealed.open_if_sealed(tmp_path / "model.onnx", keys) == b"a model"


@pytest.mark.parametrize("armored", [False, True])
def test_age_is_opened_with_an_identity_file(tmp_path: Path, keys: Path, armored: bool) -> None:
    identity = pyrage.x25519.Identity.generate()
    (keys / "age.txt").write_text(f"# created: today\n# public key: {identity.to_public()}\n{identity}\n")
    (tmp_path / "model.onnx").write_bytes(pyrage.encrypt(b"a model", [identity.to_public()], armored=armored))
    assert sealed.is_sealed((tmp_path / "model.onnx").read_bytes()) == "age"
    assert sealed.open_if_sealed(tmp_path / "model.onnx", keys) == b"a model"


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(KEY).decode().rstrip("="),
        json.dumps({"kty": "oct", "k": encoded(KEY).decode()}),
    ],
)
def test_a_key_may_be_written_in_each_usual_way(tmp_path: Path, keys: Path, text: str) -> None:
    (keys / "first").write_text(text)
    assert sealed.open_sealed(sealed_file(tmp_path, b"a model"), keys) == b"a model"


def test_the_header_chooses_among_keys_by_file_or_by_the_jwks_own_name(tmp_path: Path, keys: Path) -> None:
    other = os.urandom(32)
    (keys / "..data").mkdir()
    (keys / "second").write_text(json.dumps({"kty": "oct", "kid": "2026", "k": encoded(other).decode()}))
    assert sealed.open_sealed(sealed_file(tmp_path, b"a model", other, "2026"), keys) == b"a model"
    assert sealed.open_sealed(sealed_file(tmp_path, b"a model", KEY, "first"), keys) == b"a model"
    # Without a name each is tried.
    assert sealed.open_sealed(sealed_file(tmp_path, b"a model", other), keys) == b"a model"
    failure = refused(sealed_file(tmp_path, b"a model", KEY, "third"), keys)
    assert (failure.reason, failure.exit_code) == ("CredentialsMissing", 75)
    assert "sealed with the key 'third'; the keys here are 2026, first" in failure.message


def test_no_key_and_a_wrong_key_are_the_secrets_fault(tmp_path: Path, keys: Path) -> None:
    path = sealed_file(tmp_path, b"a model", os.urandom(32))
    wrong = refused(path, keys)
    assert (wrong.reason, wrong.exit_code) == ("CredentialsMissing", 75)
    assert "none of the keys first" in wrong.message
    assert refused(path, tmp_path / "none").reason == "CredentialsMissing"
    (tmp_path / "model.onnx").write_bytes(
        pyrage.encrypt(b"m", [pyrage.x25519.Identity.generate().to_public()])
    )
    assert "no key in the Secret is an identity" in refused(tmp_path / "model.onnx", keys).message
    (keys / "age").write_text(str(pyrage.x25519.Identity.generate()))
    assert "none of the 1 identities" in refused(tmp_path / "model.onnx", keys).message


@pytest.mark.parametrize("text", ["short", "é", '{"kty":"RSA"}', "{", base64.b64encode(bytes(16)).decode()])
def test_an_unusable_key_is_named_but_never_shown(tmp_path: Path, keys: Path, text: str) -> None:
    (keys / "first").write_text(text)
    failure = refused(sealed_file(tmp_path, b"a model"), keys)
    assert failure.reason == "CredentialsMissing"
    assert "'first' is neither a JWK" in failure.message
    assert text not in failure.message or text == "{"


@pytest.mark.parametrize("part", [0, 2, 3, 4])
def test_a_change_in_any_part_is_noticed(tmp_path: Path, keys: Path, part: int) -> None:
    path = sealed_file(tmp_path, os.urandom(3000), name="first")
    parts = path.read_bytes().split(b".")
    # A header that says the same in other words is another header.
    changed = bytearray(decoded(parts[part]))
    changed[-1] ^= 1
    parts[part] = encoded(bytes(changed)) if part else encoded(decoded(parts[0]) + b" ")
    path.write_bytes(b".".join(parts))
    assert "none of the keys" in refused(path, keys).message


@pytest.mark.parametrize(
    "content",
    [
        b"eyJ..", b"eyJ..a", b"eyJ..a.b.c", encoded(b'{"alg":"dir","enc":"A128GCM"}') + b".." + b"A" * 16 + b".AA." + b"A" * 22,
        encoded(b'{"alg":"dir","enc":"A256GCM","zip":"DEF"}') + b".." + b"A" * 16 + b".AA." + b"A" * 22,
        encoded(b'{"alg":"dir","enc":"A256GCM","crit":["x"]}') + b".." + b"A" * 16 + b".AA." + b"A" * 22,
        encoded(b'{"alg":"dir","enc":"A256GCM"}') + b".." + b"A" * 16 + b".A=." + b"A" * 22,
        # The other base64: it would decode, to what is then taken for another key's.
        encoded(b'{"alg":"dir","enc":"A256GCM"}') + b".." + b"A" * 16 + b".A+A/." + b"A" * 22,
        encoded(b'{"alg":"dir","enc":"A256GCM"}') + b".." + b"A" * 16 + b".AA." + b"A" * 4,
        encoded(b'{"alg":"dir","enc":"A256GCM"}') + b"..." + b"A" * 16 + b".AA." + b"A" * 22,
        encoded(b'{"a":[]}') + b".." + b"A" * 16 + b".AA." + b"A" * 22, encoded(b'{"a"') + b".." + b"A" * 16 + b".AA." + b"A" * 22,
    ],
)  # fmt: skip
def test_a_broken_envelope_is_the_models_fault(tmp_path: Path, keys: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    failure = refused(tmp_path / "model.onnx", keys)
    assert (failure.reason, failure.exit_code) == ("InvalidModel", 1)


def test_a_cut_off_file_opens_to_nothing(tmp_path: Path, keys: Path) -> None:
    path = sealed_file(tmp_path, os.urandom(3000))
    whole = path.read_bytes()
    for length in range(sealed.HEAD_BYTES, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(path, keys)


def test_what_is_not_sealed_is_left_alone(tmp_path: Path, keys: Path, models: Path) -> None:
    for path in (models / "fraud" / "1" / "model.onnx", models / "broken" / "pickle.onnx"):
        assert sealed.open_if_sealed(path, keys) is None
    (tmp_path / "token").write_bytes(b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln")
    assert sealed.open_if_sealed(tmp_path / "token", keys) is None
