"""The arguments that several commands share, each described once; and how a command finds its token."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

ATLAS = "kedit-hub/atlas-llama"


def number(kind: type[int] | type[float], low: float, high: float = math.inf) -> Any:
    """What typer reads a number between `low` and `high` with; its refusal quotes the input."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(low) - 1
        if not low <= value <= high:
            whole = "whole number" if kind is int else "number"
            above = "" if high == math.inf else f" and at most {high}"
            raise typer.BadParameter(f"'{text}' is not a {whole} of at least {low}{above}")
        return value

    return read


_PATCH = "A patch: a folder, user/repo, or user/repo@revision."

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PatchRef = Annotated[str, typer.Argument(metavar="PATCH", help=_PATCH)]
PatchRefs = Annotated[list[str], typer.Argument(metavar="PATCH", help=f"{_PATCH} Several make a stack.")]
ConflictsOption = Annotated[
    Literal["error", "latest"] | None,
    typer.Option(
        "--conflicts",
        help="Two answers to one question: refuse, or let the latest speak. By default as the stack says, else refuse.",
    ),
]
ModeOption = Annotated[
    Literal["auto", "gated", "joint", "sum"],
    typer.Option(
        "--mode", help="How patches are installed: behind a gate, by one joint solve, added up, or what suits them."
    ),
]
StrengthOption = Annotated[
    list[float] | None,
    typer.Option(
        "--strength",
        parser=number(float, 0, 1),
        metavar="X",
        help="The share of its change that each patch makes, above 0 and up to 1; as often as there are patches, in their order.",
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="The base model: a Hub id or a folder. By default the one the patches name."
    ),
]
QuantizationOption = Annotated[
    Literal["int8", "nf4", "fp4"] | None,
    typer.Option("--quantization", help="Load the base in 8 or 4 bits; needs bitsandbytes."),
]
FormatOption = Annotated[
    Literal["peft", "serving", "merged"],
    typer.Option(
        "--format", help="A LoRA for PEFT, a LoRA for inference servers, or a whole model with the change merged in."
    ),
]
RoundedOption = Annotated[
    Literal["int8", "nf4", "fp4"] | None,
    typer.Option("--quantization", help="Round a merged model to 8 or 4 bits, once; needs bitsandbytes."),
]
MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure", help="Ask some of the edits with and without the gate, and say what is lost."
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Patch a base of the same kind and shapes even if its weights are not the ones named. Edits may miss.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FOLDER",
        help="A base profile made by `kedit profile`. By default the shipped or cached one, else it is measured.",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", parser=number(int, 0, 2**63 - 1), metavar="N", help="Seed of everything that is drawn at random."
    ),
]
EditorsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--editor",
        metavar="EDITOR",
        help="A trained editor that a patch of serac needs, a folder, user/repo, or user/repo@revision; repeatable. "
        "The one that comes with Atlas is known.",
    ),
]
LockOption = Annotated[
    Path, typer.Option("--lock", metavar="FILE", help="The lock, a file called kedit.lock. By default the one here.")
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="A policy that says whose patches to let in; see `kedit trust`. By default the file KEDIT_TRUST names, if any.",
    ),
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="Address of a hub. By default HF_ENDPOINT, or the Hub.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="A file that holds the token. By default HF_TOKEN, or the login of `hf auth login`.",
    ),
]


def with_strengths(patches: Sequence[str], strengths: Sequence[float] | None, trust: Path | None) -> dict[str, Any]:
    """The arguments of `kedit_hub.apply` that say both."""
    if not strengths:
        return {"patches": list(patches)}
    if len(strengths) != len(patches):
        raise typer.BadParameter(
            f"--strength is given {len(strengths)} times for {len(patches)} patches: once for each"
        )
    from kedit_hub.api import admit

    held = [admit(ref, trust) for ref in patches]
    told = {one.patch.id: strength for one, strength in zip(held, strengths) if strength != 1}
    return {"patches": held, "strengths": told}


def load_profile(folder: Path | None) -> Any:
    """BaseProfile or None."""
    from kedit_hub import BaseProfile

    return None if folder is None else BaseProfile.load(folder)


def token_for(endpoint: str | None, file: Path | None) -> str | bool | None:
    """The token of a call: of the file, else of HF_TOKEN, else the stored login, which goes to its own hub only."""
    from kedit_hub.errors import HubError

    if file is not None:
        token = file.read_text(encoding="utf-8", errors="replace").strip()
        if not token or len(token) > 1000 or not token.isascii() or any(char.isspace() for char in token):
            raise HubError(f"'{file}' does not hold one token and nothing else.")
        return token
    if os.environ.get("HF_TOKEN"):
        return None  # huggingface_hub reads it
    from huggingface_hub import constants

    return None if endpoint is None or endpoint.rstrip("/") == constants.ENDPOINT.rstrip("/") else False
