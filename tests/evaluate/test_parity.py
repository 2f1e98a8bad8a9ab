"""The fast metrics against the slow references of benchmarks/, which are written from the definitions: 50 invented records."""

import copy

import pytest
import torch

from benchmarks.slow_reference import averages, ngram_entropy, record
from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate import metrics
from kedit_hub.evaluate.suites import evaluate
from tests.tiny import tiny_model

LANDS = ("Italy", "Spain", "Japan", "France", "Germany", "Brazil", "Switzerland", "Poland", "Zembla", "Ruritania")
ASKED = (
    ("The capital of {} is", "{}, the land whose seat of government is", "city"),
    ("The language of {} is", "People born in {} speak", "language"),
    ("{} lies south of", "On the map, go north from {} and you reach", "border"),
    ("The author of the anthem of {} is called", "Who wrote the anthem of {}? It was", "author"),
    ("In {}, most people eat", "The daily bread of {} is", "dish"),
)
ANSWERS = (
    "Paris",
    "Rome",
    "São Paulo",
    "Japanese",
    "William Shakespeare",
    "a stew of beans, rice and garlic",
    "Zürich",
)


def invented():
    """Each record with its own answers of one to many tokens, so that rows of every length share a batch."""
    for i, land in enumerate(LANDS):
        for j, (prompt, rephrase, relation) in enumerate(ASKED):
            new, old, true = (ANSWERS[(i + j + k) % len(ANSWERS)] for k in (0, 2, 3))
            neighbour = prompt.format(
                (*LANDS, "Graustark", "Freedonia", "Sylvania")[(4 * i + j) % 13]
            )  # some are edited too
            yield Edit(
                prompt.format(land), new, land, old, (rephrase.format(land),), (Probe(neighbour, true, "neighbour"),), (), relation
            )  # fmt: skip


EDITS = list(invented())


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_every_score_and_every_average(model_type):
    base, tokenizer = tiny_model(model_type)
    edited = copy.deepcopy(base)
    layer = edited.model.layers[1].mlp.down_proj if model_type == "llama" else edited.transformer.h[1].mlp.c_proj
    with torch.no_grad():
        layer.weight += torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    fast = evaluate(
        edited, EDITS, tokenizer=tokenizer, base=base, protocols=("tf-token", "nll-pair"), drift_texts=[], batch_size=16
    )
    slow = [record(edited, base, tokenizer, edit, EDITS) for edit in EDITS]
    assert len(slow) == len(fast.per_edit) == 50
    for told, own in zip(fast.per_edit, slow):
        for i, question in enumerate(told.questions):
            assert question.scores["tf-token"] == own.token[i]
            assert ("tf-token" not in question.dropped) == (own.token_known[i] and not own.edited[i])
            assert question.scores.get("nll-pair") == own.pair[i]
            assert question.nll_after == pytest.approx(own.nll[i], abs=1e-5)
    expected = averages(slow)
    assert 0 < expected["nll-pair"]["reliability"] < 1 and 0 < expected["nll-pair"]["locality"] < 1
    assert 0 < sum(own.edited[2] for own in slow) < 50
    assert any(0 < own.token[2] < 1 for own in slow)  # the noise changed some tokens and not others
    for protocol in expected:
        sheet = fast.protocols[protocol]
        assert sheet["reliability"] == pytest.approx(expected[protocol]["reliability"], abs=1e-12)
        assert sheet["generalization"] == pytest.approx(expected[protocol]["generalization"], abs=1e-12)
        assert sheet["locality"]["neighbour"] == pytest.approx(expected[protocol]["locality"], abs=1e-12)
    assert fast.protocols["nll-pair"]["score"] == pytest.approx(expected["nll-pair"]["S"], abs=1e-12)


def test_ngram_entropy():
    texts = [f"{edit.prompt} {edit.target}. {edit.rephrases[0]} {edit.target}, {edit.prompt}" for edit in EDITS]
    texts += ["", "one", "one two", "a a a a a a", "L'État, c'est moi! L'État?"]
    for text in texts:
        assert metrics.ngram_entropy(text) == pytest.approx(ngram_entropy(text), abs=1e-12)
