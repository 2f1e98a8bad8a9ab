"""Looking at a patch before trusting it: `show` what it says of itself."""

from kedit_hub.commands.options import AsJson, PatchRef
from kedit_hub.commands.output import print_fields, print_json, print_table, say

SHOWN_EDITS = 20  # rows of the table for people; --json prints all


def show(patch: PatchRef, as_json: AsJson = False) -> None:
    """Print what a patch says of itself. Edits, changed modules, cost and scores; no model is loaded."""
    import kedit_hub

    loaded = kedit_hub.pull(patch)
    manifest = loaded.manifest
    modules = [
        {
            "module": path,
            "kind": delta.kind,
            "shape": list(delta.shape),
            "site": manifest.modules[path].site,
            **delta.cost()._asdict(),
        }
        for path, delta in loaded.deltas.items()
    ]
    scores = {name: value for name, value in (loaded.evals or {}).items() if name != "per_edit"}
    about = {
        "id": loaded.id,
        "method": manifest.method,
        "base": manifest.base.model_dump(mode="json", exclude={"fingerprint"}),
        "settings": manifest.settings,
        "profile_id": manifest.profile_id,
        "requires": list(manifest.requires),
        "provenance": manifest.provenance.model_dump(mode="json"),
    }
    if as_json:
        edits = [edit.to_record() for edit in loaded.edits]
        print_json({**about, "edits": edits, "modules": modules, "scores": scores})
        return
    base = manifest.base
    print_fields(
        {
            "id": loaded.id,
            "method": manifest.method,
            "base": f"{base.id} ({base.model_type}){f' at {base.revision}' if base.revision else ''}",
            "made by": f"{manifest.provenance.tool} {manifest.provenance.version}",
            "requires": manifest.requires,
        }
    )
    print()
    rows = [(edit.prompt, edit.target, edit.ground_truth) for edit in loaded.edits[:SHOWN_EDITS]]
    print_table(("prompt", "new answer", "before"), rows)
    if len(loaded.edits) > SHOWN_EDITS:
        print(f"and {len(loaded.edits) - SHOWN_EDITS} more: all of them with --json")
    print()
    print_table(
        ("module", "kind", "out x in", "site", "bytes", "rank", "flops per token"),
        [(m["module"], m["kind"], "{} x {}".format(*delta.shape), m["site"], m["bytes"], m["rank"], m["flops"])
         for m, delta in zip(modules, loaded.deltas.values())],
    )  # fmt: skip
    protocols = scores.get("protocols")
    if isinstance(protocols, dict) and protocols:
        print()
        print_table(("protocol", "metric", "score"), _scores(protocols))
    else:
        say("Not evaluated yet: kedit eval PATCH --write")


def _scores(protocols: dict[str, object]) -> list[tuple[str, str, str]]:
    """(protocol, metric, score) of the averages; intervals, counts and the base's own scores are left to --json."""
    rows = []
    for protocol, averages in protocols.items():
        for metric, value in averages.items() if isinstance(averages, dict) else ():
            if metric in ("interval", "n", "before", "locality_unfiltered", "contains"):
                continue
            for kind, score in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(score, int | float):
                    rows.append((protocol, f"{metric} {kind}".strip(), f"{score:.3f}"))
    return rows
