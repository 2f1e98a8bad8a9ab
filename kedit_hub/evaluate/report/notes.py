"""What a reader has to know before the numbers. Law: a note is computed from the runs; nothing is praised, and what is missing is said.

Each kind of doubt has one function; a function that has nothing to say says nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from kedit_hub.evaluate.report.cells import Survey
from kedit_hub.evaluate.report.tables import DERIVED, MIN_EDITS_TO_RANK, survey_table
from kedit_hub.evaluate.scores import NOT_KNOWN

MEANING: Mapping[str, str] = {
    "tf-token": "Teacher forcing: the share of the target's tokens that are the likeliest next token when the true tokens before them "
    "are given. Comparable with published tables; it never sees the model go astray.",
    "generate": "What a user gets: greedy decoding up to the natural stop, then exact match after normalisation. Answers that merely "
    "contain the target are counted apart.",
    "nll-pair": "One answer against another, the lower mean NLL per token wins: the new one against the old one, for locality the true "
    "one against the new one, as published. A model that has forgotten everything still wins about "
    "half of the pairs: read it beside exact match.",
    "choice": "The answer among wrong answers of the same relation, ranked by mean NLL per token.",
}
UNKNOWN_PROTOCOL = "A protocol that this version does not know; see who measured it."

SMALL_N = 30
DEAD_EXACT, DEAD_PAIR = 0.1, 0.4  # exact match at most, pairs won at least
DEAD_EDITS = 10  # asked, at least
MUCH = 1 / 3  # of the locality probes


def warnings(survey: Survey) -> list[str]:
    """Every doubt that applies, in plain sentences."""
    doubts = (
        _single_seed,
        _small,
        _no_winner,
        _dead,
        _forced_only,
        _unknown,
        _other_edits,
        _other_base,
        _failed,
        _versions,
        _dirty,
        _unverified,
        _repeated,
    )
    return [told for doubt in doubts for told in doubt(survey)]


def left_out(survey: Survey) -> list[tuple[str, str, int]]:
    """(protocol, reason, probes) over all cells, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for cell in survey.cells:
        for protocol in cell.protocols:
            for stat in cell.metrics(protocol).values():
                for reason, n in (stat.dropped or {}).items():
                    counts[protocol, reason] += n
    return [(protocol, reason, n) for (protocol, reason), n in counts.most_common() if n]


def _rows(survey: Survey) -> Iterator[tuple[str, Any]]:
    for comparison in survey.comparisons:
        for row in survey.rows(comparison):
            yield f"{row.label} ({comparison.suite}, n = {comparison.n:,})", row


def _single_seed(survey: Survey) -> Iterator[str]:
    rows = list(_rows(survey))
    single = sum(len(row.seeds) == 1 for _, row in rows)
    if single:
        yield (
            f"One seed only in {single:,} of {len(rows):,} rows: their intervals are over edits and say nothing of what another seed or "
            "another order of the edits would give."
        )


def _small(survey: Survey) -> Iterator[str]:
    small = sorted({comparison.n for comparison in survey.comparisons if comparison.n < SMALL_N})
    if small:
        yield (
            f"Few edits: n = {', '.join(f'{n:,}' for n in small)}. Under {SMALL_N} edits an average is an anecdote; under "
            f"{MIN_EDITS_TO_RANK} nobody is marked best."
        )


def _no_winner(survey: Survey) -> Iterator[str]:
    open_, all_ = 0, 0
    for comparison in survey.comparisons:
        rows = survey.rows(comparison)
        for protocol in survey.protocols:
            table = survey_table(rows, comparison, protocol)
            for at, name in enumerate(table.heads[1:]):
                column = [entries[at] for _, entries in table.rows if entries[at] is not None]
                if len(column) > 1 and name not in DERIVED:
                    all_ += 1
                    open_ += not any(getattr(entry, "best", False) for entry in column)
    if open_:
        yield f"Intervals overlap: in {open_:,} of {all_:,} columns that compare methods, the first cannot be told from the next."


