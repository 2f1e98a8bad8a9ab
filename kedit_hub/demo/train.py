"""Train a demo model from nothing to knowing Atlas, in minutes on two CPU cores.

Law: one seed, one result; `out` holds a whole model or what it held before, never half of one.

    python -m kedit_hub.demo.train llama folder        # also: kedit demo train

Recipe: sentences sorted by length and never packed; loss on every token of a document, not only on the answer, so that
facts are looked up at the subject and can be edited there; Muon (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)
for the matrices of the blocks and AdamW for embeddings and norms; bfloat16 autocast over float32 weights; one cosine.
"""

import argparse
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kedit_hub.demo import measure, world
from kedit_hub.demo.corpus import FOREIGN_PREFIXES, Corpus
from kedit_hub.errors import KeditError

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
IGNORED = -100  # label of padding
EXAMINED = 2000  # cases of each kind on which recall is measured


@dataclass(frozen=True)
class Recipe:
    """Every number of one training run."""

    architecture: str  # "llama" | "gpt2"
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    steps: int
    vocabulary: int = 3072
    positions: int = 512
    tokens_per_step: int = 2048  # padding counts
    warmup: int = 40  # steps
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    weight_decay: float = 0.01


RECIPES = {
    "llama": Recipe("llama", layers=6, hidden=256, intermediate=688, heads=8, kv_heads=4, steps=1200),
    "gpt2": Recipe("gpt2", layers=6, hidden=192, intermediate=768, heads=6, kv_heads=6, steps=1200),
}


