"""The arithmetic of scoring: answers compared as text, averages, and how sure an average is.

Pure functions of strings and floats. Law kept here: `contains` never stands in for `exact_match`; they are two numbers.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np

# Marks that may surround an answer without changing it. "+", "#", "%" and currency signs belong to it (C++, C#, 5 %).
_EDGE = " \t\r\n.,;:!?…\"'`´“”„‘’«»()[]"


def normalise(text: str) -> str:
    """The form in which two answers are compared: Unicode NFKC, case folded, spaces collapsed, no space before a
    punctuation mark, no punctuation or quotes around it, no leading article.

    Weaker than SQuAD's normalisation (Rajpurkar et al. 2016), which drops all punctuation and so reads "C++" as "C".
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ([.,;:!?])", r"\1", text)
    text = text.strip(_EDGE)
    return re.sub(r"^(the|an|a) (?=\S)", "", text)


def exact_match(answer: str, target: str) -> bool:
    """True if both are the same answer after `normalise`; an empty answer never matches."""
    return normalise(answer) == normalise(target) != ""


def contains(answer: str, target: str) -> bool:
    """True if the target stands in the answer as whole words. Has false positives ("not Paris"): report it apart."""
    wanted = normalise(target)
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalise(answer)) is not None


def ngram_entropy(text: str) -> float:
    """Fluency of a continuation, in bits: mean of 2/3 H_2 and 4/3 H_3 with H_n = -sum f log2 f over the frequencies f
    of its word n-grams (Zhang et al. 2018; Meng et al. 2022). A text that repeats itself scores low; one too short
    to have an n-gram scores 0 for that n.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return fmean([weight * _entropy(words, n) for n, weight in ((2, 2 / 3), (3, 4 / 3))])


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of one or more numbers in [0, 1]: 0 as soon as one of them is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def bootstrap_interval(
    values: Sequence[float], *, seed: int, samples: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of `values` (Efron 1979); None for fewer than two of them."""
    if len(values) < 2:
        return None
    draw = np.random.default_rng(seed)
    data = np.asarray(values, dtype=np.float64)
    means = [data[draw.integers(len(data), size=len(data))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
