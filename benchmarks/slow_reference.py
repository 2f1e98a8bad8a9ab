"""The metrics once more, written from their definitions and nothing else: one record at a time, no batching, no padding, no cache, plain
loops, log-probabilities in float64. Law: nothing of kedit_hub.evaluate is used here, or agreeing with it would prove nothing.

    scores = record(edited, base, tokenizer, edit)      what `tf-token` and `nll-pair` shall give for one edit
    ngram_entropy("a b a b a")                          fluency in bits
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch

from kedit_hub import Edit


@dataclass
class Told:
    """Of one answer after one prompt. predicted, labels: token ids.  nll: mean over the tokens, nats."""

    predicted: list[int]
    labels: list[int]
    nll: float


@dataclass
class Slow:
    """Scores of one edit, in the order in which evaluate lists its questions; None: it cannot be scored.

    token, pair: score under tf-token, success under nll-pair.  token_known: the base predicted every token of a locality probe right.
    edited: an edit changes the fact of the locality probe on purpose, so it counts under neither.
    """

    token: list[float | None] = field(default_factory=list)
    token_known: list[bool] = field(default_factory=list)
    edited: list[bool] = field(default_factory=list)
    pair: list[float | None] = field(default_factory=list)
    nll: list[dict[str, float]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)


@torch.no_grad()
def tell(model: Any, tokenizer: Any, prompt: str, answer: str) -> Told:
    """One forward pass over one text. The answer begins at the first token in which prompt and prompt + answer differ."""
    alone, whole = tokenizer(prompt).input_ids, tokenizer(prompt + " " + answer).input_ids
    start = 0
    while start < len(alone) and alone[start] == whole[start]:
        start += 1
    logits = model(torch.tensor([whole])).logits[0]
    predicted, labels, total = [], [], 0.0
    for at in range(start, len(whole)):
        predicted.append(int(logits[at - 1].argmax()))
        labels.append(whole[at])
        total -= float(torch.log_softmax(logits[at - 1].double(), dim=-1)[whole[at]])
    return Told(predicted, labels, total / len(labels))


def record(edited: Any, base: Any, tokenizer: Any, edit: Edit, edits: list[Edit]) -> Slow:
    """tf-token: share of the target's tokens predicted right; for locality, predicted alike by base and edited model.

    nll-pair: new answer likelier than the old one; for locality, the true answer likelier than the new one.
    edits: all edits; a probe whose prompt is a prompt or rephrase of one of them is no probe of what should stay.
    """
    found = Slow()
    for role, prompt in [("reliability", edit.prompt), *(("generalization", text) for text in edit.rephrases)]:
        told = tell(edited, tokenizer, prompt, edit.target)
        old = tell(edited, tokenizer, prompt, edit.ground_truth)
        right = 0
        for predicted, label in zip(told.predicted, told.labels):
            right += predicted == label
        found.roles.append(role)
        found.token.append(right / len(told.labels))
        found.token_known.append(True)
        found.edited.append(False)
        found.pair.append(1.0 if told.nll < old.nll else 0.0)
        found.nll.append({edit.target: told.nll, edit.ground_truth: old.nll})
    for probe in edit.locality:
        told = tell(edited, tokenizer, probe.prompt, probe.target)
        new = tell(edited, tokenizer, probe.prompt, edit.target)
        before = tell(base, tokenizer, probe.prompt, probe.target)
        same = 0
        for a, b in zip(told.predicted, before.predicted):
            same += a == b
        found.roles.append("locality")
        found.token.append(same / len(told.labels))
        found.token_known.append(before.predicted == before.labels)
        found.edited.append(any(probe.prompt in (other.prompt, *other.rephrases) for other in edits))
        if probe.target == edit.target:
            found.pair.append(None)
            found.nll.append({})
        else:
            found.pair.append(1.0 if told.nll < new.nll else 0.0)
            found.nll.append({probe.target: told.nll, edit.target: new.nll})
    return found


def averages(scores: list[Slow]) -> dict[str, dict[str, float | None]]:
    """{protocol: {role: mean over edits of the mean over the edit's own}}; S is the harmonic mean under nll-pair."""
    result: dict[str, dict[str, float | None]] = {"tf-token": {}, "nll-pair": {}}
    for protocol in result:
        for role in ("reliability", "generalization", "locality"):
            means = []
            for slow in scores:
                own = []
                for i in range(len(slow.roles)):
                    value = slow.token[i] if protocol == "tf-token" else slow.pair[i]
                    counts = slow.token_known[i] or protocol == "nll-pair"
                    if slow.roles[i] == role and value is not None and counts and not slow.edited[i]:
                        own.append(value)
                if own:
                    means.append(sum(own) / len(own))
            result[protocol][role] = sum(means) / len(means) if means else None
    three = list(result["nll-pair"].values())
    if all(three):
        result["nll-pair"]["S"] = 3 / (1 / three[0] + 1 / three[1] + 1 / three[2])
    return result


def ngram_entropy(text: str) -> float:
    """(2/3 H_2 + 4/3 H_3) / 2 with H_n = -sum f log2 f over the n-grams of words and single marks."""
    words = re.findall(r"\w+|[^\w\s]", text)
    entropy = {}
    for n in (2, 3):
        grams = [words[i : i + n] for i in range(len(words) - n + 1)]
        entropy[n] = 0.0
        for i, gram in enumerate(grams):
            if gram not in grams[:i]:
                share = sum(other == gram for other in grams) / len(grams)
                entropy[n] -= share * math.log(share) / math.log(2)
    return (2 / 3 * entropy[2] + 4 / 3 * entropy[3]) / 2
