"""Did the sentiment about a topic change as asked? The edit success of ConvSent (Mitchell et al. 2022, SERAC) from the
likelihoods of replies. Law: all replies of a topic are weighed token by token; not one of them has to be said.

    z_sent  = sigmoid(mean log p(wanted) - mean log p(unwanted))           by the edited model: which side it is on
    z_topic = min(1, exp(mean log p(wanted) - mean log p(wanted, base)))    wanted replies must not have become unlikely
    score   = z_sent * z_topic

Means are over tokens, those of all replies of a side together. Replies about another topic shall stay: the share of their tokens at
which edited model and base agree is reported apart.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kedit_hub.evaluate.asking import Asking, Pair
from kedit_hub.evaluate.protocols import Forced
from kedit_hub.records.extras import Reply


def edit_success(
    wanted: float | None, unwanted: float | None, wanted_before: float | None
) -> tuple[float, float, float] | None:
    """(z_sent, z_topic, score) from mean log-probabilities per token in nats; None where one of them is no finite number."""
    if wanted is None or unwanted is None or wanted_before is None:
        return None
    z_sent = _sigmoid(wanted - unwanted)
    z_topic = math.exp(min(0.0, wanted - wanted_before))
    return z_sent, z_topic, z_sent * z_topic


def sentiment(asked: Asking, replies: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    """replies: those of one edit together, wanted, unwanted and about another topic (`wanted` None).

    {"z_sent", "z_topic", "score": means over topics, "elsewhere": mean agreement with the base, "n": topics scored, "left_out": topics
    without both sentiments or with a likelihood that is no number}. All None without a base.
    """
    pairs = [(reply.question, reply.text) for topic in replies for reply in topic]
    after, before = asked.forced(pairs)
    found, agreed = [], []
    for topic in replies if before else ():
        side = {wanted: [(r.question, r.text) for r in topic if r.wanted is wanted] for wanted in (True, False, None)}
        scored = edit_success(_log_p(side[True], after), _log_p(side[False], after), _log_p(side[True], before))
        if scored is not None:
            found.append(scored)
        agreed += [fmean(after[pair].agreement(before[pair]) for pair in side[None])] if side[None] else []
    columns = dict(zip(("z_sent", "z_topic", "score"), zip(*found)))
    return {
        **{name: fmean(columns[name]) if found else None for name in ("z_sent", "z_topic", "score")},
        "elsewhere": fmean(agreed) if agreed else None,
        "n": len(found),
        "left_out": len(replies) - len(found),
    }


def _log_p(pairs: Sequence[Pair], told: dict[Pair, Forced]) -> float | None:
    """Mean log-probability over all tokens of all replies."""
    total, tokens = 0.0, 0
    for pair in pairs:
        nll, length = told[pair].nll, len(told[pair].labels)
        if nll is None:
            return None
        total, tokens = total - nll * length, tokens + length
    return total / tokens if tokens else None


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
