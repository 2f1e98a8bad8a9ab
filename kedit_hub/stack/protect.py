"""What must not move: the keys that the base reads on its way to answering prompts it shall go on answering as it does.

In a joint solve they are rows that want no change (r = 0); behind the gate they are keys of silence. The law: they are read on
the unedited base, from its own answers, so nobody has to know what these are.

    protected_keys(model, tokenizer, ["The capital of Spain is"], ["model.layers.2.mlp.down_proj"])
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.signals import capture, quiet
from kedit_hub.base.tokens import Encoded, answer_positions, encode
from kedit_hub.errors import EditError

ANSWER_TOKENS = 8  # of the base's own answer that are protected


@torch.no_grad()
def protected_keys(model: nn.Module, tokenizer: Any, prompts: Sequence[str], paths: Sequence[str]) -> dict[str, Tensor]:
    """By path: inputs of the map (s, d) float32 at every position but the first that the base's answer is computed from (greedy, at most
    ANSWER_TOKENS). The model has to answer as the base while this runs. EditError for an empty or overlong prompt."""
    if empty := [prompt for prompt in prompts if not prompt.strip()]:
        raise EditError(
            f"a prompt to protect is empty ({empty[0]!r}): give the question that the base shall go on answering"
        )
    asked = encode(tokenizer, prompts, side="left")
    answered = _answered(model, tokenizer, asked)
    inputs = capture(model, list(dict.fromkeys(paths)), answered)
    predict = answer_positions(answered)
    read = answered.attention_mask.bool() & (
        predict.flip(1).cumsum(1).flip(1) > 0
    )  # what the last of them is computed from
    where = predict | (read & (answered.attention_mask.cumsum(1) > 1))  # but for the first token, which every text has
    return {path: keys.cpu()[where] for path, keys in inputs.items()}


def _answered(model: Any, tokenizer: Any, asked: Encoded) -> Encoded:
    """The prompts with the base's greedy answers as their targets; what follows an end of text is padding."""
    device = model.get_input_embeddings().weight.device
    batch = asked.to("cpu" if device.type == "meta" else device)
    with quiet(model):
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        ).cpu()
    width = asked.input_ids.shape[1]
    said = ids[:, width:]
    ended = (said == tokenizer.eos_token_id).cumsum(1) - (
        said == tokenizer.eos_token_id
    ).long() > 0  # after the first end
    attention = torch.cat([asked.attention_mask, (~ended).long()], 1)
    target = torch.cat([torch.zeros_like(asked.target_mask), ~ended], 1)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    return Encoded(ids, attention, asked.prompt_last, target, positions)
