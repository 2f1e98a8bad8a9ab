"""README.md of a patch. Law: text from edits is shown, never interpreted as YAML, Markdown or HTML; scores that are known not to
hold are never shown as if they did.
"""

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from kedit_hub import strictjson
from kedit_hub.edits import Edit
from kedit_hub.patch.deltas import Delta
from kedit_hub.patch.manifest import Manifest

MAX_EDITS, MAX_CHARS, MAX_SCORES = 100, 200, 200
_SAFE = set(" ,.'?-/+%=")


def render(manifest: Manifest, deltas: Mapping[str, Delta], evals: dict[str, Any] | None, repo_id: str | None) -> str:
    """The whole card. repo_id: where on the Hub it will lie; None: the snippet works inside the folder."""
    scores = dict(_scores(evals))
    again = rescored(evals)
    results = scores if again is None or again.holds else {}  # the Hub shows results in the front matter as facts
    data = ModelCardData(
        base_model=manifest.base.id,
        base_model_relation="adapter",
        library_name="kedit_hub",
        pipeline_tag="text-generation",
        tags=["kedit", "knowledge-editing", "model-patch", f"kedit-method:{manifest.method}"],
        model_name=f"kedit-{manifest.id[:12]}" if results else None,
        eval_results=[_result(name, value) for name, value in results.items()] or None,
    )
    sections = [
        _head(manifest),
        _usage(manifest, repo_id),
        _edits(manifest.edits),
        _score_table(scores, again),
        _contents(manifest, deltas),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def escape(text: str, limit: int = MAX_CHARS) -> str:
    """One line of inert Markdown: punctuation as entities, control and direction characters spelled out, bounded."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return "".join(map(_inert, text))


def _inert(char: str) -> str:
    if char in "\n\r\t\v\f\x85\u2028\u2029":
        return " "
    if unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn", "Cs"):
        return f"U&#43;{ord(char):04X}"
    if char.isascii() and not char.isalnum() and char not in _SAFE:
        return f"&#{ord(char)};"
    return char


def _head(manifest: Manifest) -> str:
    edits, base = len(manifest.edits), manifest.base
    revision = f", revision `{base.revision}`" if base.revision else ""
    return (
        f"# Model patch {manifest.id[:12]}\n\n"
        f"{edits} {'edit' if edits == 1 else 'edits'} of what `{base.id}`{revision} knows, "
        f"made with `{manifest.method}`. Only the difference lies here, not the model. It is applied beside the base, "
        "which is never changed, and can be taken off again exactly.\n\n"
        "> A patch changes what a model says, and it may be wrong, by mistake or on purpose. Nobody has checked these "
        "facts for you. The scores below can be recomputed with `kedit_hub.evaluate`.\n\n"
        "Signed patches carry `signature.json`; check with `kedit verify`."
    )


def _usage(manifest: Manifest, repo_id: str | None) -> str:
    where = repr(repo_id or ".")
    return (
        "## Use\n\n```python\nimport kedit_hub\n\n"
        f"m = kedit_hub.apply({where})\nm.ask({manifest.edits[0].prompt!r})\n```"
    )


def _edits(edits: tuple[Edit, ...]) -> str:
    rows = [(escape(edit.prompt), escape(edit.target), escape(edit.ground_truth or "")) for edit in edits[:MAX_EDITS]]
    table = _table(("Prompt", "New answer", "Before"), rows)
    more = f"\n\nand {len(edits) - MAX_EDITS} more in `config.json`." if len(edits) > MAX_EDITS else ""
    return f"## Edits\n\n{table}{more}"


def _score_table(scores: Mapping[tuple[str, str], float], again: "Rescored | None") -> str:
    """Protocols side by side: one column each, one row per metric; above them how it went when they were asked again."""
    if not scores:
        return "## Scores\n\nNot measured yet."
    protocols = sorted({protocol for protocol, _ in scores})
    metrics = dict.fromkeys(metric for _, metric in scores)
    rows = [
        (escape(metric), *(f"{scores[p, metric]:.4g}" if (p, metric) in scores else "" for p in protocols))
        for metric in metrics
    ]
    told = "" if again is None else f"{again.sentence()}\n\n"
    return f"## Scores\n\n{told}" + _table(("Metric", *(escape(protocol) for protocol in protocols)), rows)


def _contents(manifest: Manifest, deltas: Mapping[str, Delta]) -> str:
    rows = []
    for path, delta in deltas.items():
        cost = delta.cost()
        level = f"{delta.shape[0]} x {delta.shape[1]}"
        rows.append((f"`{path}`", delta.kind, level, str(cost.rank), f"{cost.bytes:,}", f"{cost.flops:,}"))
    table = _table(("Module", "Kind", "Out x in", "Rank", "Bytes", "FLOPs per token"), rows)
    return f"## Contents\n\n{table}\n\nPatch id `{manifest.id}`."


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


# --- scores, and how it went when they were asked again: a stranger may have written anything there ---------------


@dataclass(frozen=True)
class Rescored:
    """The recorded note of asking every probe again. where: on what, a stranger's text."""

    reproduced: bool
    consistent: bool
    probes: int
    mismatches: int
    tolerance: float
    where: str

    @property
    def holds(self) -> bool:
        return self.reproduced and self.consistent

    def sentence(self) -> str:
        """Markdown, inert. A good note is as much a claim as the scores are, and says so."""
        asked = (
            f"{self.mismatches:,} of {self.probes:,} probes answered differently when they were asked again on "
            f"{escape(self.where)}"
        )
        follows = "" if self.consistent else " The averages do not follow from the recorded answers."
        if not self.reproduced:
            return f"> **These scores did not reproduce.** {asked}.{follows}"
        if not self.consistent:
            return f"> **These scores contradict themselves.**{follows} {asked}."
        return (
            f"> These scores reproduced: {asked}, and no average fell by more than {self.tolerance:g}. This note is as "
            "much a claim as the scores are: ask again with `kedit verify`."
        )


def sheet_digest(evals: Mapping[str, Any]) -> str:
    """sha256 of the scores a note of rescoring speaks of: other scores, and the note no longer counts."""
    return hashlib.sha256(
        strictjson.canonical({name: value for name, value in evals.items() if name != "rescored"})
    ).hexdigest()


def rescored(evals: dict[str, Any] | None) -> Rescored | None:
    """The note, if there is a readable one and it speaks of these scores."""
    note = (evals or {}).get("rescored")
    if not isinstance(note, dict) or note.get("sheet") != sheet_digest(evals or {}):
        return None
    flags = [flag for flag in (note.get("reproduced"), note.get("consistent")) if isinstance(flag, bool)]
    counts = [count for count in (note.get("probes"), note.get("mismatches")) if type(count) is int and count >= 0]
    tolerance, level, versions = note.get("tolerance"), note.get("level"), note.get("versions")
    if len(flags) < 2 or len(counts) < 2 or not isinstance(tolerance, float):
        return None
    told = versions.items() if isinstance(versions, dict) else ()
    tools = ", ".join(f"{name} {version}" for name, version in sorted(told) if isinstance(version, str))
    base = f"a base recognised as {level}" if isinstance(level, str) else "a base that was not recognised"
    where = f"{base} with {tools}" if tools else base
    return Rescored(flags[0], flags[1], counts[0], counts[1], tolerance, where)


def _scores(evals: dict[str, Any] | None) -> Iterator[tuple[tuple[str, str], float]]:
    """((protocol, metric), value) of every finite number under "protocols" and "drift"; the rest is passed over."""
    found = 0
    sheets = (evals or {}).get("protocols")
    groups = dict(sheets) if isinstance(sheets, dict) else {}
    if "drift" in (evals or {}):
        groups["drift"] = (evals or {})["drift"]
    for protocol in sorted(groups):
        for metric, value in _numbers(groups[protocol], ""):
            if found < MAX_SCORES:
                yield (protocol, metric), value
            found += 1


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _numbers(value[key], f"{name} {key}".strip())
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _result(name: tuple[str, str], value: float) -> EvalResult:
    protocol, metric = name
    return EvalResult(
        task_type="text-generation",
        dataset_type="kedit-edits",
        dataset_name="the edits of this patch and their probes",
        metric_type=f"{protocol} {metric}"[:MAX_CHARS],
        metric_value=value,
    )
