"""Looking at patches before trusting them: `show` what one says of itself, `diff` what two say differently.

Nothing is run and no model is loaded; every text of a patch goes through output.py.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, assert_never

import typer

from kedit_hub.commands.options import AsJson, PatchRef
from kedit_hub.commands.output import print_fields, print_json, print_table, say

if TYPE_CHECKING:
    from kedit_hub.edits import Edit
    from kedit_hub.patch.diff import Change, Changes, Diff, Step
    from kedit_hub.patch.patch import Patch

SHOWN_ROWS, SHOWN_SCORES = 20, 100  # of a table for people; --json prints all
ASIDE = {"interval", "n", "before", "locality_unfiltered", "contains"}  # beside the averages; left to --json

Row = tuple[object, ...]


def show(patch: PatchRef, as_json: AsJson = False) -> None:
    """Print what a patch says of itself. Edits, changed modules, cost and scores; no model is loaded."""
    import kedit_hub

    loaded = kedit_hub.pull(patch)
    manifest = loaded.manifest
    costs = {path: delta.cost() for path, delta in loaded.deltas.items()}
    total = sum(cost.bytes for cost in costs.values())
    files = _files(patch)
    if as_json:
        print_json(
            {
                "id": loaded.id,
                "format_version": manifest.format_version,
                "method": manifest.method,
                "settings": manifest.settings,
                "base": manifest.base.model_dump(mode="json"),
                "profile_id": manifest.profile_id,
                "requires": list(manifest.requires),
                "provenance": manifest.provenance.model_dump(mode="json"),
                "edits": [edit.to_record() for edit in loaded.edits],
                "modules": [
                    {"module": path, **manifest.modules[path].model_dump(mode="json"), **cost._asdict()}
                    for path, cost in costs.items()
                ],
                "bytes": {"total": total, "per_edit": total / len(loaded.edits)},
                "files": files,
                "signature": _signature(loaded),
                "scores": loaded.evals or {},
            }
        )
        return
    print_fields(_about(loaded, total))
    print()
    _print_some(("prompt", "new answer", "before"), [(e.prompt, e.target, e.ground_truth) for e in loaded.edits])
    print()
    print_table(
        ("module", "kind", "out x in", "details", "bytes", "rank", "flops per token"),
        [
            (path, entry.kind, _sides(entry.shape), _named(entry.meta()), *costs[path])
            for path, entry in manifest.modules.items()
        ],
    )
    if files is not None:
        print()
        rows = [
            (one["name"], one["bytes"], one["kind"] if one["of_patch"] else f"{one['kind']}, no part of a patch")
            for one in files
        ]
        _print_some(("file", "bytes", "is"), rows)
    averages = list(_averages(loaded.evals))
    if averages:
        print()
        _print_some(("protocol", "metric", "score"), averages, at_most=SHOWN_SCORES)
    else:
        say("Not evaluated yet: kedit eval PATCH --write")
    if _refuted(loaded.evals):
        say("Note: these scores were measured again and did NOT come out the same; see `rescored` in --json.")


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A patch: a folder, user/repo, or user/repo@revision.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The patch that came after it, named likewise.")],
    as_json: AsJson = False,
) -> None:
    """Print what differs between two patches. Ends with the step a version should take; no model is loaded."""
    import kedit_hub
    from kedit_hub.patch.diff import suggest

    before, after = kedit_hub.pull(old), kedit_hub.pull(new)
    found = kedit_hub.diff(before, after)
    suggestion = suggest(found)
    following = _next_version(old, before, suggestion.step)
    if as_json:
        print_json({**found.to_dict(), "suggestion": {**vars(suggestion), "next_version": following}})
        return
    print_fields({"- old": f"{found.old[:12]}  {old}", "+ new": f"{found.new[:12]}  {new}"})
    print()
    rows = [row for section in _sections(found) for row in _bounded(section)]
    if rows:
        print_table(("", "what", "old", "new"), rows)
        print()
    else:
        say("No difference.")
    step = suggestion.step if following is None else f"{suggestion.step} -> {following}"
    print_fields({"version step": f"{step}, because {suggestion.reason}"})


# --- show ---------------------------------------------------------------------------------------------------------


def _about(patch: "Patch", total: int) -> dict[str, object]:
    """The fields of a patch for people."""
    from kedit_hub.patch.diff import dotted

    manifest, base = patch.manifest, patch.manifest.base
    said = None if patch.signature is None else patch.signature.statement
    origin = {f"made: {name}": _told(value) for name, value in dotted(manifest.provenance.model_dump(mode="json"))}
    return {
        "id": patch.id,
        "format": manifest.format_version,
        "method": manifest.method,
        "base": f"{base.id} ({base.model_type}){f' at {base.revision}' if base.revision else ''}",
        "profile": manifest.profile_id,
        "requires": manifest.requires,
        **origin,
        "bytes": f"{total:,} in all, {total / len(patch.edits):,.0f} per edit",
        "signed by": patch.signers or "nobody",
        "signed as": None if said is None else " ".join(filter(None, (said.repo_id, said.version))),
    }


def _signature(patch: "Patch") -> dict[str, Any] | None:
    """Who signed, and for which repo and version; None for a patch that nobody signed."""
    if patch.signature is None:
        return None
    said = patch.signature.statement
    return {"signers": list(patch.signers), "repo_id": said.repo_id, "version": said.version}


def _files(ref: str) -> list[dict[str, Any]] | None:
    """What lies in the folder of a patch, by name, and whether it is a part of it; None for a patch of a hub."""
    from kedit_hub.hub.ref import FolderRef, parse_ref
    from kedit_hub.patch.patch import FILES

    folder = parse_ref(ref)
    if not isinstance(folder, FolderRef):
        return None
    found = []
    for entry in sorted(os.scandir(folder.path), key=lambda entry: entry.name):
        plain = entry.is_file(follow_symlinks=False)
        kind = "file" if plain else "link" if entry.is_symlink() else "folder" if entry.is_dir() else "special file"
        size = entry.stat(follow_symlinks=False).st_size if plain else None
        found.append({"name": entry.name, "kind": kind, "bytes": size, "of_patch": plain and entry.name in FILES})
    return found


def _averages(evals: Mapping[str, Any] | None) -> Iterator[Row]:
    """(protocol, metric, score) of the averages; intervals, counts and the base's own scores are left out."""
    from kedit_hub.patch.diff import scores

    for (part, *names), value in scores(evals).items():
        if part == "protocols" and names and not ASIDE & set(names[1:2]):
            yield names[0], " ".join(names[1:]), f"{value:.3f}"