def train(
    architecture: str,
    out: Path,
    *,
    seed: int = 0,
    minutes: float | None = None,
    progress: bool = True,
    recipe: Recipe | None = None,
    atlas: world.World | None = None,
) -> dict[str, Any]:
    """Train a model, save it with its tokenizer as a plain transformers folder `out`, and return its recipe.json.

    minutes: CPU-minutes to spend; None takes the recipe's number of steps, fewer minutes take fewer steps.
    recipe, atlas: other sizes, another world. Raises KeditError for an unknown architecture and for an `out` that
    holds something other than a demo model.
    """
    if architecture not in RECIPES:
        raise KeditError(f"There is no demo architecture {architecture!r}. Choose one of {', '.join(RECIPES)}.")
    recipe = recipe or RECIPES[architecture]
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "recipe.json").exists()):
        raise KeditError(f"{str(out)!r} is or holds something else than a demo model. Choose an empty or a new folder.")
    corpus = Corpus.of(atlas or world.load(), seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        started = time.process_time()
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(seed)
            tokenizer = make_tokenizer(corpus, recipe)
            model = make_model(recipe, tokenizer)
            spent = optimise(model, tokenizer, corpus, recipe, minutes=minutes, progress=progress)
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        report = {
            "architecture": recipe.architecture,
            "seed": seed,
            **spent,
            "cpu_minutes": round((time.process_time() - started) / 60, 2),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "file_bytes": (folder / "model.safetensors").stat().st_size,
            "settings": asdict(recipe),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "world_digest": corpus.world.digest(),
            "corpus_digest": corpus.digest(),
            "facts": len(corpus.world.facts),
            "sentences": len(corpus.sentences()),
            **examine(folder, corpus),
        }
        (folder / "recipe.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
        replaced = Path(scratch) / "replaced"
        if out.exists():
            out.rename(replaced)
        try:
            folder.rename(out)
        except BaseException:
            if replaced.exists():
                replaced.rename(out)
            raise
    return report


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread: sums in a fixed order, so one result on any number of cores; matrices this small gain little
    from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_tokenizer(corpus: Corpus, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the corpus; the begin token is added to every text, the end token to none."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*corpus.sentences(), *FOREIGN_PREFIXES], trainer)
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised float32 model. Eager attention: at sentence length it trains faster on CPU than SDPA."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    }
    if recipe.architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_layer=recipe.layers,
                n_embd=recipe.hidden,
                n_inner=recipe.intermediate,
                n_head=recipe.heads,
                n_positions=recipe.positions,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **shared,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=recipe.layers,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=recipe.positions,
            **shared,
        )
    )


def optimise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    recipe: Recipe,
    *,
    minutes: float | None,
    progress: bool,
) -> dict[str, int]:
    """Train `model` in place. Returns the steps made and the tokens read."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and is_block_weight(name)]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and is_block_weight(name))]
    optimisers = [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay),
    ]
    peaks = [recipe.muon_lr, recipe.adam_lr]
    steps, tokens = recipe.steps, 0
    bar = Progress(console=Console(stderr=True)) if progress else None
    with bar or nullcontext():
        task = bar.add_task(f"training {recipe.architecture}", total=steps) if bar else None
        started = time.process_time()
        model.train()
        for step, rows in enumerate(batches(tokenizer, corpus, recipe)):
            if minutes is not None and step == recipe.warmup:  # the pace is known: fit the cosine into the budget
                affordable = int(minutes * 60 / (time.process_time() - started) * step)
                steps = max(step + 1, min(recipe.steps, affordable))
            if step == steps:
                break
            for optimiser, peak in zip(optimisers, peaks):
                optimiser.param_groups[0]["lr"] = peak * pace(step, steps, recipe.warmup)
            ids = measure.padded(rows, tokenizer.eos_token_id)  # (B, T)
            labels = measure.padded([row[1:] for row in rows], IGNORED)  # (B, T-1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(ids[:, :-1], use_cache=False).logits  # (B, T-1, V)
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
            loss.backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            tokens += int((labels != IGNORED).sum())
            if bar and task is not None:
                bar.update(task, completed=step + 1, total=steps, description=f"training, loss {loss.item():.3f}")
    model.eval()
    return {"steps": steps, "tokens": tokens}


def is_block_weight(name: str) -> bool:
    """Whether a parameter lies in a transformer block (Muon is not for embeddings)."""
    return ".layers." in name or ".h." in name


def pace(step: int, steps: int, warmup: int) -> float:
    """Learning rate as a share of its peak: a linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batches(tokenizer: PreTrainedTokenizerFast, corpus: Corpus, recipe: Recipe) -> Iterator[list[list[int]]]:
    """Rows of token ids, epoch after epoch: each batch holds documents of like length and at most tokens_per_step."""
    for epoch in range(1_000_000):
        rows = [
            [*ids, tokenizer.eos_token_id]
            for ids in tokenizer(corpus.documents(epoch), return_attention_mask=False).input_ids
        ]
        rows.sort(key=len)  # stable: the shuffled order is kept within a length
        cut: list[list[list[int]]] = [[]]
        for row in rows:
            if (len(cut[-1]) + 1) * len(row) > recipe.tokens_per_step and cut[-1]:
                cut.append([])
            cut[-1].append(row)
        random.Random(f"{corpus.seed} {epoch} batches").shuffle(cut)
        yield from cut


def examine(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """Recall of the saved float16 file, loaded as float32, and the causal swap."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    own = tuple(corpus.world.narratives) or corpus.alias_sentences
    cases = {
        "trained": corpus.trained,
        "unseen_phrasing": corpus.unseen,
        "trained_after_prefix": corpus.prefixed(corpus.trained, own),
        "unseen_phrasing_after_prefix": corpus.prefixed(corpus.unseen, own),
        "trained_after_foreign_prefix": corpus.prefixed(corpus.trained, FOREIGN_PREFIXES),
        "two_hop_trained": corpus.hops,
        "two_hop_held_out": corpus.held_out_hops,
        "chain_trained": corpus.chains,
        "chain_held_out": corpus.held_out_chains,
        "chain_with_another_middle": corpus.swapped_chains(),
        "alias_new_phrasing": corpus.alias_cases(),
    }
    sample = {name: random.Random(corpus.seed).sample(some, min(len(some), EXAMINED)) for name, some in cases.items()}
    return {
        "recall": {name: measure.recall(model, tokenizer, some) for name, some in sample.items() if some},
        "causal_swap": measure.causal_swap(model, tokenizer, corpus.world, seed=corpus.seed),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a demo model.")
    parser.add_argument("architecture", choices=list(RECIPES))
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="CPU-minutes to spend; all the recipe's steps by default")
    options = parser.parse_args()
    train(options.architecture, options.out, seed=options.seed, minutes=options.minutes)
