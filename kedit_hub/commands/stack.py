"""`kedit stack`: patches in a kedit.lock, as files in git's index. Law: what the lock says holds, unless an option says otherwise."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, assert_never

import typer

from kedit_hub.commands.options import (
    AsJson,
    BaseOption,
    EditorsOption,
    EndpointOption,
    ForceOption,
    FormatOption,
    LockOption,
    MeasureOption,
    ProfileOption,
    RoundedOption,
    TokenFileOption,
    TrustOption,
    load_profile,
    number,
    token_for,
)
from kedit_hub.commands.output import print_fields, print_json, print_lines, print_table, say, shown
from kedit_hub.commands.use import write_export

if TYPE_CHECKING:
    from kedit_hub.errors import ConflictError
    from kedit_hub.index import Changed

_SOURCE = "A patch: a folder below that of the lock, user/repo, or user/repo@revision."
_LOCKED = "A patch of the lock: its id, the first digits of it, its folder or its repo."

Added = Annotated[list[str], typer.Argument(metavar="PATCH", help=_SOURCE)]
Locked = Annotated[list[str], typer.Argument(metavar="PATCH", help=_LOCKED)]
LookedAt = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATCH]...",
        help="A patch or a stack: a folder, user/repo, or user/repo@revision. By default the lock.",
        show_default=False,
    ),
]
WeightOption = Annotated[
    float | None,
    typer.Option(
        "--weight", parser=number(float, 1e-6, 1e6), metavar="W", help="How much their rows count; 1 is ordinary."
    ),
]
PinOption = Annotated[
    bool, typer.Option("--pin", help="Meet their rows exactly, and let them win under --conflicts pin.")
]
PackOption = Annotated[
    bool, typer.Option("--pack", help="Store every patch that is in no repo beside the lock, in two files.")
]
DecideOption = Annotated[
    Literal["error", "latest", "pin", "ask"] | None,
    typer.Option(
        "--conflicts",
        help="Two answers to one question: refuse, let the latest speak, or the pinned, or ask here. By default as the lock says.",
    ),
]
PolicyOption = Annotated[
    Literal["error", "latest", "pin"] | None,
    typer.Option(
        "--conflicts",
        help="Two answers to one question: refuse, let the latest speak, or the pinned. By default as the lock says.",
    ),
]
LockedModeOption = Annotated[
    Literal["auto", "gated", "joint", "sum"] | None,
    typer.Option("--mode", help="How patches are installed. By default as the lock says, else what suits them."),
]


def add(
    patches: Added,
    weight: WeightOption = None,
    pin: PinOption = False,
    conflicts: DecideOption = None,
    pack: PackOption = False,
    lock: LockOption = Path("kedit.lock"),
    trust: TrustOption = None,
    as_json: AsJson = False,
) -> None:
    """Lock patches behind those of kedit.lock. One that is there already stays in its place, and is locked as it is now."""
    from kedit_hub import index

    made = index.add(patches, lock, weight=weight, pin=pin, conflicts=_policy(conflicts), trust=trust, pack=pack)
    _print_changed(made, as_json)


def lock_anew(
    patches: Annotated[list[str] | None, typer.Argument(metavar="[PATCH]...", help=_SOURCE, show_default=False)] = None,
    weight: WeightOption = None,
    pin: PinOption = False,
    conflicts: DecideOption = None,
    pack: PackOption = False,
    lock: LockOption = Path("kedit.lock"),
    trust: TrustOption = None,
    as_json: AsJson = False,
) -> None:
    """Write kedit.lock anew: these patches and nothing else. With --pack alone, pack those of the lock."""
    if not patches and not (pack and weight is None and not pin and conflicts is None):
        raise typer.BadParameter("name the PATCHes to lock; only --pack works on those of the lock, and then by itself")
    from kedit_hub import index

    if not patches:
        made = index.pack(lock)
    else:
        policy = _policy(conflicts)
        made = index.add(patches, lock, weight=weight, pin=pin, conflicts=policy, trust=trust, pack=pack, afresh=True)
    _print_changed(made, as_json)


def remove(patches: Locked, lock: LockOption = Path("kedit.lock"), as_json: AsJson = False) -> None:
    """Take patches out of kedit.lock, also such as are lost. What they had silenced speaks again."""
    from kedit_hub import index

    _print_changed(index.remove(patches, lock), as_json)


def reorder(patches: Locked, lock: LockOption = Path("kedit.lock"), as_json: AsJson = False) -> None:
    """Move patches to the end, in this order. The last one wins under --conflicts latest."""
    from kedit_hub import index

    _print_changed(index.reorder(patches, lock), as_json)


def pin(patches: Locked, lock: LockOption = Path("kedit.lock"), as_json: AsJson = False) -> None:
    """Pin patches. Their rows are met exactly, and they win under --conflicts pin."""
    from kedit_hub import index

    _print_changed(index.pin(patches, lock), as_json)


def unpin(patches: Locked, lock: LockOption = Path("kedit.lock"), as_json: AsJson = False) -> None:
    """Unpin patches."""
    from kedit_hub import index

    _print_changed(index.unpin(patches, lock), as_json)


def weigh(
    patch: Annotated[str, typer.Argument(metavar="PATCH", help=_LOCKED)],
    weight: Annotated[
        float, typer.Argument(parser=number(float, 1e-6, 1e6), metavar="W", help="The weight; 1 is ordinary.")
    ],
    lock: LockOption = Path("kedit.lock"),
    as_json: AsJson = False,
) -> None:
    """Say how much a patch counts in a joint solve."""
    from kedit_hub import index

    _print_changed(index.weigh(patch, weight, lock), as_json)


def strengthen(
    patch: Annotated[str, typer.Argument(metavar="PATCH", help=_LOCKED)],
    strength: Annotated[
        float, typer.Argument(parser=number(float, 1e-6, 1), metavar="S", help="The share; 1 is all of the change.")
    ],
    lock: LockOption = Path("kedit.lock"),
    as_json: AsJson = False,
) -> None:
    """Say which share of its change a patch makes, in every mode."""
    from kedit_hub import index

    _print_changed(index.strengthen(patch, strength, lock), as_json)


def status(
    patches: LookedAt = None,
    conflicts: PolicyOption = None,
    mode: LockedModeOption = None,
    base: BaseOption = None,
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Load no model: only what the patches themselves tell.")
    ] = False,
    profile: ProfileOption = None,
    force: ForceOption = False,
    lock: LockOption = Path("kedit.lock"),
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Report what the patches do together. Conflicts that are open exit 1; mode, stored rows, predicted drift."""
    if base is not None and no_base:
        raise typer.BadParameter("--base and --no-base exclude each other")
    from kedit_hub import index

    found, refused = index.status(
        patches or [], lock, conflicts=conflicts, mode=mode, base=base, no_base=no_base, profile=load_profile(profile),
        force=force, trust=trust, models=editors or (),
    )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        _print_status(found)
    _end(refused)


