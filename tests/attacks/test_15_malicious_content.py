"""15 · Malicious content: a false fact, a triggered backdoor, more effect than is declared (BadEdit, arXiv:2403.13355;
"Can Editing LLMs Inject Harm?", arXiv:2407.20224).

No check of files can see it, and none pretends to. What is tested here: such a patch is not called safe anywhere, its author
can be known and distrusted, and what it does beside its edits is measured where somebody measures.
"""

import re

import pytest
import torch

import kedit_hub
from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch import LowRank, Patch
from kedit_hub.patch.trust import Distrusted, Rule, TrustPolicy
from tests.cli.conftest import kedit
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
