"""Signing: `sign`, and keys to sign with: `key new`, `key show`."""

from pathlib import Path
from typing import Annotated

import typer

from kedit_hub.commands.options import AsJson
from kedit_hub.commands.output import print_fields, print_json, say


def sign(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a patch.")],
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Your private key; make one with `kedit key new`.")
    ],
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="REPO", help="user/repo, the only one it may then be pulled from.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Its version, like 1.2.0; no other tag may then name it.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="FILE",
            help="Write an OpenSSF model-signing bundle too; it must lie outside the folder.",
        ),
    ] = None,
    bundle_key: Annotated[
        Path | None,
        typer.Option(
            "--bundle-key",
            metavar="FILE",
            help="An elliptic-curve key for the bundle. By default you log in at Sigstore, over the network.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a patch: every byte of its folder. A second key signs beside the first."""
    from kedit_hub.patch.keys import load_key
    from kedit_hub.patch.patch import Patch
    from kedit_hub.patch.signature import sign as sign_patch

    before = Patch.load(folder)
    signed = sign_patch(before, load_key(key), repo_id=repo, version=version)
    signed.save(folder)
    assert signed.signature is not None
    stated = signed.signature.statement
    written = None
    if bundle is not None or bundle_key is not None:
        from kedit_hub.patch.bundle import sign_bundle

        written = str(sign_bundle(folder, bundle, key=bundle_key, sigstore=bundle_key is None))
    told = {
        "id": signed.id,
        "signers": list(signed.signers),
        "repo_id": stated.repo_id,
        "version": stated.version,
        "bundle": written,
    }
    if as_json:
        print_json({**told, "files": dict(stated.files)})
    else:
        print_fields({**told, **{str(name): digest for name, digest in stated.files.items()}})
    gone = sorted(set(before.signers) - set(signed.signers))
    if gone:
        say(f"No longer signed by {', '.join(gone)}: they signed it for another repo or version.")


def new_key(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it; never over another file.")],
    as_json: AsJson = False,
) -> None:
    """Make a key to sign with. Prints its public half, which others know you by."""
    from kedit_hub.patch.keys import new_key as make_key
    from kedit_hub.patch.keys import public_key

    _print_key(public_key(make_key(out)), out, as_json)
    say(f"Only you can read {out}. Whoever has it can sign as you: keep it to yourself, and keep a copy.")


def show_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of a private key.")], as_json: AsJson = False
) -> None:
    """Print the public half of a key."""
    from kedit_hub.patch.keys import load_key, public_key

    _print_key(public_key(load_key(file)), file, as_json)


def _print_key(public: str, file: Path, as_json: bool) -> None:
    told = {"public_key": public, "file": str(file)}
    if as_json:
        print_json(told)
    else:
        print_fields(told)
