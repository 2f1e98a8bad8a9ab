"""lm-evaluation-harness takes a patched model as it takes any other: general ability is measured with its tasks, here with a local one."""

import json
import random

import pytest

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.demo import world

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
SAID = """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 16, do_sample: false}
filter_list:
  - name: stripped
    filter:
      - {function: remove_whitespace}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
OTHERS = 60


@pytest.fixture
def harness(monkeypatch, tmp_path):
    """lm_eval, without a network and with a cache of its own."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'kedit-hub[harness]'")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def measure(model, tokenizer, folder, task):
        """Accuracy on the edited and on the other facts."""
        told = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu"),
            tasks=[task],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )["samples"][task]
        metric = "acc" if task == "choice" else "exact_match"
        return [
            sum(one[metric] for one in told if one["doc"]["edited"] == edited)
            / sum(one["doc"]["edited"] == edited for one in told)
            for edited in (True, False)
        ]

    return measure


EDITS = kedit_hub.demo.edits("test")[:8]


@pytest.fixture(scope="module")
def edited():
    """A base, its tokenizer, and a patch."""
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    return model, tokenizer, kedit_hub.edit(model, EDITS, tokenizer=tokenizer, progress=False)


@pytest.fixture
def tasks(tmp_path):
    """A folder of two tasks, the same facts as a choice of four and as a question; those of the edits, and others."""
    atlas, rng = world.load(), random.Random(0)
    changed = {(edit.subject, edit.relation) for edit in EDITS}
    facts = [fact for fact in atlas.facts if (fact.subject, fact.relation) in changed]
    facts += rng.sample([fact for fact in atlas.facts if (fact.subject, fact.relation) not in changed], OTHERS)
    rows = []
    for fact in facts:
        wrong = sorted({other.object for other in atlas.facts if other.relation == fact.relation} - {fact.object})
        choices = [fact.object, *rng.sample(wrong, min(3, len(wrong)))]
        rng.shuffle(choices)
        rows.append({
            "question": atlas.split(fact, world.SHIPPED_SEED)[0][0].format(fact.subject), "choices": choices,
            "label": choices.index(fact.object), "answer": fact.object, "edited": (fact.subject, fact.relation) in changed,
        })  # fmt: skip
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for name, more in (("choice", CHOICE), ("said", SAID)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=file) + more)
    return tmp_path


@pytest.mark.parametrize("task", ["choice", "said"])
@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_the_harness_measures_a_patched_model(harness, tasks, edited, mode, task):
    model, tokenizer, patch = edited
    m = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode=mode)
    on_edited, on_others = harness(m.model, m.tokenizer, tasks, task)
    with m.disabled():
        base_on_edited, base_on_others = harness(m.model, m.tokenizer, tasks, task)
    assert base_on_edited == 1 and base_on_others > 0.95
    assert on_edited < 0.3  # it no longer gives the old answers
    assert on_others > base_on_others - 0.05
