"""What a trained demo model knows, and where it looks it up.

Law: everything is greedy and teacher-forced in one pass: under greedy decoding a text is generated exactly when each of
its tokens is the arg max after the true ones before it, so exact recall here is exact match of what `generate` says.

    recall(model, tokenizer, corpus.cases)            # {"exact": .99, "token": .995, "stop": 1.0, "n": 2000}
    causal_swap(model, tokenizer, world, seed=0)      # {"subject": [...], "answer": [...]}, one number for each layer
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
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
    here, there = (_together(sides) for sides in zip(*chosen))
    backbone: Any = model.base_model
    blocks = backbone.layers if hasattr(backbone, "layers") else backbone.h  # Llama, GPT-2
    rows = torch.arange(len(chosen))
    flips: dict[str, list[float]] = {"subject": [], "answer": []}
    for block, donor in zip(blocks, _block_outputs(model, blocks, there.ids)):
        for site, shares in flips.items():
            at, source = (here.subject, there.subject) if site == "subject" else (here.last, there.last)

            def put(module: Any, args: Any, output: Any, at: Tensor = at, state: Tensor = donor[rows, source]) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden[rows, at] = state

            handle = block.register_forward_hook(put)
            try:
                said = model(here.ids, use_cache=False).logits[rows, here.last].argmax(-1)
            finally:
                handle.remove()
            shares.append(round((said == there.answer).double().mean().item(), 3))
    return {"pairs": len(chosen), **flips}


@dataclass(frozen=True)
class _Side:
    """One prompt of N pairs each."""

    ids: Tensor  # (N, T), padded on the right
    subject: Tensor  # (N,) position of the subject's last token
    last: Tensor  # (N,) of the prompt's
    answer: Tensor  # (N,) first token of the answer


def _together(sides: Sequence[tuple[list[int], int, int]]) -> _Side:
    prompts, subjects, answers = zip(*sides)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return _Side(padded(prompts, 0), torch.tensor(subjects), lengths - 1, torch.tensor(answers))


def _swap_pairs(
    tokenizer: PreTrainedTokenizerBase, world: World, seed: int, pairs: int
) -> list[list[tuple[list[int], int, int]]]:
    """Pairs of prompts (tokens, subject's last position, first answer token) in the same trained phrasing."""
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
            sides.append((prompt, subject_last, ids[len(prompt)]))
        if sides[0][2] != sides[1][2] and all(subject < len(prompt) - 1 for prompt, subject, _ in sides):
            chosen.append(sides)
        if len(chosen) == pairs:
            break
    return chosen


def _block_outputs(model: PreTrainedModel, blocks: Sequence[nn.Module], ids: Tensor) -> list[Tensor]:
    """Hidden states (N, T, m) after each block."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return kept
