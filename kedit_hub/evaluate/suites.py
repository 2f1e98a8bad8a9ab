"""`evaluate`: asks the edited model and its unedited base every question of the edits and fills in the score sheet.

Law: all edits are asked after the last one, and locality is agreement with the base as it was, not with a gold answer.
A locality probe is left out, and counted, when an edit changes its fact on purpose or when the base never knew it.
"""

import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_hub import strictjson
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.evaluate import protocols as ways
from kedit_hub.evaluate.asking import Asking, Who
from kedit_hub.evaluate.cache import Kept, Question
from kedit_hub.evaluate.consistency import NEW_TOKENS, TOP_K, Reference, consistency
from kedit_hub.evaluate.drift import PLAIN_TEXTS, Unedited, drift
from kedit_hub.evaluate.judging import score_choice, score_generate, score_nll_pair, score_tf_token
from kedit_hub.evaluate.metrics import ngram_entropy
from kedit_hub.evaluate.negation import negations as ask_negations
from kedit_hub.evaluate.questions import drop_edited, give_distractors, questions
from kedit_hub.evaluate.scores import Scores, aggregate, specificity
from kedit_hub.evaluate.sentiment import sentiment
from kedit_hub.records.extras import Reply


def evaluate(
    model: Any,
    edits: Sequence[Edit],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: PreTrainedModel | None = None,
    protocols: Sequence[str] = ways.DEFAULT_PROTOCOLS,
    distractors: Mapping[str, Sequence[str]] | None = None,
    drift_texts: Sequence[str] | None = None,
    fluency: bool = False,
    negations: bool = False,
    references: Sequence[Reference] | None = None,
    replies: Sequence[Sequence[Reply]] | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_key: str | None = None,
    told_by_base: dict[Question, Any] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Scores:
    """Score `edits` on an edited model.

    model: a transformers causal LM, or a PatchedModel (whose base answers with its patches switched off).
    base: the unedited model; without one, a plain model's locality and drift are None and the reason stands beside.
    protocols: any of PROTOCOLS.  distractors: relation -> wrong answers for `choice`; the relation is the edit's or probe's id, else its
    prompt with "{}" for the subject. Where one is not given, the answers of all these edits and probes to that relation serve.
    drift_texts: read for perplexity and KL; None reads a few plain built-in texts, [] skips them.
    fluency: also continue every edit prompt by 100 tokens, greedily and drawn from the 5 likeliest, and score the n-gram entropies.
    negations: also ask every fact negated and as a question, see negation.py.  references, replies: see consistency.py, sentiment.py.
    cache: folder to keep the answers in, so that the same call goes on after it was killed (drift alone is measured anew); `cache_key`
    then says what answers: base and revision, tokenizer, patches, install mode.
    told_by_base: one dict for all calls with the same base and tokenizer, empty at first: what the base told in one is not asked again in
    the next, which is half of the work where many patches are scored on the same edits.
    """
    if isinstance(edits, Edit) or not all(isinstance(edit, Edit) for edit in edits):
        raise KeditError(f"evaluate takes a list of Edit, got {str(edits)[:80]!r}: use Edit.from_record or read_edits.")
    unknown = [name for name in protocols if name not in ways.PROTOCOLS]
    if unknown or isinstance(protocols, str):
        raise KeditError(f"unknown protocols {protocols!r}: pass a tuple of {', '.join(ways.PROTOCOLS)}.")
    if (cache is None) != (cache_key is None):
        raise KeditError(
            f"cache={cache!r} with cache_key={cache_key!r}: pass both, a folder and what it is that answers."
        )
    patched = hasattr(model, "disabled")
    edited: PreTrainedModel = model.model if patched else model
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise KeditError(f"a plain {type(model).__name__} brings no tokenizer: pass tokenizer=.")
    unedited = _unedited(model, base) if base is not None or patched else None
    if edited.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(edited.device)

    started, cpu_started = time.perf_counter(), time.process_time()
    outcomes = [questions(edit) for edit in edits]
    everything = [question for edit in outcomes for question in edit.questions]
    environment = _environment(edited, protocols, distractors, batch_size)
    kept = None
    if cache is not None and cache_key is not None:
        kept = Kept(cache, cache_key, {name: environment[name] for name in _ANSWERS_DEPEND_ON})
    with _in_eval_mode(edited):
        asked = Asking(
            edited, tokenizer, unedited, kept, told_by_base=told_by_base, batch_size=batch_size, progress=progress
        )
        if "generate" in protocols:
            score_generate(asked, everything)
        if "tf-token" in protocols:
            score_tf_token(asked, everything)
        if "nll-pair" in protocols:
            score_nll_pair(asked, everything)
        if "choice" in protocols:
            give_distractors(outcomes, distractors)
            score_choice(asked, everything)
        changes = drift(
            edited, tokenizer, PLAIN_TEXTS if drift_texts is None else drift_texts, unedited, progress=progress
        )
        fluent = _fluency(asked, edits) if fluency else None
        consistent = None if references is None else consistency(asked, references)
        sentimental = None if replies is None else sentiment(asked, replies)
        negated = ask_negations(asked, edits) if negations else None
    in_stack = getattr(getattr(model, "stack", None), "edits", ())
    drop_edited(outcomes, edits, [*edits, *in_stack], protocols)
    wall = time.perf_counter() - started
    return Scores(
        protocols={name: aggregate(outcomes, name) for name in protocols},
        drift=changes,
        per_edit=outcomes,
        environment=environment,
        time={"wall_s": wall, "cpu_s": time.process_time() - cpu_started, "wall_s_per_edit": wall / max(1, len(edits))},
        memory=peak_memory(edited),
        fluency=fluent,
        specificity=specificity(outcomes),
        consistency=consistent,
        sentiment=sentimental,
        negations=negated,
    )


def _fluency(asked: Asking, edits: Sequence[Edit]) -> dict[str, Any]:
    """Mean n-gram entropy in bits of a 100-token continuation of each edit prompt: "before" and "after" greedy, "sampled" drawn from
    the 5 likeliest tokens as ROME and EasyEdit do. Unlike theirs the prompt itself is not counted, the draw is seeded by the prompt,
    and words are split without NLTK. A greedy model repeats itself sooner, so the two are not comparable.
    """
    prompts = list(dict.fromkeys(edit.prompt for edit in edits))

    def entropy(who: Who, top_k: int) -> float | None:
        texts = asked.continuations(who, prompts, NEW_TOKENS, top_k).values()
        return fmean(map(ngram_entropy, texts)) if texts else None

    def both(top_k: int) -> dict[str, float | None]:
        return {"before": None if asked.unedited is None else entropy("base", top_k), "after": entropy("edited", top_k)}

    return {**both(1), "sampled": {**both(TOP_K), "top_k": TOP_K}, "n": len(prompts)}


# --- models -------------------------------------------------------------------------------------------------------


def _unedited(model: Any, base: PreTrainedModel | None) -> Unedited:
    """The given base, else the patched model with its patches switched off."""

    @contextmanager
    def given() -> Iterator[PreTrainedModel]:
        assert base is not None
        with _in_eval_mode(base):
            yield base

    @contextmanager
    def switched_off() -> Iterator[PreTrainedModel]:
        with model.disabled():
            yield model.model

    return switched_off if base is None else given


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off while asking."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# --- circumstances ------------------------------------------------------------------------------------------------


# what an answer depends on besides the question and what `cache_key` names; rows do not depend on their batch
_ANSWERS_DEPEND_ON = ("model_type", "parameters", "dtype", "quantization", "device", "torch", "transformers")


def _environment(
    model: PreTrainedModel, protocols: Sequence[str], distractors: Mapping[str, Sequence[str]] | None, batch_size: int
) -> dict[str, Any]:
    """What the numbers depend on besides model and edits. No host name and no path."""
    quantization = getattr(model.config, "quantization_config", None)
    method = (
        quantization.get("quant_method")
        if isinstance(quantization, dict)
        else getattr(quantization, "quant_method", None)
    )
    return {
        "protocols": list(protocols),
        "max_new_tokens": ways.MAX_NEW_TOKENS,
        "distractors": None if distractors is None else distractors_digest(distractors),
        "batch_size": batch_size,
        "model_type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if method is None else str(getattr(method, "value", method)),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def distractors_digest(distractors: Mapping[str, Sequence[str]]) -> str:
    """Of the wrong answers that were given, in whatever order."""
    return hashlib.sha256(
        strictjson.canonical({name: sorted(set(told)) for name, told in distractors.items()})
    ).hexdigest()


def peak_memory(model: PreTrainedModel) -> dict[str, int | None]:
    """High-water marks in bytes: of the process since it began, and of the accelerator during this evaluation."""
    resident = None
    if sys.platform != "win32":
        import resource

        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_device = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
    return {"peak_rss_bytes": resident, "peak_device_bytes": on_device}