def _refuted(evals: Mapping[str, Any] | None) -> bool:
    """True when somebody measured the scores again and got others."""
    again = (evals or {}).get("rescored")
    return isinstance(again, Mapping) and again.get("reproduced") is False


# --- diff ---------------------------------------------------------------------------------------------------------

_EVIDENCE = {
    "added": "fingerprinted now",
    "removed": "no longer fingerprinted",
    "same": "the same, other evidence",
    "other": "other weights",
    "unknown": "cannot be compared",
}


def _next_version(ref: str, patch: "Patch", step: "Step") -> str | None:
    """The version to give the new patch, when the old one was named by its version or says one in its signature."""
    from kedit_hub.errors import KeditError
    from kedit_hub.hub.ref import HubRef, parse_ref
    from kedit_hub.patch.diff import next_version

    name = parse_ref(ref)
    named = name.revision if isinstance(name, HubRef) else None
    signed = None if patch.signature is None else patch.signature.statement.version
    for version in (named, signed):
        with suppress(KeditError):  # a branch or a commit
            if version is not None:
                return next_version(version, step)
    return None


def _sections(found: "Diff") -> Iterator[list[Row]]:
    """Rows (mark, what, old, new), one list for each part of a diff."""
    yield [row for change in found.edits for row in _edit_rows(change)]
    yield [("~", "order of the edits", None, "another")] if found.reordered else []
    yield _rows("base ", found.base)
    yield [
        ("~", f"base {path}", None, _EVIDENCE[evidence])
        for path, evidence in found.fingerprints.items()
        if path not in found.modules or evidence not in ("added", "removed")
    ]
    yield _rows("", found.making)
    yield _rows("settings ", found.settings)
    yield _rows("module ", found.modules)
    yield _tensor_rows(found)
    yield _rows("provenance ", found.provenance)
    yield [
        _row("score " + " ".join(names).removeprefix("protocols "), change)
        for names, change in found.scores.items()
        if not ASIDE & set(names[2:3])
    ]
    rest = [part for part in found.evals if part not in ("protocols", "drift")]
    yield [("~", "scores", None, f"also in {', '.join(rest)}")] if rest else []
    yield [_row("signer", change) for change in found.signers]
    yield _rows("signed ", found.signed)


