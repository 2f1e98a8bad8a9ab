"""The arithmetic of scoring, against numbers worked out by hand."""

import math

import pytest

from kedit_hub.evaluate.metrics import (
    bootstrap_interval,
    contains,
    exact_match,
    harmonic_mean,
    ngram_entropy,
    normalise,
)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        (" Paris", "Paris"),
        ("paris.", "Paris"),
        ('"Paris"!', "Paris"),
        ("The Netherlands", "Netherlands"),
        ("New   York\tCity", "New York City"),
        ("Washington , D.C", "Washington, D.C."),
        ("ﬁlm", "film"),
        ("STRASSE", "straße"),
    ],
)
def test_same_answer(answer, target):
    assert exact_match(answer, target)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Paris, France", "Paris"),
        ("C", "C++"),
        ("Pari", "Paris"),
        ("", "Paris"),
        ("...", "?"),
        ("a", "the"),
        ("5", "5%"),
    ],
)
def test_other_answer(answer, target):
    assert not exact_match(answer, target)


def test_contains_wants_whole_words():
    assert contains("It is in Paris, France", "paris")
    assert contains("He writes C++ daily", "C++")
    assert not contains("Parisian", "Paris")
    assert not contains("anything", "...")


def test_normalise_keeps_the_inside():
    assert normalise("  J. K.  Rowling. ") == "j. k. rowling"


def test_ngram_entropy_by_hand():
    # a b a b a: bigrams ab ba ab ba -> 1 bit; trigrams aba bab aba -> -(2/3 log2 2/3 + 1/3 log2 1/3)
    trigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * trigrams) / 2)
    assert ngram_entropy("a a a a a a") == 0
    assert ngram_entropy("") == 0
    assert ngram_entropy("one two three four five") > ngram_entropy("one two one two one")


def test_harmonic_mean():
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.9, 0.0, 1.0]) == 0


def test_bootstrap_interval():
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval(values, seed=1)
    assert low < 0.5 < high
    assert 0.15 < high - low < 0.25  # 2 * 1.96 * 0.5 / sqrt(100) = 0.196
    assert bootstrap_interval(values, seed=1) == (low, high)
    assert bootstrap_interval([0.25, 0.25, 0.25], seed=0) == (0.25, 0.25)
    assert bootstrap_interval([1.0], seed=0) is None
    assert bootstrap_interval([], seed=0) is None
