"""Do the fast metrics give what their definitions say? Every record of a file, scored by `kedit_hub.evaluate` in batches and by
slow_reference.py one by one, on three models with three tokenizers.

    python benchmarks/parity.py RECORDS.json MODELS_FOLDER [--records 1000]

RECORDS.json: CounterFact in its flat form. MODELS_FOLDER holds counterfact-4m and gpt2-tokenizer. The edited model is the base with noise
on the MLP output of one block, so that answers and locality change; what was edited does not matter for parity.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from common import Report, quiet, timed
from slow_reference import Slow, averages, ngram_entropy, record
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.evaluate import metrics
from kedit_hub.evaluate.protocols import continuations
from kedit_hub.evaluate.scores import Scores

DOUBLE = 100  # records scored again with float64 weights


def tiny_gpt2(folder: Path) -> tuple[Any, Any]:
    """Random weights under the real byte-level BPE of GPT-2."""
    tokenizer = GPT2Tokenizer.from_pretrained(folder / "gpt2-tokenizer")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=2, n_embd=32, n_head=2, n_positions=256))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval(), tokenizer


def noisy(model: Any) -> Any:
    """The model after a change that is large enough to be seen in most answers."""
    edited = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(1)
    layers = edited.transformer.h if hasattr(edited, "transformer") else edited.model.layers
    mlp = layers[len(layers) // 2].mlp
    weight = (mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj).weight
    with torch.no_grad():
        weight += torch.randn(weight.shape, generator=draw) * weight.std() * 0.7
    return edited


def both_ways(
    edited: Any, base: Any, tokenizer: Any, edits: list[kedit_hub.Edit]
) -> tuple[Scores, list[Slow], float, float]:
    """(fast, slow, seconds of each)."""
    with timed() as seconds:
        fast = kedit_hub.evaluate(
            edited, edits, tokenizer=tokenizer, base=base, protocols=("tf-token", "nll-pair"), drift_texts=[]
        )
        fast_s = seconds()
    with timed() as seconds:
        slow = [record(edited, base, tokenizer, edit, edits) for edit in edits]
        return fast, slow, fast_s, seconds()


def compare(fast: Scores, slow: list[Slow]) -> tuple[dict[str, float], int]:
    """(largest difference by metric, questions compared)."""
    worst = {"tf-token score": 0.0, "nll-pair score": 0.0, "mean NLL (nats)": 0.0, "averages": 0.0}
    count = 0
    for edit, own in zip(fast.per_edit, slow, strict=True):
        for i, question in enumerate(edit.questions):
            count += 1
            for name, score in (("tf-token", own.token[i]), ("nll-pair", own.pair[i])):
                worst[f"{name} score"] = max(worst[f"{name} score"], _apart(question.scores.get(name), score))
            if ("tf-token" in question.dropped) != (not own.token_known[i] or own.edited[i]):
                worst["tf-token score"] = float("inf")
            for answer, nll in own.nll[i].items():
                worst["mean NLL (nats)"] = max(worst["mean NLL (nats)"], _apart(question.nll_after[answer], nll))
    for protocol, expected in averages(slow).items():
        sheet = fast.protocols[protocol]
        for name, value in expected.items():
            told = sheet["score"] if name == "S" else sheet[name]
            told = told["neighbour"] if name == "locality" else told
            worst["averages"] = max(worst["averages"], _apart(told, value))
    return worst, count


def _apart(a: float | None, b: float | None) -> float:
    """Infinite where only one of them is there."""
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return abs(a - b)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("records")
    parser.add_argument("models")
    parser.add_argument("--records", dest="count", type=int, default=1000)
    arguments = parser.parse_args()
    quiet()
    report = Report("parity", "Metrics in batches against slow references written from their definitions")
    edits = kedit_hub.read_edits(arguments.records)[: arguments.count]
    folder = Path(arguments.models)
    models = {
        "Atlas (Llama, 5.1 M, own BPE of 3,072)": load_model("kedit-hub/atlas-llama"),
        "counterfact-4m (Llama, 4.3 M, own BPE of 5,000)": load_model(folder / "counterfact-4m"),
        "random GPT-2 (2 x 32, real BPE of 50,257)": tiny_gpt2(folder),
    }
    report.say(
        f"{len(edits)} CounterFact records, each with prompt, rephrase and neighbour; batches of 64 against one text at a time, "
        "log-softmax in float64; the edited model is the base with noise on one MLP."
    )
    rows, doubles, entropies = [], [], []
    for name, (model, tokenizer) in models.items():
        edited, base = noisy(model.float()), model.float()
        fast, slow, fast_s, slow_s = both_ways(edited, base, tokenizer, edits)
        worst, count = compare(fast, slow)
        known = sum(known for one in slow for known, role in zip(one.token_known, one.roles) if role == "locality")
        largest = max(nll for one in slow for told in one.nll for nll in told.values())
        purpose = sum(sum(one.edited) for one in slow)
        rows.append(
            [
                name,
                count,
                *(f"{value:.1e}" if value else "0" for value in worst.values()),
                f"{largest:.1f}",
                known,
                purpose,
                f"{fast_s:.0f}",
                f"{slow_s:.0f}",
            ]
        )
        exact, _ = compare(*both_ways(edited.double(), base.double(), tokenizer, edits[:DOUBLE])[:2])
        doubles.append([name, 3 * len(edits[:DOUBLE]), *(f"{value:.1e}" if value else "0" for value in exact.values())])
        base.float(), edited.float()
        texts = continuations(edited, tokenizer, [edit.prompt for edit in edits[:32]], new_tokens=100)
        texts += [f"{edit.prompt} {edit.target}. {' '.join(edit.rephrases)} {edit.prompt}" for edit in edits]
        entropies.append(
            [name, len(texts), f"{max(abs(metrics.ngram_entropy(t) - ngram_entropy(t)) for t in texts):.1e}"]
        )
    report.say()
    report.say("Largest absolute difference over all questions (scores, NLL) and over the averages of the sheet:")
    columns = ("model", "questions", "tf-token score", "nll-pair score", "mean NLL (nats)", "averages")
    report.table([*columns, "largest NLL", "neighbours the base knew", "edited on purpose", "fast, s", "slow, s"], rows)
    report.say(
        "In float32 a text alone and the same text in a batch are multiplied in other shapes and round otherwise: the NLL differs in its "
        f"last digits. The first {DOUBLE} records with weights in float64, where that is out of the way:"
    )
    report.table(columns, doubles)
    report.say("n-gram entropy, on 32 greedy continuations of 100 tokens and on every record as a text:")
    report.table(["model", "texts", "bits"], entropies)
    report.save()


if __name__ == "__main__":
    main()
