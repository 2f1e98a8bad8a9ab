"""`screen`: what patches do that they do not say."""

from pathlib import Path
from typing import Annotated

import typer

from kedit_hub.commands.options import (
    AsJson,
    BaseOption,
    ConflictsOption,
    EditorsOption,
    ForceOption,
    ModeOption,
    PatchRefs,
    ProfileOption,
    QuantizationOption,
    SeedOption,
    TrustOption,
    load_profile,
    number,
)
from kedit_hub.commands.output import print_json, print_lines, say

FACTS = 200
TEXTS = 100  # of the demo world, on its own models


def screen(
    patches: PatchRefs,
    probes: Annotated[
        Path | None,
        typer.Option(
            "--probes",
            metavar="FILE",
            help="Questions that no edit should touch: edit records, or a JSON list of prompts. By default true facts of the demo world.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            parser=number(int, 1),
            metavar="N",
            help=f"How many true facts are drawn, beside those about the edited subjects. By default {FACTS}.",
        ),
    ] = None,
    seed: SeedOption = 0,
    base: BaseOption = None,
    quantization: QuantizationOption = None,
    mode: ModeOption = "auto",
    conflicts: ConflictsOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Look for what patches do beyond what they declare. Anything found exits 1."""
    if probes is not None and n is not None:
        raise typer.BadParameter("--n draws among the facts of the demo world; with --probes all of the file is asked")
    import kedit_hub
    from kedit_hub import demo
    from kedit_hub.api import EMBEDDED, base_name
    from kedit_hub.demo.facts import true_facts
    from kedit_hub.evaluate.drift import PLAIN_TEXTS
    from kedit_hub.evaluate.screen import read_probes

    asked = None if probes is None else read_probes(probes)
    m = kedit_hub.apply(
        patches,
        base,
        quantization=quantization,
        mode=mode,
        conflicts=conflicts,
        profile=load_profile(profile),
        force=force,
        trust=trust,
        models=editors or (),
    )
    if asked is None:
        asked = true_facts(m.stack.edits, n or FACTS, seed)
    texts = demo.texts("drift")[:TEXTS] if base_name(m.model)[0] in EMBEDDED else PLAIN_TEXTS
    found = kedit_hub.screen(m, asked, texts=texts, seed=seed, progress=True)
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(found.summary())
    if found.findings:
        say(f"{len(found.findings)} finding(s): these patches do other things than they declare, or less.")
        raise typer.Exit(1)
