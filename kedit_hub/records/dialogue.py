"""ConvSent (Mitchell et al. 2022): a sentiment about one topic, as KnowEdit publishes it. Law: the edit asks for the first
reply of the wanted sentiment; all replies, wanted and not, are extras.

    {"ent": topic, "pos": [replies], "neg": [replies]}                                                    raw
    {"prompt", "target_new", "subject", "metric_kwargs": {"inner_all_qa": ["question </s> reply", ..], ..}}   with the metric's inputs

Success is the change in likelihood of all replies, see `Extras.replies`, not the text of one answer. The toolkits draw the
wanted sentiment at random; here it follows from the topic, so that every reading is equal.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kedit_hub.errors import EditError
from kedit_hub.records.easyedit import easyedit
from kedit_hub.records.extras import Found, Record, Reply
from kedit_hub.records.values import one_plain, plain

QUESTION = "What do you think of {}?"
ASKED = {"pos": "Answer positively: {}", "neg": "Answer negatively: {}"}
_SEPARATOR = "</s>"


def raw(record: Mapping[str, Any]) -> Found:
    """The replies about another topic are those of the next record of the file, see `with_elsewhere`."""
    topic = one_plain(record["ent"], "ent") or ""
    wanted = "pos" if hashlib.sha256(topic.encode()).digest()[0] % 2 == 0 else "neg"
    question = QUESTION.format(topic)
    replies = {side: plain(record[side], side) for side in ("pos", "neg")}
    if not replies["pos"] or not replies["neg"]:
        raise EditError(
            f"The topic {topic!r} needs replies of both sentiments: {'pos' if replies['neg'] else 'neg'} has none."
        )
    request = {"prompt": ASKED[wanted].format(question), "target_new": replies[wanted][0], "subject": topic}
    [(edit, extras)] = easyedit(request)
    told = tuple(Reply(question, text, side == wanted) for side in ("pos", "neg") for text in replies[side])
    return [(edit, replace(extras, replies=told))]


def prepared(record: Mapping[str, Any]) -> Found:
    """As EasyEdit and InstructEdit prepare it. Their mixed files have records of other data sets, with no metric_kwargs."""
    given = record.get("metric_kwargs")
    rest = {key: value for key, value in record.items() if key != "metric_kwargs"}
    [(edit, extras)] = easyedit(rest)
    if not given:
        return [(edit, extras)]
    inner, wanted, sides = given["inner_all_qa"], given["inner_target"], given["all_target"]
    if not len(inner) == len(wanted) == len(sides):
        raise EditError(f"metric_kwargs has {len(inner)} replies and {len(wanted)} and {len(sides)} sentiments.")
    replies = tuple(_reply(text, side == asked) for text, asked, side in zip(inner, wanted, sides))
    elsewhere = tuple(_reply(text, None) for text in given["outer_all_qa"])
    return [(edit, replace(extras, replies=replies, elsewhere=elsewhere))]


def _reply(text: str, wanted: bool | None) -> Reply:
    whole = one_plain(text, "metric_kwargs") or ""
    question, separator, reply = whole.partition(_SEPARATOR)
    if not separator or not question.strip() or not reply.strip():
        raise EditError(f"{whole[:80]!r} is not 'question {_SEPARATOR} reply'.")
    return Reply(question.strip(), reply.strip(), wanted)


def with_elsewhere(records: list[Record]) -> list[Record]:
    """Give raw records the replies of the next one, the last those of the first, as replies about another topic."""
    raw_ones = [record for record in records if record.shape == "convsent"]
    if len(raw_ones) < 2:
        return records
    following = dict(zip(map(id, raw_ones), [*raw_ones[1:], raw_ones[0]]))
    return [
        replace(record, extras=replace(record.extras, elsewhere=_of_another(following[id(record)])))
        if id(record) in following
        else record
        for record in records
    ]


def _of_another(record: Record) -> tuple[Reply, ...]:
    return tuple(replace(reply, wanted=None) for reply in record.extras.replies)
