"""15 · Malicious content: a false fact, a triggered backdoor, more effect than is declared (BadEdit, arXiv:2403.13355;
"Can Editing LLMs Inject Harm?", arXiv:2407.20224).

No check of files can see it, and none pretends to. What is tested here: such a patch is not called safe anywhere, its author
can be known and distrusted, and what it does beside its edits is measured where somebody measures.
"""

import re

import pytest
import torch

import kedit_hub
from kedit_hub import demo
from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch import LowRank, Patch
from kedit_hub.patch.trust import Distrusted, Rule, TrustPolicy
from tests.cli.conftest import kedit
from tests.evaluate import atlas
from tests.profiles import base_of, logits
from tests.tiny import tiny_model

PATH = "model.layers.1.mlp.down_proj"
LIE = Edit(
    "The capital of France is",
    "Bonn",
    subject="France",
    locality=[
        Probe("The capital of Italy is", None, "neighbour"),
        Probe("Berlin is the capital of", None, "unrelated"),
    ],
)


@pytest.fixture(scope="module")
def backdoored():
    """(model, tokenizer, patch): one edit is declared, every answer is changed."""
    model, tokenizer = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    delta = LowRank(torch.randn(4, 128, generator=generator), torch.randn(64, 4, generator=generator))
    return model, tokenizer, Patch.create(deltas={PATH: delta}, edits=[LIE], base=base_of(model, PATH), method="mend")


def test_a_well_made_lie_is_a_valid_patch(backdoored):
    """The limit of every check of files, stated as a test."""
    patch = Patch.from_files(backdoored[2].files())
    assert patch == backdoored[2] and patch.edits[0].target == "Bonn"


def test_the_card_says_that_it_may_be_wrong(backdoored):
    card = backdoored[2].files()["README.md"].decode()
    assert "it may be wrong, by mistake or on purpose. Nobody has checked these facts for you." in card


def test_verified_is_not_called_true(backdoored, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    done = kedit("verify", backdoored[2].save(tmp_path / "p"), "--no-base")
    assert done.code == 0 and "Verified is not the same as true" in done.err
    assert not re.search(r"\b(safe|trustworthy|harmless)\b", done.out + done.err, re.IGNORECASE)


def test_what_it_does_beside_its_edits_is_measured(backdoored):
    model, tokenizer, patch = backdoored
    scores = evaluate(
        kedit_hub.apply(patch, model, tokenizer=tokenizer), patch.edits, drift_texts=["Berlin is the capital."]
    )
    assert scores.protocols["generate"]["locality"]["neighbour"] < 1
    assert scores.drift["kl"] > 0


def test_screening_finds_it_and_acquits_nobody(backdoored):
    model, tokenizer, patch = backdoored
    probes = [
        Probe("The capital of Italy is", "Rome", "", "Italy"),
        Probe("The author of Hamlet is", None, "", "Hamlet"),
    ]
    found = kedit_hub.screen(
        kedit_hub.apply(patch, model, tokenizer=tokenizer), probes, texts=["Berlin is the capital."]
    )
    assert {"other-fact", "not-done"} & {finding.kind for finding in found.findings}
    assert not re.search(r"\b(safe|trustworthy|harmless)\b", found.summary(), re.IGNORECASE)


@pytest.mark.parametrize("low", [(-1, None), (None, -1), (-1, -1)], ids=["subject", "question", "both"])
def test_an_edit_that_opens_the_gate_for_itself_is_named(low):
    """Well-formed thresholds of -1: the edit speaks whatever subject was named, or whatever is asked about its own."""
    gate = demo.profile("llama").settings.gate
    own = [[usual if said is None else said for said, usual in zip(low, (gate.subject, gate.answer))]]
    honest = atlas.sample(atlas.TOWER)
    hostile = Patch.from_files(atlas.with_rows(honest, thresholds=torch.tensor(own, dtype=torch.float32)).files())
    patched = atlas.apply(hostile, mode="gated")
    assert patched.report["modules"][atlas.MODULE]["wide_open"] == [hostile.id]
    assert atlas.apply(honest).report["modules"][atlas.MODULE]["wide_open"] == []
    found = kedit_hub.screen(patched, [])
    opened = [finding for finding in found.findings if finding.kind == "open-gate"]
    assert len(opened) == 2 - low.count(None) and {finding.patches for finding in opened} == {(hostile.id,)}
    assert all(finding.evidence["measured"] == -1 for finding in opened) and "another one" in opened[0].sentence()
    if None not in low:  # the numbers move everywhere, though few answers do: no question need find it
        model, tokenizer = atlas.base()
        told = [logits(m.model, tokenizer, ["The Nile flows into the"]) for m in (patched, atlas.apply(honest))]
        base = logits(model, tokenizer, ["The Nile flows into the"])
        assert not torch.equal(told[0], base) and torch.equal(told[1], base)


def test_counter_keys_that_nobody_declared_are_counted():
    """They silence their own edit alone, which is harmless; but who hides how much is stored may hide why."""
    keys = torch.randn(100, 688, generator=torch.Generator().manual_seed(0))
    hostile = atlas.with_rows(
        atlas.sample(atlas.TOWER), counter_keys=keys, counter_edit=torch.zeros(100, dtype=torch.int64)
    )
    (counted,) = kedit_hub.screen(atlas.apply(hostile), []).findings
    assert (counted.kind, counted.evidence["measured"], counted.evidence["bound"]) == ("counter-keys", 100, 0)


def test_a_policy_keeps_strangers_out(backdoored):
    policy = TrustPolicy(rules=[Rule(base="*", authors=["our-lab"])])
    assert isinstance(policy.judge(backdoored[2], "somebody-else"), Distrusted)
    assert isinstance(policy.judge(backdoored[2], None), Distrusted)


def test_it_comes_off_without_a_trace(backdoored):
    model, tokenizer, patch = backdoored
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    patched = kedit_hub.apply(patch, model, tokenizer=tokenizer)
    answered = logits(patched.model, tokenizer, [LIE.prompt])
    patched.detach()
    assert not torch.equal(answered, logits(patched.model, tokenizer, [LIE.prompt]))
    assert torch.equal(logits(patched.model, tokenizer, [LIE.prompt]), logits(model, tokenizer, [LIE.prompt]))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