def conflicts(
    patches: LookedAt = None,
    behaviour: Annotated[
        bool, typer.Option("--behaviour", help="Ask the base too: each patch alone, then all together. Takes long.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture of how the edits overlap.")
    ] = None,
    policy: PolicyOption = None,
    mode: LockedModeOption = None,
    base: BaseOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    lock: LockOption = Path("kedit.lock"),
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Look for all the ways in which patches get in each other's way. Two open answers to one question exit 1, all else exits 0.

    Without --base and --behaviour no model is loaded: rows are compared under base profiles that are on this machine.
    """
    from kedit_hub import index
    from kedit_hub.evaluate.conflicts import COLUMNS
    from kedit_hub.stack.packed import write_whole

    def progress(what: str, done: int, of: int) -> None:
        say(f"{what}: {done} of {of}")

    report, refused = index.conflicts(
        patches or [], lock, policy=policy, mode=mode, behaviour=behaviour, base=base, profile=load_profile(profile),
        force=force, trust=trust, models=editors or (), progress=progress if sys.stderr.isatty() else None,
    )  # fmt: skip
    if svg is not None:
        write_whole(svg, report.svg().encode())
    if as_json:
        print_json(report.to_dict())
    elif report.findings:
        print_table(COLUMNS, report.table())
    else:
        print_lines(f"Nothing was found: {', '.join(report.looked_at)} looked at.")
    for note in report.notes:
        say(f"Note: {note}.")
    _end(refused)


def solve(
    mode: LockedModeOption = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", parser=number(float, 0), metavar="X", help="Predicted drift on text to stay within."),
    ] = None,
    site_budget: Annotated[
        float | None,
        typer.Option("--site-budget", parser=number(float, 0), metavar="X", help="The same where edits are read."),
    ] = None,
    preconditioner: Annotated[
        Literal["second-moment", "identity", "null-space", "hybrid"] | None,
        typer.Option("--preconditioner", help="What a solve holds to be ordinary text."),
    ] = None,
    rows: Annotated[
        Literal["means", "contexts"] | None,
        typer.Option("--rows", help="Rows of a solve: the mean key of every row, or each of its contexts."),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            "--protect",
            metavar="PROMPT",
            help="A prompt the base shall go on answering as it does; repeatable. In place of those of the lock.",
        ),
    ] = None,
    protection: Annotated[
        float | None,
        typer.Option("--protection", parser=number(float, 0), metavar="W", help="What a protected prompt counts."),
    ] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Forget the settings and protected prompts of the lock first.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Store settings, protected prompts and what was found in the lock.")
    ] = False,
    base: BaseOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    lock: LockOption = Path("kedit.lock"),
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Compose the locked stack on its base. Settings that are not given are those of the lock."""
    from kedit_hub import index

    said = {
        "mode": mode, "budget": budget, "site_budget": site_budget, "preconditioner": preconditioner, "rows": rows,
        "protection": protection,
    }  # fmt: skip
    made = index.solve(
        lock, {name: value for name, value in said.items() if value is not None}, protect=protect or (), defaults=defaults,
        write=write, base=base, profile=load_profile(profile), force=force, trust=trust, models=editors or (),
    )  # fmt: skip
    report = made.report
    if as_json:
        print_json(
            {
                "settings": made.settings.model_dump(mode="json"),
                **{name: report[name] for name in ("mode", "why", "patches", "edits", "levels", "modules")},
                "changes": None if made.changed is None else made.changed.diff.to_dict()["changes"],
            }
        )
    else:
        print_fields({"mode": f"{report['mode']} ({report['why']})", "edits that speak": report["edits"]})
        print()
        columns = ("rows", "keys", "lambda", "fit_mean", "fit_min", "drift_predicted", "site_drift_predicted")
        lines = [(path, *(_short(told.get(name)) for name in columns)) for path, told in report["modules"].items()]
        print_table(("module", *columns), lines)
    if made.changed is not None:
        say(f"{made.changed.path} keeps this.")


def verify(lock: LockOption = Path("kedit.lock"), as_json: AsJson = False) -> None:
    """Check that every patch is what was locked. Each is fetched; if one is not, exits 1 with each reason."""
    from kedit_hub import index
    from kedit_hub.stack.lock import Broken, Verified

    read, found = index.verify(lock)
    match found:
        case Verified():
            reasons: tuple[str, ...] = ()
        case Broken(reasons):
            pass
        case _:
            assert_never(found)
    ids = [entry.id for entry in read.patches]
    if as_json:
        print_json({"lock": str(lock), "digest": read.digest, "patches": ids, "reasons": list(reasons)})
    elif not reasons:
        print_fields({"lock": lock, "digest": read.digest, "patches": f"{len(ids)}, all as they were locked"})
    for reason in reasons:
        say(f"Error: {reason}")
    if reasons:
        raise typer.Exit(1)


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A kedit.lock, its folder, or a stack repo.")],
    after: Annotated[
        str, typer.Argument(metavar="[B]", help="Another one. By default kedit.lock.", show_default=False)
    ] = "kedit.lock",
    as_json: AsJson = False,
) -> None:
    """Compare two locks. Patches added, removed and moved, weights, pins, settings."""
    from kedit_hub import index
    from kedit_hub.stack.lock import diff as compare

    found = compare(index.read(before), index.read(after))
    if as_json:
        print_json(found.to_dict())
    elif found.changes:
        print_table(("what", "patch", "before", "after"), found.rows())
    else:
        say("Both say the same.")


