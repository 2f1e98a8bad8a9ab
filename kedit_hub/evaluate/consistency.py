"""Does what the model writes about the subject fit its new fact? TF-IDF cosine between continuations and reference texts (Meng et al.
2022, "consistency" or RS). Law: the number goes with the digest of the references it was measured on; other texts, another number.

    consistency(asked, [Reference(prompts=("Danielle Darrieux is known for",), texts=("English is a West Germanic language ...",))])

As published, the prompts with their 100-token continuations are one text, drawn from the 5 likeliest tokens (seeded here), and the
references of the new answer are the other. Not as published: the document frequencies are those of the references given, not of
Wikipedia, so compare only numbers with equal `texts_sha256`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kedit_hub.base.tokens import join
from kedit_hub.evaluate.asking import Asking, Who
from kedit_hub.evaluate.drift import texts_digest

NEW_TOKENS, TOP_K = 100, 5


@dataclass(frozen=True)
class Reference:
    """One edit's case. prompts: about its subject, to be continued.  texts: about subjects for which the new answer is true."""

    prompts: tuple[str, ...]
    texts: tuple[str, ...]


class TfIdf:
    """Weights of words: count in the text * (ln((1 + n) / (1 + df)) + 1), df of the n documents having the word. Words are runs of
    two or more letters or digits, in lower case (the defaults of scikit-learn, which the published scores were made with)."""

    def __init__(self, documents: Iterable[str]):
        found = [set(_words(document)) for document in documents]
        self.n = len(found)
        self.df = Counter(word for words in found for word in words)

    def vector(self, text: str) -> dict[str, float]:
        return {
            word: count * (math.log((1 + self.n) / (1 + self.df[word])) + 1)
            for word, count in Counter(_words(text)).items()
        }

    def cosine(self, a: str, b: str) -> float:
        """In [0, 1]; 0 where one of the texts has no word."""
        one, two = self.vector(a), self.vector(b)
        product = sum(weight * two.get(word, 0.0) for word, weight in one.items())
        norms = math.hypot(*one.values()) * math.hypot(*two.values())
        return min(1.0, product / norms) if norms else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\b\w\w+\b", text.lower())


def consistency(asked: Asking, references: Sequence[Reference]) -> dict[str, Any]:
    """{"before", "after": mean cosine over the cases, before None without a base, "n": cases, "texts": of them all, "texts_sha256"}.

    Cases without prompts or without texts do not count.
    """
    cases = [case for case in references if case.prompts and case.texts]
    texts = sorted({text for case in cases for text in case.texts})
    weights = TfIdf(texts)

    def mean(who: Who) -> float | None:
        prompts = [prompt for case in cases for prompt in case.prompts]
        told = asked.continuations(who, prompts, NEW_TOKENS, TOP_K)
        written = [" ".join(join(prompt, told[prompt]) for prompt in case.prompts) for case in cases]
        return fmean(weights.cosine(own, " ".join(case.texts)) for own, case in zip(written, cases)) if cases else None

    return {
        "before": None if asked.unedited is None else mean("base"),
        "after": mean("edited"),
        "n": len(cases),
        "texts": len(texts),
        "texts_sha256": texts_digest(texts),
    }
