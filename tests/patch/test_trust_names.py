"""Names that look like trusted ones: never let in, and told apart in the refusal."""

import pytest

from kedit_hub.patch.trust import Distrusted, Rule, TrustPolicy, looks_like
from tests.patch.test_trust import KEYS, Double, why


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("EleuterAI/gpt-j-6B", "EleutherAI/gpt-j-6B"),  # a letter left out
        ("openai-communitty", "openai-community"),  # one added
        ("openai-cornunity"[:6] + "-c0mmunity", "openai-community"),  # 0 for o
        ("m1crosoft", "microsoft"),
        ("mlcrosoft", "microsoft"),  # l for i
        ("meta_llama", "meta-llama"),
        ("meta.llama", "meta-llama"),
        ("Meta-Llama", "meta-llama"),
        ("mircosoft", "microsoft"),  # neighbours swapped
        ("microsoft", "microsoft"),
        ("ｍicrosoft", "microsoft"),  # full width
        ("microsоft", "microsoft"),  # a Cyrillic letter
        ("0penai_commun1ty", "openai-community"),
        ("lab", "1ab"),
    ],
)
def test_alike(name, known):
    assert looks_like(name, known) and looks_like(known, name)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("google", "microsoft"),
        ("alice", "malice-x"),
        ("bob", "rob"),  # one letter of three is another name
        ("meta-llama", "llama-meta"),
        ("abcd", "badc"),  # two swaps
        ("", "microsoft"),
    ],
)
def test_not_alike(name, known):
    assert not looks_like(name, known)


def refusal(rule: Rule, patch: Double, author: str | None) -> str:
    verdict = TrustPolicy(keys=KEYS, rules=(rule,)).judge(patch, author)
    assert isinstance(verdict, Distrusted)
    return why(verdict)[0]


@pytest.mark.parametrize("author", ["openai_community", "0penai-community", "openai-comunity", "opena1-community"])
def test_an_author_who_looks_like_a_listed_one(author):
    told = refusal(Rule(base="*", authors=("them", "openai-community")), Double(), author)
    assert told.endswith(f"{author!r} (which looks like 'openai-community', and is not)")


@pytest.mark.parametrize("base", ["EleuterAI/gpt-j-6B", "eleutherai/gpt-j-6b", "EleutherAI/gpt_j_6B"])
def test_a_base_that_looks_like_a_listed_one(base):
    told = refusal(Rule(base="EleutherAI/gpt-j-6B", signers=("alice",)), Double((KEYS["alice"],), base), None)
    assert told.endswith(f"{base!r} (which looks like 'EleutherAI/gpt-j-6B', and is not)")


def test_other_names_are_not_called_alike():
    assert "looks like" not in refusal(Rule(base="*", authors=("openai-community",)), Double(), "mallory")
    assert "looks like" not in refusal(Rule(base="org/other", authors=("them",)), Double(), "them")


def test_only_ascii_letters_have_two_cases():
    """Kelvin sign and long s become k and s in Unicode's lower or folded case; on the Hub they are other names, if any."""
    for author in ("\u212aate", "u\u017fer"):
        rule = Rule(base="*", authors=("kate", "user"))
        assert "looks like" in refusal(rule, Double(), author)
