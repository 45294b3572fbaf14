"""Signatures of spec files: a server can insist on specs that its operator's own people let out.

A digest says that a file is whole, not who wrote it. A detached Ed25519 signature (RFC 8032), in a small file beside
the spec, says that too. It covers the bytes of the file rather than the spec's own digest: so nothing that is unsigned
reaches a parser, and there is one meaning of "the signed file". The price is that a spec which is saved anew, equal as
it may be, has to be signed anew. Spec and signature are each read once, and the bytes verified are the bytes loaded: to
exchange the file between check and use changes nothing.
"""

import hashlib
import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.errors import NeuronGuardError
from guard.spec import atomic_files as files
from guard.spec import store, strict_json
from guard.spec.edit_spec import EditSpec

SUFFIX = ".sig"
LARGEST = 16 * 2**10  # bytes of a signature or key file
DOMAIN = b"neuron-guard: a signed edit spec file, version 1\0"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SignatureError(NeuronGuardError):
    """A spec that is not signed as asked for, or a key or signature file that cannot be used."""


class Signature(BaseModel):
    """The document beside a spec. `key` is the sha256 of the 32 bytes of the public key, `spec` the spec's digest.

    Signed are DOMAIN, these two and the sha256 of the file's bytes, so that no part of the document can be exchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Literal["ed25519"]
    key: Digest
    spec: Digest
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


def signature_path(spec_path: str | PathLike[str]) -> Path:
    """Where the signature of the spec at `spec_path` is: beside it."""
    return Path(f"{os.fspath(spec_path)}{SUFFIX}")


def make_keys(private_path: str | PathLike[str], public_path: str | PathLike[str]) -> str:
    """Write a new key pair in PEM, the private key readable by its owner alone; returns the public key's id.

    SignatureError if there is a file already, or none can be written.
    """
    for path in (private_path, public_path):
        if os.path.lexists(path):
            raise SignatureError(f"{os.fspath(path)} is there already: name a new file, keys are never overwritten.")
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shown = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(private_path, secret, private=True)
    _write(public_path, shown)
    return key_id(private.public_key())


def sign(
    spec_path: str | PathLike[str], key_path: str | PathLike[str], passphrase: Callable[[], str] | None = None
) -> Signature:
    """Sign the valid spec at `spec_path` with the Ed25519 private key (PEM, PKCS 8) at `key_path`; writes SPEC.sig.

    `passphrase` is asked for one if the key is encrypted. SpecError for a file that is no spec, SignatureError for a
    key that cannot be used. A refuted spec can be signed: that says who let it out, its verdict what it is worth.
    """
    contents = store.read_bytes(spec_path)
    digest = EditSpec.decode(contents, spec_path).digest
    private = _private_key(key_path, passphrase)
    key = key_id(private.public_key())
    made = Signature(
        algorithm="ed25519", key=key, spec=digest, signature=private.sign(_message(contents, key, digest)).hex()
    )
    _write(signature_path(spec_path), (made.model_dump_json(indent=2) + "\n").encode())
    return made


def require_signature(
    spec_path: str | PathLike[str],
    key_path: str | PathLike[str],
    signature_at: str | PathLike[str] | None = None,
) -> EditSpec:
    """The spec at `spec_path`, if its signature (SPEC.sig unless named) is one by the public key (PEM) at `key_path`.

    SignatureError if it is not signed, altered, signed with another key, or signed as another file; SpecError if what
    was signed is no valid spec.
    """
    public = _public_key(key_path)
    signature = _signature(signature_at or signature_path(spec_path), spec_path)
    contents = store.read_bytes(spec_path)
    key = key_id(public)
    if signature.key != key:
        raise SignatureError(
            f"{os.fspath(spec_path)} is signed with key {signature.key[:16]}, not with {key[:16]} of "
            f"{os.fspath(key_path)}: do not use it unless you trust that key too."
        )
    try:
        public.verify(bytes.fromhex(signature.signature), _message(contents, key, signature.spec))
    except InvalidSignature as error:
        raise SignatureError(
            f"{os.fspath(spec_path)} is not the file that was signed: get it anew, or have it signed again."
        ) from error
    spec = EditSpec.decode(contents, spec_path)
    if spec.digest != signature.spec:
        raise SignatureError(
            f"{os.fspath(spec_path)} was signed as spec {signature.spec[:16]}, but is read as {spec.digest[:16]}: "
            "sign it again with this version of neuron-guard."
        )
    return spec


def key_id(public: Ed25519PublicKey) -> str:
    """Sha256 of the public key's 32 bytes, in hex."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def key_id_at(key_path: str | PathLike[str]) -> str:
    """The id of the public key in the file at `key_path`."""
    return key_id(_public_key(key_path))


def _message(contents: bytes, key: str, digest: str) -> bytes:
    """What is signed: parts of fixed length, so that no two files, keys and digests share a message."""
    return DOMAIN + bytes.fromhex(key) + bytes.fromhex(digest) + hashlib.sha256(contents).digest()


def _signature(path: str | PathLike[str], spec_path: str | PathLike[str]) -> Signature:
    if not os.path.lexists(path):
        raise SignatureError(f"{os.fspath(spec_path)} is not signed: there is no {os.fspath(path)}.")
    text = _read(path, "a signature")
    try:
        strict_json.loads(text.decode())  # no key twice, no deep nesting
        return Signature.model_validate_json(text, strict=True)
    except (ValidationError, ValueError) as error:
        raise SignatureError(f"{os.fspath(path)} is not a signature of an edit spec: have it signed again.") from error


def _private_key(path: str | PathLike[str], passphrase: Callable[[], str] | None) -> Ed25519PrivateKey:
    text, password = _read(path, "a key"), None
    if passphrase is not None and b"ENCRYPTED" in text:
        password = passphrase().encode()
    try:
        key = serialization.load_pem_private_key(text, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{os.fspath(path)} cannot be used as a private key in PEM: {_reason(error)}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{os.fspath(path)} is no Ed25519 key: make one with `neuron-guard keygen`.")
    return key


def _public_key(path: str | PathLike[str]) -> Ed25519PublicKey:
    text = _read(path, "a key")
    if b"PRIVATE" in text:
        raise SignatureError(f"{os.fspath(path)} is a private key: keep it where specs are signed, use the public one.")
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{os.fspath(path)} cannot be used as a public key in PEM: {_reason(error)}.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{os.fspath(path)} is no Ed25519 key: make one with `neuron-guard keygen`.")
    return key


def _reason(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")


def _read(path: str | PathLike[str], kind: str) -> bytes:
    try:
        return files.read(path, LARGEST, kind)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SignatureError(f"{os.fspath(path)} could not be read: {reason}.") from error


def _write(path: str | PathLike[str], contents: bytes, *, private: bool = False) -> None:
    try:
        files.write(path, contents, private=private)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SignatureError(f"{os.fspath(path)} could not be written: {reason}.") from error