def _edit_rows(change: "Change[Edit]") -> Iterator[Row]:
    from kedit_hub.patch.diff import Added, Changed, Removed, changed_fields

    match change:
        case Added(edit):
            yield "+", f"edit: {edit.prompt}", None, edit.target
        case Removed(edit):
            yield "-", f"edit: {edit.prompt}", edit.target, None
        case Changed(old, new):
            for name in changed_fields(change):
                before, after = getattr(old, name), getattr(new, name)
                if isinstance(before, tuple):
                    gone, come = len(set(before) - set(after)), len(set(after) - set(before))
                    before, after = f"{len(before)}, {gone} of them gone", f"{len(after)}, {come} of them new"
                yield "~", f"edit: {old.prompt}" if name == "target" else f"{name} of: {old.prompt}", before, after
        case _:
            assert_never(change)


def _tensor_rows(found: "Diff") -> list[Row]:
    """How far the values went stands behind what a tensor is."""
    rows: list[Row] = []
    for name, (mark, what, old, new) in zip(found.tensors, _rows("tensor ", found.tensors)):
        ratio = found.relative.get(name)
        moved = ", other values" if old == new else ""
        rows.append((mark, what, old, f"{new}{moved if ratio is None else f', |new - old| = {ratio:.3g} |old|'}"))
    return rows


def _rows(kind: str, changes: "Changes") -> list[Row]:
    return [_row(f"{kind}{name}", change) for name, change in changes.items()]


def _row(what: str, change: "Change[Any]") -> Row:
    from kedit_hub.patch.diff import Added, Changed, Removed

    match change:
        case Added(new):
            return "+", what, None, _told(new)
        case Removed(old):
            return "-", what, _told(old), None
        case Changed(old, new):
            before, after = _told(old), _told(new)
            rounded = before == after and not isinstance(old, Mapping)
            return "~", what, *((str(old), str(new)) if rounded else (before, after))
        case _:
            assert_never(change)


# --- both ---------------------------------------------------------------------------------------------------------


def _told(value: Any) -> str:
    """A JSON value in one line: {"kind": "lowrank", "shape": [8, 12], "layer": 0} -> "lowrank, 8 x 12, layer 0"."""
    if isinstance(value, Mapping):
        head = [str(value[name]) for name in ("kind", "dtype") if name in value]
        size = [_sides(value["shape"])] if "shape" in value else []
        rest = {name: item for name, item in value.items() if name not in ("kind", "dtype", "shape", "sha256")}
        return ", ".join([*head, *size, _named(rest)]).removesuffix(", ")
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_told(value)}" for name, value in values.items() if value is not None)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _print_some(columns: Sequence[str], rows: Sequence[Row], at_most: int = SHOWN_ROWS) -> None:
    """The first rows as a table; what is left out is counted."""
    print_table(columns, rows[:at_most])
    if len(rows) > at_most:
        print(f"and {len(rows) - at_most} more: all of them with --json")


def _bounded(rows: Sequence[Row]) -> list[Row]:
    """The first rows of a part of a table."""
    more = len(rows) - SHOWN_ROWS
    return [*rows[:SHOWN_ROWS], *([("…", f"and {more} more: all of them with --json")] if more > 0 else [])]