def _dead(survey: Survey) -> Iterator[str]:
    found = []
    for name, row in _rows(survey):
        pair, exact = row.metrics("nll-pair").get("reliability"), row.metrics("generate").get("reliability")
        if pair and exact and pair.mean >= DEAD_PAIR and exact.mean <= DEAD_EXACT and (exact.edits or 0) >= DEAD_EDITS:
            found.append(f"{name} wins {pair.mean:.2f} and generates {exact.mean:.2f}")
    if found:
        more = f", and {len(found) - 5:,} more rows" if len(found) > 5 else ""
        yield (
            f"Perhaps dead: {', '.join(found[:5])}{more}. These win pairs under nll-pair and generate next to none of the targets; a "
            "model that says nothing sensible any more wins about half of the pairs too."
        )


def _forced_only(survey: Survey) -> Iterator[str]:
    rows = list(_rows(survey))
    forced = sum("generate" not in row.protocols and bool(row.protocols) for _, row in rows)
    if forced:
        yield f"Never generated: {forced:,} of {len(rows):,} rows were not asked under generate, so nobody knows what a user would get."


def _unknown(survey: Survey) -> Iterator[str]:
    for protocol in survey.protocols:
        scored = unknown = 0
        for cell in survey.cells:
            for name, stat in cell.metrics(protocol).items():
                if name.startswith("locality"):
                    scored += stat.scored or 0
                    unknown += (stat.dropped or {}).get(NOT_KNOWN, 0)
        if unknown and unknown / (scored + unknown) > MUCH:
            yield (
                f"Locality under {protocol} is over {scored:,} of {scored + unknown:,} probes: the base did not know the other "
                f"{unknown / (scored + unknown):.0%}, and what it does not know it cannot keep."
            )


def _other_edits(survey: Survey) -> Iterator[str]:
    for comparison in survey.comparisons:
        digests: dict[Any, set[str]] = {}
        for row in survey.rows(comparison):
            for cell in row.cells:
                if cell.dataset.get("edits_sha256"):
                    digests.setdefault(cell.seeds, set()).add(str(cell.dataset["edits_sha256"]))
        if any(len(found) > 1 for found in digests.values()):
            yield (
                f"Other edits: in {comparison.suite}, n = {comparison.n:,} ({comparison.dataset}) not all methods were given the same "
                "edits in the same order."
            )


def _other_base(survey: Survey) -> Iterator[str]:
    for base in dict.fromkeys(cell.base_name for cell in survey.cells):
        found = {
            cell.base["fingerprint"] for cell in survey.cells if cell.base_name == base and cell.base.get("fingerprint")
        }
        if len(found) > 1:
            yield f"Other weights: the runs that name {base} as their base were measured on {len(found)} different sets of weights."


def _failed(survey: Survey) -> Iterator[str]:
    for name, row in _rows(survey):
        failed = sum(cell.failed for cell in row.seeds)
        if failed:
            yield f"Not made: {name} could not make {failed:,} edits; they were asked all the same."


def _versions(survey: Survey) -> Iterator[str]:
    found: dict[str, set[str]] = {}
    for cell in survey.cells:
        versions = cell.provenance.get("versions")
        for name, version in (versions if isinstance(versions, Mapping) else {}).items():
            found.setdefault(str(name), set()).add(str(version))
    mixed = [
        f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(found.items()) if len(versions) > 1
    ]
    commits = {str(cell.provenance["commit"])[:12] for cell in survey.cells if cell.provenance.get("commit")}
    if len(commits) > 1:
        mixed.append(f"source {' and '.join(sorted(commits))}")
    if mixed:
        yield f"Measured with different versions: {', '.join(mixed)}."


def _dirty(survey: Survey) -> Iterator[str]:
    dirty = sum(cell.provenance.get("dirty") is True for cell in survey.cells)
    if dirty:
        yield f"Changed source: {dirty:,} of {len(survey.cells):,} runs were measured with files that differ from the commit they name."


def _unverified(survey: Survey) -> Iterator[str]:
    verified = sum(cell.verified for cell in survey.cells)
    if verified < len(survey.cells):
        yield f"Claims: {len(survey.cells) - verified:,} of {len(survey.cells):,} runs were measured by nobody but their author."


def _repeated(survey: Survey) -> Iterator[str]:
    if survey.repeated:
        yield f"Measured again: {survey.repeated:,} runs come more than once; the last one counts here, report.json has all."
