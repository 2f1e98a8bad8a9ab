"""What a trust policy lets in, and the reason it gives for every rule that does not hold."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from kedit_hub.errors import TrustError
from kedit_hub.patch.trust import Distrusted, Reason, Rule, Trusted, TrustPolicy, explain

ALICE, BOB, EVE = "a1" * 32, "b2" * 32, "e3" * 32
KEYS = {"alice": ALICE, "bob": BOB}


@dataclass(frozen=True)
class Double:
    """All that a policy looks at."""

    signers: tuple[str, ...] = ()
    base: str = "org/base"
    id: str = "f" * 64

    @property
    def manifest(self):
        return SimpleNamespace(base=SimpleNamespace(id=self.base))


def policy(*rules: Rule) -> TrustPolicy:
    return TrustPolicy(keys=KEYS, rules=rules)


def why(verdict) -> list[str]:
    return [reason.why for reason in verdict.reasons]


@pytest.mark.parametrize(
    ("rule", "patch", "author", "reason"),
    [
        # signers: any of them, among any others
        (Rule(base="*", signers=("alice",)), Double((ALICE,)), None, "holds: signed by alice"),
        (Rule(base="*", signers=("bob", "alice")), Double((ALICE, EVE)), "eve", "holds: signed by alice"),
        (Rule(base="*", signers=("alice", "bob")), Double((ALICE, BOB)), None, "holds: signed by alice and bob"),
        # authors: whoever signed, in any case of letters
        (Rule(base="*", authors=("Our-Lab",)), Double(), "our-lab", "holds: in a repo of our-lab"),
        (Rule(base="*", authors=("them", "our-lab")), Double((EVE,)), "OUR-lab", "holds: in a repo of OUR-lab"),
        # both
        (
            Rule(base="org/base", signers=("alice",), authors=("our-lab",)),
            Double((ALICE,)),
            "our-lab",
            "holds: signed by alice, in a repo of our-lab",
        ),
        # the base, letter by letter
        (Rule(base="org/base", signers=("alice",)), Double((ALICE,)), None, "holds: signed by alice"),
    ],
)
def test_a_rule_that_holds(rule, patch, author, reason):
    assert policy(rule).judge(patch, author) == Trusted(1, (Reason(1, True, reason),))


@pytest.mark.parametrize(
    ("rule", "patch", "author", "reason"),
    [
        (
            Rule(base="*", signers=("alice", "bob")),
            Double(),
            "alice",  # a user of that name is not the key of that name
            "wants a signature by alice or bob, the patch is not signed",
        ),
        (
            Rule(base="*", signers=("alice",)),
            Double((BOB, EVE)),
            None,
            f"wants a signature by alice, the patch is signed by bob and {EVE}",
        ),
        (
            Rule(base="*", authors=("our-lab",)),
            Double((ALICE,)),
            None,
            "wants a branch or tag of a Hub repo of our-lab, the patch came from none",
        ),
        (
            Rule(base="*", authors=("our-lab", "them")),
            Double(),
            "mallory",
            "wants a branch or tag of a Hub repo of our-lab or them, the patch is in one of 'mallory'",
        ),
        (
            Rule(base="*", signers=("alice",), authors=("our-lab",)),
            Double((ALICE,)),
            "mallory",
            "wants a branch or tag of a Hub repo of our-lab, the patch is in one of 'mallory'",
        ),
        (
            Rule(base="*", signers=("alice",), authors=("our-lab",)),
            Double((BOB,)),
            "our-lab",
            "wants a signature by alice, the patch is signed by bob",
        ),
        (
            Rule(base="*", signers=("alice",), authors=("our-lab",)),
            Double(),
            None,
            "wants a signature by alice, the patch is not signed; wants a branch or tag of a Hub repo of our-lab, the patch came from none",
        ),
        (
            Rule(base="org/other", signers=("alice",)),
            Double((ALICE,)),
            None,
            "is for the base 'org/other', the patch for 'org/base'",
        ),
    ],
)
def test_a_rule_that_does_not_hold(rule, patch, author, reason):
    assert policy(rule).judge(patch, author) == Distrusted((Reason(1, False, reason),))


def test_one_rule_is_enough_and_every_rule_is_told():
    rules = (
        Rule(base="org/other", signers=("alice",)),
        Rule(base="*", signers=("bob",)),
        Rule(base="org/base", authors=("our-lab",)),
        Rule(base="*", authors=("them",)),
    )
    verdict = policy(*rules).judge(Double((BOB,)), "our-lab")
    assert isinstance(verdict, Trusted) and verdict.rule == 2
    assert [reason.holds for reason in verdict.reasons] == [False, True, True, False]
    assert explain(verdict).splitlines() == [
        "trusted by rule 2",
        "  rule 1: is for the base 'org/other', the patch for 'org/base'",
        "  rule 2: holds: signed by bob",
        "  rule 3: holds: in a repo of our-lab",
        "  rule 4: wants a branch or tag of a Hub repo of them, the patch is in one of 'our-lab'",
    ]
    assert explain(policy(*rules).judge(Double(), None)).splitlines()[0] == "not trusted: no rule holds"


def test_halves_of_two_rules_make_no_whole_one():
    """A signer of one rule and an author of another are nobody that a rule names."""
    rules = (
        Rule(base="*", signers=("alice",), authors=("our-lab",)),
        Rule(base="*", signers=("bob",), authors=("them",)),
    )
    assert isinstance(policy(*rules).judge(Double((ALICE,)), "them"), Distrusted)


def test_without_rules_nobody_is_trusted():
    verdict = policy().judge(Double((ALICE, BOB)), "our-lab")
    assert verdict == Distrusted(())
    assert explain(verdict) == "not trusted: the policy has no rules, and without rules nobody is trusted"


def test_a_refusal_holds_the_trace():
    rules = policy(Rule(base="*", signers=("alice",)), Rule(base="org/other", authors=("them",)))
    assert rules.require(Double((ALICE,)), None) == Trusted(1, rules.judge(Double((ALICE,)), None).reasons)
    with pytest.raises(TrustError) as refusal:
        rules.require(Double(), "mallory")
    told = str(refusal.value)
    assert told.startswith("the trust policy refuses patch ffffffffffff from a repo of 'mallory'; not trusted")
    assert "rule 1: wants a signature by alice" in told and "rule 2: is for the base 'org/other'" in told
    with pytest.raises(TrustError, match="patch ffffffffffff without an author; not trusted"):
        rules.require(Double(), None)
