"""A server that asks for a signature loads the very bytes that the key's owner signed, or nothing."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from guard.errors import SpecError
from guard.spec import atomic_files as files
from guard.spec.edit_spec import EditSpec
from neuron_guard import app
from serve import signing
from serve.signing import SignatureError, require_signature, sign
from tests.guard.specs import REFUTED, evidence_with, small_spec
from tests.serve.signature_attacks import ATTACKS, fill

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


def test_a_signed_spec_is_loaded_as_it_was_signed(folder: Path) -> None:
    assert require_signature(folder / "spec", folder / "key.pub") == small_spec()


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_not_signed_is_refused_in_a_sentence_that_says_why(attack: str, folder: Path) -> None:
    change, reason = ATTACKS[attack]
    change(folder)
    with pytest.raises(SignatureError) as caught:
        require_signature(folder / "spec", folder / "key.pub")
    message = str(caught.value)
    assert message.removeprefix(f"{folder}/").startswith(reason)
    assert message.endswith(".")
    assert message.isprintable()


def test_a_signature_in_another_place_is_found_where_it_is_named(folder: Path) -> None:
    shutil.move(folder / "spec.sig", folder / "elsewhere")
    with pytest.raises(SignatureError, match="is not signed"):
        require_signature(folder / "spec", folder / "key.pub")
    assert require_signature(folder / "spec", folder / "key.pub", folder / "elsewhere") == small_spec()


def test_a_signature_made_by_hand_as_documented_is_accepted(folder: Path) -> None:
    private = Ed25519PrivateKey.generate()
    public, contents = private.public_key(), (folder / "spec").read_bytes()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    key, spec = hashlib.sha256(raw).digest(), bytes.fromhex(small_spec().digest)
    message = b"neuron-guard: a signed edit spec file, version 1\0" + key + spec + hashlib.sha256(contents).digest()
    document = {
        "algorithm": "ed25519",
        "key": key.hex(),
        "spec": spec.hex(),
        "signature": private.sign(message).hex(),
    }
    (folder / "spec.sig").write_text(json.dumps(document))
    (folder / "key.pub").write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert require_signature(folder / "spec", folder / "key.pub") == small_spec()


@pytest.mark.parametrize("at", ["spec", "spec.sig"])
def test_a_file_exchanged_after_it_was_read_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    read = files.read

    def exchanging(path: os.PathLike[str], largest: int, kind: str) -> bytes:
        contents = read(path, largest, kind)
        if Path(path).name == at:
            shutil.copy(folder / at.replace("spec", "other"), folder / at)
        return contents

    monkeypatch.setattr(files, "read", exchanging)
    assert require_signature(folder / "spec", folder / "key.pub") == small_spec()
    assert (folder / at).read_bytes() == (folder / at.replace("spec", "other")).read_bytes()


def test_spec_and_signature_are_each_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    system_open = os.open

    def noted(path: str, *arguments: int, **named: int) -> int:
        opened.append(Path(path).name)
        return system_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", noted)
    require_signature(folder / "spec", folder / "key.pub")
    assert sorted(opened) == ["key.pub", "spec", "spec.sig"]


def test_nothing_of_an_unsigned_file_reaches_the_parser(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "spec").write_bytes((folder / "other").read_bytes())
    monkeypatch.setattr(EditSpec, "decode", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(SignatureError):
        require_signature(folder / "spec", folder / "key.pub")


def test_what_is_no_spec_is_not_signed(folder: Path) -> None:
    (folder / "spec").write_bytes(b"none")
    with pytest.raises(SpecError):
        sign(folder / "spec", folder / "key")


def test_a_refuted_spec_can_be_signed_and_stays_refuted(folder: Path) -> None:
    small_spec(evidence=evidence_with(verdict=REFUTED)).save(folder / "spec")
    sign(folder / "spec", folder / "key")
    assert require_signature(folder / "spec", folder / "key.pub").evidence.verdict == REFUTED


def test_a_private_key_is_its_owners_alone_and_is_never_overwritten(folder: Path) -> None:
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    before = (folder / "key").read_bytes()
    with pytest.raises(SignatureError, match="is there already"):
        signing.make_keys(folder / "key", folder / "new.pub")
    with pytest.raises(SignatureError, match="is there already"):
        signing.make_keys(folder / "new", folder / "key.pub")
    assert (folder / "key").read_bytes() == before
    assert not (folder / "new").exists()


def test_an_encrypted_key_signs_with_its_passphrase_alone(folder: Path) -> None:
    private = Ed25519PrivateKey.generate()
    (folder / "locked").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open"),
        )
    )
    for passphrase in (None, lambda: "shut"):
        with pytest.raises(SignatureError, match="locked cannot be used as a private key in PEM"):
            sign(folder / "spec", folder / "locked", passphrase)
    assert sign(folder / "spec", folder / "locked", lambda: "open").key == signing.key_id(private.public_key())


@pytest.mark.parametrize(("name", "reason"), [("spec", "in PEM"), ("none", "could not be read: No such file")])
def test_a_file_that_is_no_key_is_told(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        sign(folder / "other", folder / name)
    with pytest.raises(SignatureError, match=reason):
        require_signature(folder / "other", folder / name)


def test_the_commands_make_keys_sign_and_verify_in_one_line_each(folder: Path) -> None:
    spec, private = str(folder / "spec"), str(folder / "mine")
    for arguments, said in (
        (["keygen", private], f"wrote {private} (keep it where specs are signed) and {private}.pub (key "),
        (["sign", spec, "--key", private], f"signed spec {small_spec().digest[:16]} with key "),
        (["verify", spec, "--key", f"{private}.pub"], f"{spec} is spec {small_spec().digest[:16]} (effective), signed"),
    ):
        outcome = runner.invoke(app, arguments)
        assert outcome.exit_code == 0, outcome.output
        assert outcome.output.startswith(said)
        assert outcome.output.count("\n") == 1


def test_verifying_exits_with_2_in_one_line_where_it_fails(folder: Path) -> None:
    outcome = runner.invoke(app, ["verify", str(folder / "spec"), "--key", str(folder / "strange.pub")])
    assert outcome.exit_code == 2
    assert outcome.output.startswith("error: ")
    assert outcome.output.count("\n") == 1
