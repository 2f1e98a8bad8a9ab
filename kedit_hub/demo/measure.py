"""What a trained demo model knows, and where it looks it up.

Law: everything is greedy and teacher-forced in one pass: under greedy decoding a text is generated exactly when each of
its tokens is the arg max after the true ones before it, so exact recall here is exact match of what `generate` says.

    recall(model, tokenizer, corpus.cases)            # {"exact": .99, "token": .995, "stop": 1.0, "n": 2000}
    causal_swap(model, tokenizer, facts, relations)   # {"subject": [...], "answer": [...]}, one number for each layer
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_hub.demo.corpus import Case
from kedit_hub.demo.world import Fact, World

BATCH = 128


@torch.inference_mode()
def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]) -> dict[str, float]:
    """Share of cases recalled.

    exact: the whole object and the "." after it; token: of the objects' tokens, each after the true ones before it;
    stop: of the exact ones, those followed by the end token; n: number of cases.
    """
    exact = right = tokens = stopped = 0
    ordered = sorted(cases, key=lambda case: len(case.prompt))
    for cases_of_batch in (ordered[at : at + BATCH] for at in range(0, len(ordered), BATCH)):
        starts = [len(tokenizer(case.prompt).input_ids) for case in cases_of_batch]
        texts = [tokenizer(f"{case.prompt} {case.target}.").input_ids for case in cases_of_batch]
        rows = [[*ids, tokenizer.eos_token_id] for ids in texts]
        said = (
            model(padded(rows, tokenizer.eos_token_id), use_cache=False).logits.argmax(-1).tolist()
        )  # (B, T): next tokens
        for row, start, hit in zip(rows, starts, said):
            # answer tokens row[start:-2], then "." and the end token, each predicted one position earlier
            agrees = [hit[at - 1] == row[at] for at in range(start, len(row))]
            right += sum(agrees[:-2])
            tokens += len(agrees) - 2
            exact += all(agrees[:-1])
            stopped += all(agrees)
    return {
        "exact": round(exact / len(cases), 4),
        "token": round(right / tokens, 4),
        "stop": round(stopped / max(exact, 1), 4),
        "n": len(cases),
    }


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Token rows as one (B, T) tensor, padded on the right: under a causal mask padding touches no real token, so
    any id will do and no attention mask is needed."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


@torch.inference_mode()
def causal_swap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, *, seed: int, pairs: int = 100
) -> dict[str, Any]:
    """Where the answer is looked up: the share of answers that flip when one residual is swapped.

    For two facts of one relation with different first answer tokens, the output of block l on the second prompt is put
    into the run of the first, at the subject's last token ("subject") or at the last prompt token ("answer"). A flip
    is when the first answer token becomes the second fact's. A cut-down form of causal tracing (Meng et al. 2022).
    """
    chosen = _swap_pairs(tokenizer, world, seed, pairs)
    backbone: Any = model.base_model
    blocks = backbone.layers if hasattr(backbone, "layers") else backbone.h  # Llama, GPT-2
    flips: dict[str, list[float]] = {"subject": [], "answer": []}
    for block in blocks:
        counts = {"subject": 0, "answer": 0}
        for here, there in chosen:
            donor = _block_output(model, block, there)
            for site in counts:
                at, source = (here["subject"], there["subject"]) if site == "subject" else (-1, -1)

                def put(module: Any, args: Any, output: Any, at: int = at, state: Tensor = donor[source]) -> Any:
                    hidden = output[0] if isinstance(output, tuple) else output
                    hidden[:, at] = state

                handle = block.register_forward_hook(put)
                try:
                    said = model(here["ids"], use_cache=False).logits[0, -1].argmax().item()
                finally:
                    handle.remove()
                counts[site] += said == there["answer"]
        for site, count in counts.items():
            flips[site].append(round(count / len(chosen), 3))
    return {"pairs": len(chosen), **flips}


def _swap_pairs(
    tokenizer: PreTrainedTokenizerBase, world: World, seed: int, pairs: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of prompts (ids (1, T), subject's last position, first answer token) in the same trained phrasing."""
    rng = random.Random(seed)
    by_phrasing: dict[str, list[Fact]] = {}
    for fact in world.facts:
        for phrasing in world.split(fact, seed)[0]:
            by_phrasing.setdefault(phrasing, []).append(fact)
    chosen = []
    phrasings = [phrasing for phrasing, facts in by_phrasing.items() if len(facts) > 1]
    for _ in range(20 * pairs):
        phrasing = rng.choice(phrasings)
        sides = []
        for fact in rng.sample(by_phrasing[phrasing], 2):
            ids = tokenizer(f"{phrasing.format(fact.subject)} {fact.object}").input_ids
            prompt = tokenizer(phrasing.format(fact.subject)).input_ids
            subject_last = len(tokenizer(phrasing.split("{}")[0] + fact.subject).input_ids) - 1
            sides.append({"ids": torch.tensor([prompt]), "subject": subject_last, "answer": ids[len(prompt)]})
        if sides[0]["answer"] != sides[1]["answer"] and all(
            side["subject"] < side["ids"].shape[1] - 1 for side in sides
        ):
            chosen.append((sides[0], sides[1]))
        if len(chosen) == pairs:
            break
    return chosen


def _block_output(model: PreTrainedModel, block: torch.nn.Module, side: dict[str, Any]) -> Tensor:
    """Hidden states (T, m) after `block` on one prompt."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    handle = block.register_forward_hook(keep)
    try:
        model(side["ids"], use_cache=False)
    finally:
        handle.remove()
    return kept[0]