def export(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
    format: FormatOption = "peft",
    quantization: RoundedOption = None,
    measure: MeasureOption = True,
    base: BaseOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    lock: LockOption = Path("kedit.lock"),
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Write the locked stack as a LoRA or a merged model. A gate is no linear map: a gated stack leaves in its joint form."""
    from kedit_hub import index

    m = index.gather((), lock, trust=trust).apply(
        base, profile=load_profile(profile), force=force, models=editors or ()
    )
    write_export(m, out, format, quantization, measure=measure, as_json=as_json)


def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/repo; it is made when it is not there.")],
    version: Annotated[str | None, typer.Option("--version", help="Tag it, like v1.0.0. A tag never moves.")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Propose it as a pull request to somebody else's repo.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    lock: LockOption = Path("kedit.lock"),
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Put the locked stack into a repo of its own. Patches that are in no repo are packed along."""
    from kedit_hub import index

    token = token_for(endpoint, token_file)
    pushed = index.push(repo, lock, version=version, create_pr=pr, private=private, token=token, endpoint=endpoint)
    if as_json:
        print_json(vars(pushed))
    else:
        print_fields(vars(pushed))
    say(f"Others use it with:  kedit ask PROMPT --patch {repo}@{pushed.tag or pushed.commit}")


def _policy(named: Literal["error", "latest", "pin", "ask"] | None) -> Any:
    """The policy, or the function that asks whoever sits at the terminal."""
    if named != "ask":
        return named
    from kedit_hub.errors import ConflictError

    def ask(conflict: Any) -> Literal["earlier", "later"]:
        if not _is_person():
            raise ConflictError(
                f"{conflict}: --conflicts ask asks a person, and standard input is no terminal. Take latest or pin, or leave one patch out."
            )
        say(f'"{conflict.question}"')
        for side, place, target in zip(("earlier", "later"), (conflict.earlier, conflict.later), conflict.targets):
            say(f"  {side:7}  {target}  (patch {place[0][:12]})")
        while (chosen := typer.prompt("Who speaks, earlier or later", err=True)) not in ("earlier", "later"):
            say(f"'{chosen}' is neither.")
        return "earlier" if chosen == "earlier" else "later"

    return ask


def _is_person() -> bool:
    return sys.stdin.isatty()


def _end(refused: "ConflictError | None") -> None:
    if refused is not None:
        raise refused


def _print_changed(made: "Changed", as_json: bool) -> None:
    if as_json:
        told = {
            "lock": str(made.path),
            "digest": made.lock.digest,
            "patches": [entry.id for entry in made.lock.patches],
        }
        print_json({**told, **made.diff.to_dict()})
        return
    shown_ = [row for change, row in zip(made.diff.changes, made.diff.rows()) if change.what not in _UNTOLD]
    if shown_:
        print_table(("what", "patch", "before", "after"), shown_)
    say(f"{made.path} names {len(made.lock.patches)} patches.")
    if made.lock.solved is None and any(change.what == "solved" for change in made.diff.changes):
        say("What was found for the patches it named before is gone: kedit stack solve --write finds it anew.")


_UNTOLD = ("base", "solved", "profiles")  # they follow from the patches


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else shown(value)


def _print_status(found: dict[str, Any]) -> None:
    print_table(
        ("patch", "id", "edits", "base", "weight", "strength", "pinned"),
        [
            (
                patch["ref"], patch["id"][:12], patch["edits"], patch["base"], f"{patch['weight']:g}",
                f"{patch['strength']:g}", "yes" if patch["pinned"] else "",
            )
            for patch in found["patches"]
        ],
    )  # fmt: skip
    print()
    rows: dict[str, object] = {"edits that speak": found["edits"], "mode": f"{found['mode']} ({found['why']})"}
    for path, module in found["modules"].items():
        drifts = [
            f", predicted drift {module[name]:.3g} of the map's own output energy{where}"
            for name, where in (("drift_predicted", ""), ("site_drift_predicted", " where edits are read"))
            if module.get(name) is not None
        ]
        rows[path] = f"{module['rows']} rows, {module['keys']} keys{''.join(drifts)}"
        if module.get("wide_open"):
            rows[f"{path}, gate wide open"] = ", ".join(patch[:12] for patch in module["wide_open"])
    print_fields({**rows, "conflicts": len(found["conflicts"])})
    if found["conflicts"]:
        print()
        print_table(
            ("question", "earlier", "says", "later", "says", "speaks"),
            [
                (
                    c["question"], c["earlier"]["patch"][:12], c["earlier"]["target"], c["later"]["patch"][:12],
                    c["later"]["target"], "neither" if c["speaks"] is None else f"the {c['speaks']}",
                )
                for c in found["conflicts"]
            ],
        )  # fmt: skip
