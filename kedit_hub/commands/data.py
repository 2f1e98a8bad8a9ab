"""Data sets: `data list`, `data show`. Law: counts are of what was read, and what was rejected is named beside them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kedit_hub.commands.options import AsJson, EndpointOption, TokenFileOption, number, token_for
from kedit_hub.commands.output import print_fields, print_json, print_table, say

if TYPE_CHECKING:
    from kedit_hub.hub.datasets import Loaded

SHOWN_REJECTED = 20  # for people; --json names all


def list_datasets(as_json: AsJson = False) -> None:
    """List the data sets that are known by name. Those without a Hub id are fetched by hand and read by their path."""
    from kedit_hub.hub.catalogue import DATASETS

    found = [
        {
            "name": name,
            "what": source.what,
            "hub": source.hub,
            "splits": list(source.files),
            "shape": source.shape,
            "licence": source.licence,
            "origin": source.origin,
        }
        for name, source in DATASETS.items()
    ]
    if as_json:
        print_json(found)
        return
    columns = ("name", "what", "splits", "on the Hub", "licence", "origin")
    keys = ("name", "what", "splits", "hub", "licence", "origin")
    print_table(columns, [tuple(one[key] for key in keys) for one in found])


def show_dataset(
    name: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="A file of records, a name of `kedit data list`, or a Hub id.")
    ],
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="A split; of another Hub repo, a file in it.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="A branch, tag or commit of the Hub repo.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", parser=number(int, 1), metavar="N", help="Read the first records only.")
    ] = None,
    shown: Annotated[
        int, typer.Option("--n", parser=number(int, 0), metavar="N", help="How many edits to print whole.")
    ] = 3,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Read a data set and print what is in it. Shapes, counts of edits and probes, and every record that is rejected."""
    from kedit_hub.hub.datasets import read_dataset

    token = token_for(endpoint, token_file)
    loaded = read_dataset(
        name, split=split, limit=limit, revision=revision, rejected="collect", token=token, endpoint=endpoint
    )
    counts = _counts(loaded)
    if as_json:
        print_json(
            {
                **loaded.source(),
                "file": loaded.file,
                "split": loaded.split,
                "records": loaded.total,
                "counts": counts,
                "rejected": [{"where": where, "reason": reason} for where, reason in loaded.rejected],
                "edits": [edit.to_record() for edit in loaded.edits[:shown]],
            }
        )
        return
    print_fields({**loaded.source(), "file": loaded.file, "split": loaded.split, "records": f"{loaded.total:,}"})
    print()
    print_table(("what", "kind", "count"), list(_rows(counts)))
    for edit in loaded.edits[:shown]:
        print()
        print_fields(
            {
                "prompt": edit.prompt,
                "target": edit.target,
                "before": edit.ground_truth,
                "subject": edit.subject,
                **{f"rephrase {i}": text for i, text in enumerate(edit.rephrases, start=1)},
                **{f"locality {i} {p.kind}": _asked(p) for i, p in enumerate(edit.locality, start=1)},
                **{f"portability {i} {p.kind}": _asked(p) for i, p in enumerate(edit.portability, start=1)},
            }
        )
    if loaded.rejected:
        print()
        print_table(("rejected", "because"), loaded.rejected[:SHOWN_REJECTED])
        hidden = len(loaded.rejected) - SHOWN_REJECTED
        if hidden > 0:
            say(f"... and {hidden:,} more rejected records; --json names all.")


def _counts(loaded: "Loaded") -> dict[str, int | dict[str, int]]:
    """How many of everything there is, probes by kind."""
    edits, extras = loaded.edits, loaded.extras
    probes = [probe for edit in edits for probe in (*edit.locality, *edit.portability)]
    return {
        "edits": len(edits),
        "rejected": len(loaded.rejected),
        "shapes": _sorted(record.shape for record in loaded.records),
        "with a subject": sum(edit.subject is not None for edit in edits),
        "with an old answer": sum(edit.ground_truth is not None for edit in edits),
        "rephrases": sum(len(edit.rephrases) for edit in edits),
        "locality": _sorted(probe.kind or "unspecified" for edit in edits for probe in edit.locality),
        "portability": _sorted(probe.kind or "unspecified" for edit in edits for probe in edit.portability),
        "probes with aliases": sum(bool(probe.aliases) for probe in probes),
        "portability without an answer, left out": sum(len(more.unanswered) for more in extras),
        "groups of edits": len({more.group for more in extras if more.group is not None}),
        "prompts for fluency and consistency": sum(
            len(more.generation_prompts) + len(more.attribute_prompts) for more in extras
        ),
        "replies": sum(len(more.replies) + len(more.elsewhere) for more in extras),
    }


def _sorted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _rows(counts: Mapping[str, int | Mapping[str, int]]) -> Iterator[tuple[str, str | None, int]]:
    """(what, kind, count) of what there is any of; edits and rejected records always."""
    for name, count in counts.items():
        if isinstance(count, Mapping):
            yield from ((name, kind, number_of) for kind, number_of in count.items())
        elif count or name in ("edits", "rejected"):
            yield name, None, count


def _asked(probe: Any) -> str:
    return f"{probe.prompt} -> {' | '.join((probe.target or 'as before', *probe.aliases))}"
