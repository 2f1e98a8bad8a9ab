"""Leaderboards: `leaderboard submit`, `leaderboard show`, `leaderboard verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kedit_hub.commands.options import (
    AsJson,
    EndpointOption,
    TokenFileOption,
    TrustOption,
    number,
    token_for,
)
from kedit_hub.commands.output import print_fields, print_json, print_lines, print_table, say

if TYPE_CHECKING:
    from kedit_hub.evaluate.run import Run
    from kedit_hub.hub.leaderboard import Marked

SHOWN_SKIPPED = 10  # files that are left out, for people; --json names all

Board = Annotated[str, typer.Argument(metavar="REPO", help="user/repo, a dataset repo of the Hub.")]
PrOption = Annotated[bool, typer.Option("--pr", help="Propose it as a pull request to somebody else's board.")]


def submit(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS", help="A results file: JSON lines of runs, as `kedit bench` writes them.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="user/repo, a dataset repo; it is made when it is not there.")
    ],
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Your private key: signed rows cannot be replaced by others."),
    ] = None,
    pr: PrOption = False,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Add measured runs to a leaderboard, as one file in one commit. Nothing there is changed."""
    from kedit_hub.hub.leaderboard import submit as submit_runs
    from kedit_hub.patch.keys import load_key

    done = submit_runs(
        _runs(runs),
        repo,
        key=None if key is None else load_key(key),
        create_pr=pr,
        token=token_for(endpoint, token_file),
        endpoint=endpoint,
    )
    told = {**vars(done), "notes": list(done.notes)}
    if as_json:
        print_json(told)
    else:
        print_fields({name: value for name, value in told.items() if name != "notes"})
    for note in done.notes:
        say(note)


def show(
    repo: Board,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Runs on this base, org/model.")] = None,
    suite: Annotated[
        Literal["single", "batch", "sequential", "stack", "quantization"] | None,
        typer.Option("--suite", help="Runs of this suite of `kedit bench`."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="ID|DIGEST", help="Runs on this data set, or the first digits of its sha256."
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", parser=number(int, 1), metavar="N", help="Runs of so many edits.")
    ] = None,
    protocol: Annotated[
        Literal["tf-token", "generate", "nll-pair", "choice"], typer.Option("--protocol", help="How was asked.")
    ] = "generate",
    metric: Annotated[
        str,
        typer.Option(
            "--metric", metavar="NAME", help="The average to rank by, like reliability or 'locality neighbour'."
        ),
    ] = "score",
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="REV", help="The board at a commit, tag or pull request (refs/pr/3). By default now."
        ),
    ] = None,
    trust: TrustOption = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Rank what lies in a leaderboard. Every file is checked here; without a network, as it was last seen."""
    from kedit_hub.hub.leaderboard import rank, tables

    board = rank(
        repo,
        base=base,
        suite=suite,
        dataset=dataset,
        protocol=protocol,
        metric=metric,
        n=n,
        revision=revision,
        trust=trust,
        token=token_for(endpoint, token_file),
        endpoint=endpoint,
    )
    if as_json:
        print_json(board.to_dict())
    else:
        for place, (title, columns, rows) in enumerate(tables(board)):
            print_lines(title if place == 0 else f"\n{title}")
            print_table(columns, rows)
    say(f"{len(board.rows)} rows at commit {board.commit}.")
    if board.without:
        say(f"{board.without} run(s) have no {protocol} {metric}, and so no place.")
    for one in board.skipped[:SHOWN_SKIPPED]:
        say(f"Left out: {one.path or 'the rest'}: {one.reason}")
    if len(board.skipped) > SHOWN_SKIPPED:
        say(f"and {len(board.skipped) - SHOWN_SKIPPED:,} more files are left out; --json names all.")


def verify(
    repo: Board,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Your private key: you vouch for what agrees.")],
    runs: Annotated[
        Path | None,
        typer.Option("--runs", metavar="FILE", help="Your own runs of the same cells, as `kedit bench` writes them."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="DIGEST", help="Measure this run of the board now; `show --json` lists digests."),
    ] = None,
    edits: Annotated[
        str | None,
        typer.Option(
            "--edits", metavar="FILE|NAME", help="With --run: the edits it was measured on, see `kedit bench`."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="With --run: a split of the data set.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", parser=number(int, 1), metavar="N", help="With --run: choose from the first N edits only."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="With --run: where patches and the new run go.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            parser=number(float, 0, 0.05),
            metavar="X",
            help="How far an average may be from the claimed one.",
        ),
    ] = 0.02,
    pr: PrOption = False,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Vouch for runs of others that you have measured again. What does not agree exits 1 and gets nothing."""
    if (runs is None) == (run is None):
        raise typer.BadParameter("give either --runs, what you have measured, or --run, what to measure now")
    if run is not None and (edits is None or out is None):
        raise typer.BadParameter("--run needs --edits, for a board names edits by digest alone, and --out")
    from kedit_hub.hub.leaderboard import mark_verified, reverify
    from kedit_hub.patch.keys import load_key

    signing, token = load_key(key), token_for(endpoint, token_file)
    if run is None:
        assert runs is not None
        done = mark_verified(
            repo, _runs(runs), key=signing, tolerance=tolerance, create_pr=pr, token=token, endpoint=endpoint
        )
    else:
        from kedit_hub.benchmarking import bench

        done = reverify(
            repo,
            run,
            bench,
            key=signing,
            tolerance=tolerance,
            create_pr=pr,
            token=token,
            endpoint=endpoint,
            edits=edits,
            split=split,
            limit=limit,
            out=out,
        )
    _print_marked(done, as_json)
    if done.differs or not done.reproduced:
        raise typer.Exit(1)


def _print_marked(done: "Marked", as_json: bool) -> None:
    differs = {digest: [list(one) for one in verdict.differences] for digest, verdict in done.differs.items()}
    told = {
        **vars(done),
        "reproduced": dict(done.reproduced),
        "differs": differs,
        "own": list(done.own),
        "unknown": list(done.unknown),
    }
    if as_json:
        print_json(told)
    else:
        rows = [(digest[:12], "reproduced", "", "", "") for digest in done.reproduced]
        rows += [
            (digest[:12], "differs", f"{protocol} {metric}", _number(claimed), _number(measured))
            for digest, found in done.differs.items()
            for protocol, metric, claimed, measured in found.differences
        ]
        print_table(("run", "verdict", "average", "claimed", "measured"), rows)
    if done.commit is not None:
        say(f"Vouched for {len(done.reproduced)} run(s) as {done.verifier}.")
    if done.differs:
        say(
            f"{len(done.differs)} run(s) do not agree within {done.tolerance:g}: nothing is said about them on the board."
        )
    if done.own:
        say(f"{len(done.own)} run(s) are your own: nobody vouches for themselves.")
    if done.unknown:
        say(f"{len(done.unknown)} of the measured runs are of cells that nobody else has submitted.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _runs(path: Path) -> list["Run"]:
    from kedit_hub.errors import KeditError
    from kedit_hub.evaluate.run import RunsFile

    if not path.is_file():
        raise KeditError(f"'{path}' is not a file. Give a results file of `kedit bench`.")
    return list(RunsFile(path))
