"""What a base says by itself: ordinary text of its own, and how it ends an answer. Law: read off the base, never off its name.

texts = sample_texts(model, tokenizer, 2000, seed=0)       # a corpus for models whose corpus is not at hand
end = answer_end(model, tokenizer, edits)                  # ".", a newline, EOS or ""
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kedit_hub.base.tokens import encode
from kedit_hub.editors.job import Job
from kedit_hub.edits import Edit
from kedit_hub.errors import ProfileError
from kedit_hub.evaluate.protocols import continuations, on_device, teacher_forced

ASKED = 48  # edits whose answers are looked at for how the base ends them


@torch.no_grad()
def sample_texts(model: Any, tokenizer: Any, count: int, *, seed: int, new_tokens: int = 40) -> list[str]:
    """What the base says by itself from BOS (or EOS where there is none): a corpus for models whose corpus is not at hand."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ProfileError("this tokenizer has neither BOS nor EOS to start sampling from: pass texts=[...]")
    device = model.get_input_embeddings().weight.device
    device = torch.device("cpu") if device.type == "meta" else device  # offloaded: it moves its inputs itself
    texts: list[str] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(4 * count // 128 + 4):
            if len(texts) >= count:
                break
            ids = torch.full((128, 1), start, device=device)
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else start,
            )  # fmt: skip
            texts += [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True) if text.strip()]
    return texts[:count]


def learnt_end(job: Job) -> str:
    """What is learnt after the targets of a job: as its base profile says, else as the base ends the answers it knows."""
    if job.profile is not None:
        return job.profile.settings.answer_end
    told = [replace(edit, ground_truth=edit.ground_truth or edit.target) for edit in job.edits]
    return answer_end(job.model, job.tokenizer, told)


def answer_end(model: Any, tokenizer: Any, edits: Sequence[Edit]) -> str:
    """What this base says right after an answer: ".", a newline or EOS when it is its choice after most true answers, or, for a base that
    does not know them, when it ends most of its own within a few tokens; else "".

    Edits learn it with their target; without it a changed answer runs on where the base would have stopped.
    """
    told = [edit for edit in edits if edit.ground_truth is not None][:ASKED]
    if not told:
        return ""
    ends = [end for end in (".", "\n", tokenizer.eos_token) if end]
    agreed = {end: 0 for end in ends}
    for end in ends:
        if end == tokenizer.eos_token:
            encoded = encode(tokenizer, *zip(*[(e.prompt, str(e.ground_truth)) for e in told]), model=model)
            batch = on_device(model, encoded)
            with torch.no_grad():
                logits = model(**batch.inputs(model)).logits
            last = batch.attention_mask.sum(1) - 1
            said = logits[torch.arange(len(told), device=logits.device), last.to(logits.device)].argmax(-1)
            agreed[end] = int((said == tokenizer.eos_token_id).sum())
        else:
            pairs = [(edit.prompt, f"{edit.ground_truth}{end}") for edit in told]
            agreed[end] = sum(a.predicted[-1] == a.labels[-1] for a in teacher_forced(model, tokenizer, pairs))
    best = max(ends, key=lambda end: agreed[end])
    if agreed[best] * 2 > len(told):
        return best
    # a base that does not know these answers still shows how it ends its own
    own = continuations(model, tokenizer, [edit.prompt for edit in told], new_tokens=8)
    return next((end for end in (".", "\n") if sum(end in text for text in own) * 2 > len(own)), "")
