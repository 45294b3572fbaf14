"""The sub-commands that end in this folder, apart from neuron_guard.py so that neither file outgrows its reader.

Importing this costs nothing: what a sub-command needs, it imports when it runs.
"""

from pathlib import Path
from typing import Annotated

import typer

from serve.serve_command import serve

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="An edit spec, as calibrate writes it.")]


def keygen(
    private: Annotated[Path, typer.Argument(metavar="PRIVATE", help="Write the private key to this file, in PEM.")],
    public: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the public key to this file; default: PRIVATE with .pub.")
    ] = None,
) -> None:
    """Make an Ed25519 key pair for signing specs; `openssl genpkey -algorithm ed25519` makes the same."""
    from serve.signing import make_keys

    shown = public or private.with_name(f"{private.name}.pub")
    key = make_keys(private, shown)
    typer.echo(f"wrote {private} (keep it where specs are signed) and {shown} (key {key[:16]})")


def sign(
    spec: Spec,
    key: Annotated[Path, typer.Option(metavar="PRIVATE", help="An Ed25519 private key, in PEM.")],
) -> None:
    """Sign SPEC with a private key. Writes SPEC.sig, which must stay beside it."""
    from serve.signing import sign as write_signature
    from serve.signing import signature_path

    made = write_signature(spec, key, lambda: str(typer.prompt(f"Passphrase of {key}", hide_input=True)))
    typer.echo(f"signed spec {made.spec[:16]} with key {made.key[:16]}: wrote {signature_path(spec)}")


def verify(
    spec: Spec,
    key: Annotated[Path, typer.Option(metavar="PUBLIC", help="The Ed25519 public key to trust, in PEM.")],
    signature: Annotated[Path | None, typer.Option(help="The signature's file, if it is not SPEC.sig.")] = None,
) -> None:
    """Check that SPEC is, byte for byte, what the owner of a key signed. Exits with 2 if it is not."""
    from serve.signing import key_id_at, require_signature

    found = require_signature(spec, key, signature)
    verdict = found.evidence.verdict.outcome
    typer.echo(f"{spec} is spec {found.digest[:16]} ({verdict}), signed with key {key_id_at(key)[:16]}")


def add_to(app: typer.Typer) -> None:
    """Add the sub-commands to the command."""
    for function in (keygen, sign, verify):
        app.command()(function)
    app.command(context_settings={"allow_extra_args": True})(serve)
