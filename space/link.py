"""A link to an exact state: patches by commit or content, question, seed, mode. Law: all of it is in the address, nothing is kept on
a server, and what a link says is a stranger's word, checked like any other.

    query(question)            "p=eiffel-tower-in-rome@3f2a9c...&q=The+Eiffel+...&seed=0"
    read(workshop, {"p": ...}) the Question again; KeditError where it cannot be what was linked
"""

from collections.abc import Mapping
from typing import get_args
from urllib.parse import urlencode

from kedit_hub import KeditError
from kedit_hub.hub.client import printable
from space.asking import Question
from space.sentences import both
from space.state import MAX_PATCHES, MAX_QUESTION, PRECISIONS, Held, Policy, Workshop

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
    patches = tuple(_held(workshop, name) for name in names)
    strengths = [_number("s", share) for share in said.get("s", "").split(",") if share]
    if strengths and len(strengths) != len(patches):
        raise KeditError(both("link_strengths", count=len(strengths), patches=len(patches)))
    base = said.get("base") or (patches[0].patch.manifest.base.id if patches else next(iter(workshop.bases)))
    if base not in workshop.bases:
        raise KeditError(both("link_base", base=printable(base[:80]), bases=", ".join(workshop.bases)))
    precision = said.get("precision") or "float32"
    if precision not in PRECISIONS:
        raise KeditError(both("link_precision", precision=printable(precision[:40])))
    policy = said.get("conflicts") or "error"
    if policy not in get_args(Policy):
        raise KeditError(both("link_says", name="conflicts", said=printable(policy[:40])))
    pins = [pin for pin in said.get("pin", "").split(",") if pin]
    return Question(
        said.get("q", "")[:MAX_QUESTION],
        patches,
        base,
        precision,
        policy,  # type: ignore[arg-type]
        int(_number("n", said.get("n") or "32")),
        tuple(held.patch.id for held in patches if any(held.patch.id.startswith(pin) for pin in pins if len(pin) >= 6)),
        said.get("mode") or "auto",
        tuple((held.patch.id, share) for held, share in zip(patches, strengths) if share != 1),
        int(_number("seed", said["seed"])) if said.get("seed") else None,
    )


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
