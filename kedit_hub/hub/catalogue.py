"""The data sets of the field that are known by name. Law: a Hub id stands here only with the files that were seen in it; what must be
fetched by hand says from whom.

    DATASETS["knowedit-recent"].files["test"]   ->  "benchmark/wiki_recent/recent_test.json"
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Source:
    """A published data set. hub: its Hub id, None where it must be fetched by hand.  files: split -> file in that repo ("*"
    stands for what its publisher puts into the name).  shape: of its records, a name of SHAPES.  origin: who publishes it."""

    what: str
    shape: str
    licence: str
    origin: str
    hub: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


_KNOWEDIT: dict[str, Any] = {"licence": "MIT", "origin": "KnowEdit (Zhang et al. 2024)", "hub": "zjunlp/KnowEdit"}


def _splits(pattern: str, *names: str) -> Mapping[str, str]:
    return {name: pattern.format(name) for name in names}


# The first split is the one that is read when none is named.
DATASETS: Mapping[str, Source] = {
    "knowedit-zsre": Source(
        "questions about facts, with one-hop questions and aliases",
        "easyedit",
        files={"test": "benchmark/ZsRE/ZsRE-test-all.json"},
        **_KNOWEDIT,
    ),
    "knowedit-recent": Source(
        "facts added to Wikidata since July 2022",
        "easyedit",
        files=_splits("benchmark/wiki_recent/recent_{}.json", "test", "train"),
        **_KNOWEDIT,
    ),
    "knowedit-counterfact": Source(
        "counterfactual Wikidata facts, with what must not be forgotten",
        "easyedit",
        files=_splits("benchmark/wiki_counterfact/{}_cf.json", "test", "train"),
        **_KNOWEDIT,
    ),
    "knowedit-wikibio": Source(
        "sentences of biographies that a model invented, to be put right",
        "wikibio",
        files=_splits("benchmark/WikiBio/wikibio-{}-all.json", "test", "train"),
        **_KNOWEDIT,
    ),
    "knowedit-convsent": Source(
        "the sentiment of replies about one topic",
        "convsent",
        files=_splits("benchmark/Convsent/blender_{}.json", "test", "train", "val"),
        **_KNOWEDIT,
    ),
    "knowedit-sanitation": Source(
        "answers to be forgotten, and answers to be kept",
        "sanitation",
        files=_splits("benchmark/trivia/trivia_qa_{}.json", "test", "train"),
        **_KNOWEDIT,
    ),
    "counterfact": Source(
        "21,919 counterfactual statements with paraphrases and neighbours",
        "counterfact-original",
        "not stated on the Hub",
        "ROME (Meng et al. 2022)",
        "azhx/counterfact",
        _splits("data/{}-*.parquet", "test", "train"),
    ),
    "mquake": Source(
        "multi-hop questions across edits, with the errors of MQuAKE mended",
        "mquake",
        "CC BY 4.0",
        "MQuAKE-Remastered (Zhong et al. 2025)",
        "henryzhongsc/MQuAKE-Remastered",
        _splits("data/{}-00000-of-00001.parquet", "CF3k", "CF9k", "CF6334", "T"),
    ),
    "counterfact-flat": Source(
        "10,000 records of CounterFact with one rephrase and one neighbour",
        "counterfact",
        "not stated",
        "zjunlp/EasyEdit on GitHub: counterfact-edit.json",
    ),
    "zsre": Source(
        "questions about facts, as MEND and its followers are measured on",
        "zsre-mend",
        "not stated",
        "MEND (Mitchell et al. 2022): zsre_mend_eval.json",
    ),
    "zsre-ke": Source(
        "questions about facts with many rephrases, in the form of KILT",
        "zsre-ke",
        "not stated",
        "nicola-decao/KnowledgeEditor on GitHub: structured_zeroshot-dev-new_annotated_final.jsonl",
    ),
    "dafset": Source(
        "recent, popular, long-tail and noisy facts, for training DAFNet",
        "counterfact",
        "not stated",
        "qizhou000/DAFNet on GitHub: cf_train.json, recent.json, popular.json, long_tail.json, robust.json",
    ),
    "rippleedits": Source(
        "what else changes when one fact does, and what does not",
        "ripple-original",
        "MIT",
        "edenbiran/RippleEdits on GitHub: recent.json, popular.json, random.json",
    ),
    "mquake-original": Source(
        "multi-hop questions across edits, as first published",
        "mquake",
        "see its repository",
        "princeton-nlp/MQuAKE on GitHub: MQuAKE-CF-3k-v2.json, MQuAKE-CF.json, MQuAKE-T.json",
    ),
    "qaedit": Source(
        "19,249 questions of people that models answer wrongly; some targets are dirty",
        "qaedit",
        "not stated",
        "WanliYoung/Revisit-Editing-Evaluation on GitHub: QAEdit.json",
    ),
    "unke": Source(
        "questions with long answers, and questions about their parts",
        "unke",
        "not stated",
        "TrustedLLM/UnKE on GitHub: final_data_v2.json",
    ),
}
