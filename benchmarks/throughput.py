"""Edits per CPU second when patches are made, against the loop of the published code: one edit at a time, the whole model on every step.

    python benchmarks/throughput.py [--counts 1 10 100 1000]

Both optimise the same values at the same place with the same stop (every target token of every context is argmax and the mean NLL is
low), on dev and test edits of Atlas, repeated where there are too few. The loop puts all contexts of its edit into one batch, as published;
it is timed before the batches and after them, because a machine is not as fast all the time, and the mean is what counts.
Where the time of a batch goes is told by wrapping the three parts of the work; CPU seconds of one thread.
"""

import argparse
import time
from contextlib import contextmanager
from unittest import mock

import torch
from common import Report, quiet

import kedit_hub
from kedit_hub import demo
from kedit_hub.api import load_model, profile_of
from kedit_hub.base.families import block
from kedit_hub.base.signals import capture
from kedit_hub.editors import locate
from kedit_hub.editors.rows import context_rows


def one_at_a_time(model, tokenizer, profile, edits):
    """CPU seconds of the published loop over `edits`."""
    settings, started, good = profile.settings.value, time.process_time(), 0
    whole = block(model, profile.layer)
    path = next(name for name, module in model.named_modules() if module is whole)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for edit in edits:
        rows = context_rows(tokenizer, [edit], profile.settings.contexts, profile.site, profile.settings.answer_end)
        hidden = capture(model, [path], rows.encoded, outputs=True)[path]
        row, site = (rows.sites >= 0).nonzero(as_tuple=True)
        at = rows.sites[row, site]
        norm = hidden[0, rows.sites[0]].norm(dim=-1, keepdim=True)
        x = torch.zeros(rows.sites.shape[1], hidden.shape[-1], requires_grad=True)
        adam = torch.optim.Adam([x], lr=settings.lr)
        scale = norm / hidden.shape[-1] ** 0.5

        def add(module, args, output, row=row, at=at, site=site, x=x, scale=scale):
            changed = (output[0] if isinstance(output, tuple) else output).clone()
            changed[row, at] += (scale * x)[site]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = whole.register_forward_hook(add)
        mask = rows.encoded.target_mask[:, 1:]
        for step in range(settings.steps + 1):
            logits = model(**rows.encoded.inputs(model), use_cache=False).logits[:, :-1].float()
            labels = rows.encoded.input_ids[:, 1:]
            nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            loss = ((nll * mask).sum(1) / mask.sum(1)).mean()
            right = bool(((logits.argmax(-1) == labels) | ~mask).all())
            if (right and loss.item() < settings.stop_nll) or step == settings.steps:
                good += right
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                bound = settings.clamp * hidden.shape[-1] ** 0.5
                x *= (bound / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        handle.remove()
    return time.process_time() - started, good


@contextmanager
def told(spent, name):
    """CPU seconds of locate.<name> are added to spent[name]."""
    real = getattr(locate, name)

    def wrapped(*args, **how):
        started = time.process_time()
        try:
            return real(*args, **how)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - started

    with mock.patch.object(locate, name, wrapped):
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 1000])
    counts = parser.parse_args().counts
    quiet()
    report = Report("throughput", "Edits per CPU second: batches against one edit at a time")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    profile = profile_of(model, tokenizer)
    known = [*demo.edits("dev"), *demo.edits("test")]
    kedit_hub.edit(model, known[:2], "memit", tokenizer=tokenizer, settings={"failed": "drop"}, progress=False)
    sample = known[: min(40, max(counts))]
    before, good = one_at_a_time(model, tokenizer, profile, sample)
    rows = []
    for count in counts:
        edits = [known[i % len(known)] for i in range(count)]
        parts = [edits[i : i + len(known)] for i in range(0, count, len(known))]  # no patch asks one question twice
        spent, total, kept = {}, 0.0, 0
        with told(spent, "optimise_values"), told(spent, "measure"), told(spent, "mentions"):
            for part in parts:
                started = time.process_time()
                patch = kedit_hub.edit(
                    model, part, "memit", tokenizer=tokenizer, settings={"failed": "drop"}, progress=False
                )
                total += time.process_time() - started
                kept += len(patch.edits)
        shares = [spent[name] / total for name in ("optimise_values", "measure", "mentions")]
        rows.append([count, kept, total, count / total, *shares, 1 - sum(shares)])
    after, _ = one_at_a_time(model, tokenizer, profile, sample)
    slow = (before + after) / 2
    report.say(
        f"the loop: {len(sample)} edits in {before:.1f} CPU s before the batches and {after:.1f} after them, {len(sample) / slow:.2f} "
        f"edits/s, {good} of them said in every context"
    )
    rows = [[*row[:4], row[3] * slow / len(sample), *row[4:]] for row in rows]
    columns = ["edits", "took", "CPU s", "edits/s", "times the loop", "values", "keys", "subject keys", "the rest"]
    report.table(columns, rows)
    report.save()


if __name__ == "__main__":
    main()
