"""A link to an exact state: patches by commit or content, question, seed, mode. Law: all of it is in the address, nothing is kept on
a server, and what a link says is a stranger's word, checked like any other.

    query(question)            "p=eiffel-tower-in-rome@3f2a9c...&q=The+Eiffel+...&seed=0"
    read(workshop, {"p": ...}) the Question again; KeditError where it cannot be what was linked
"""

from collections.abc import Mapping, Sequence
from typing import get_args
from urllib.parse import urlencode

from kedit_hub import KeditError
from kedit_hub.hub.client import printable
from space.asking import MAX_SEED, MODES, Question
from space.sentences import both
from space.stack_builder import LEAST
from space.state import MAX_NEW_TOKENS, MAX_PATCHES, MAX_QUESTION, Held, Policy, Workshop, precisions

DIGITS = 16  # of the content id of a sample
MAX_VALUE = 8_000  # characters of one part of a link
NAMES = ("p", "q", "s", "base", "precision", "mode", "conflicts", "pin", "n", "seed")


def query(question: Question) -> str:
    """The part of an address behind the ?. KeditError where a patch lies in this session alone."""
    usual = Question("", (), question.base)
    shares = dict(question.strengths)
    strengths = [f"{shares.get(held.patch.id, 1.0):g}" for held in question.patches]
    said = {
        "p": ",".join(map(_name, question.patches)),
        "q": question.text.strip(),
        "s": ",".join(strengths) if any(share != "1" for share in strengths) else "",
        "base": question.base,
        "precision": question.precision if question.precision != usual.precision else "",
        "mode": question.mode if question.mode != usual.mode else "",
        "conflicts": question.conflicts if question.conflicts != usual.conflicts else "",
        "pin": ",".join(key[:DIGITS] for key in question.pinned),
        "n": str(question.max_new_tokens) if question.max_new_tokens != usual.max_new_tokens else "",
        "seed": "" if question.placebo is None else str(question.placebo),
    }
    return urlencode({name: value for name, value in said.items() if value}, safe=",@/")


def _name(held: Held) -> str:
    if held.origin == "made":
        raise KeditError(both("link_made_here", name=held.name))
    return held.where if held.origin == "hub" else f"{held.name}@{held.patch.id[:DIGITS]}"


def read(workshop: Workshop, said: Mapping[str, str]) -> Question:
    """What a link asks for. KeditError names what is wrong with it; patches of the Hub are fetched and judged as any other."""
    long = [name for name in NAMES if len(said.get(name, "")) > MAX_VALUE]
    if long:
        raise KeditError(both("link_long", count=len(said[long[0]]), name=long[0], most=MAX_VALUE))
    names = [name for name in said.get("p", "").split(",") if name]
    if len(names) > MAX_PATCHES:
        raise KeditError(both("link_many", count=len(names), most=MAX_PATCHES))
    shares = [_between("s", share, LEAST, 1) for share in said.get("s", "").split(",") if share]
    if shares and len(shares) != len(names):
        raise KeditError(both("link_strengths", count=len(shares), patches=len(names)))
    patches, strengths = _stack(workshop, names, shares or [1.0] * len(names))
    base = said.get("base") or (patches[0].patch.manifest.base.id if patches else next(iter(workshop.bases)))
    if base not in workshop.bases:
        raise KeditError(both("link_base", base=printable(base[:80]), bases=", ".join(workshop.bases)))
    _check_made_for(patches, base)
    precision = said.get("precision") or "float32"
    if precision not in precisions():
        raise KeditError(
            both("link_precision", precision=printable(precision[:40]), precisions=", ".join(precisions()))
        )
    policy = _one_of("conflicts", said.get("conflicts") or "error", get_args(Policy))
    pins = [pin for pin in said.get("pin", "").split(",") if pin]
    return Question(
        said.get("q", "")[:MAX_QUESTION],
        patches,
        base,
        precision,
        policy,  # type: ignore[arg-type]
        _whole("n", said.get("n") or "32", 1, MAX_NEW_TOKENS),
        tuple(held.patch.id for held in patches if any(held.patch.id.startswith(pin) for pin in pins if len(pin) >= 6)),
        _one_of("mode", said.get("mode") or "auto", MODES),
        strengths,
        _whole("seed", said["seed"], 0, MAX_SEED) if said.get("seed") else None,
    )


def _stack(
    workshop: Workshop, names: Sequence[str], shares: Sequence[float]
) -> tuple[tuple[Held, ...], tuple[tuple[str, float], ...]]:
    """The patches, each once, where it is named first; and the strengths that are not whole."""
    patches: dict[str, Held] = {}
    strengths: dict[str, float] = {}
    for name, share in zip(names, shares, strict=True):
        held = _held(workshop, name)
        patches.setdefault(held.patch.id, held)
        strengths.setdefault(held.patch.id, share)
    return tuple(patches.values()), tuple((key, share) for key, share in strengths.items() if share != 1)


def _check_made_for(patches: Sequence[Held], base: str) -> None:
    for held in patches:
        if held.patch.manifest.base.id != base:
            made_for = printable(held.patch.manifest.base.id)
            raise KeditError(both("link_made_for", name=printable(held.name[:120]), made_for=made_for, base=base))


def _held(workshop: Workshop, name: str) -> Held:
    """A sample whose content is what the link says, or a commit of a Hub repo."""
    if "/" in name:
        commit = name.rpartition("@")[2]
        if len(commit) != 40 or not set(commit) <= set("0123456789abcdef"):
            raise KeditError(both("link_no_commit", name=printable(name[:120])))
        return workshop.from_hub(name)
    known, _, digits = name.partition("@")
    held = next((one for one in workshop.samples if one.name == known), None)
    if held is None:
        raise KeditError(both("link_unknown", name=printable(known[:80])))
    if len(digits) < 6 or not held.patch.id.startswith(digits):
        raise KeditError(
            both(
                "link_stale", name=printable(known[:80]), digits=printable(digits[:DIGITS]), here=held.patch.id[:DIGITS]
            )
        )
    return held


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise KeditError(both("link_no_number", name=name, said=printable(text[:40]))) from None


def _between(name: str, text: str, least: float, most: float) -> float:
    value = _number(name, text)
    if not least <= value <= most:  # nan neither
        raise KeditError(both("link_out", name=name, said=printable(text[:40]), least=least, most=most))
    return value


def _whole(name: str, text: str, least: int, most: int) -> int:
    value = _between(name, text, least, most)
    if not value.is_integer():
        raise KeditError(both("link_not_whole", name=name, said=printable(text[:40])))
    return int(value)


def _one_of(name: str, text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise KeditError(both("link_says", name=name, said=printable(text[:40])))
    return text
