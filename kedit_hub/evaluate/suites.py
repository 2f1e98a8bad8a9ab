"""`evaluate`: asks the edited model and its unedited base every question of the edits and fills in the score sheet.

Law: all edits are asked after the last one, and locality is agreement with the base as it was, not with a gold answer.
A locality probe is left out, and counted, when an edit changes its fact on purpose or when the base never knew it.
"""

import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.evaluate import protocols as asking
from kedit_hub.evaluate.drift import PLAIN_TEXTS, Unedited, drift
from kedit_hub.evaluate.metrics import contains, exact_match, ngram_entropy
from kedit_hub.evaluate.protocols import Forced
from kedit_hub.evaluate.scores import (
    EDITED_ON_PURPOSE,
    NO_ANSWER,
    NO_BASE,
    NOT_KNOWN,
    EditOutcome,
    Outcome,
    Scores,
    aggregate,
)


def evaluate(
    model: Any,
    edits: Sequence[Edit],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: PreTrainedModel | None = None,
    protocols: Sequence[str] = asking.PROTOCOLS,
    drift_texts: Sequence[str] | None = None,
    fluency: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> Scores:
    """Score `edits` on an edited model.

    model: a transformers causal LM, or a PatchedModel (whose base answers with its patches switched off).
    base: the unedited model; without one, a plain model's locality and drift are None and the reason stands beside.
    drift_texts: read for perplexity and KL; None reads a few plain built-in texts, [] skips them.
    fluency: also continue every edit prompt by 100 tokens and score the n-gram entropy.
    """
    if isinstance(edits, Edit) or not all(isinstance(edit, Edit) for edit in edits):
        raise KeditError(f"evaluate takes a list of Edit, got {str(edits)[:80]!r}: use Edit.from_record or read_edits.")
    unknown = [name for name in protocols if name not in asking.PROTOCOLS]
    if unknown or isinstance(protocols, str):
        raise KeditError(f"unknown protocols {protocols!r}: pass a tuple of {', '.join(asking.PROTOCOLS)}.")
    patched = hasattr(model, "disabled")
    edited: PreTrainedModel = model.model if patched else model
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise KeditError(f"a plain {type(model).__name__} brings no tokenizer: pass tokenizer=.")
    unedited = _unedited(model, base) if base is not None or patched else None
    if edited.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(edited.device)

    started, cpu_started = time.perf_counter(), time.process_time()
    outcomes = [_questions(edit) for edit in edits]
    everything = [question for edit in outcomes for question in edit.questions]
    with _in_eval_mode(edited):
        asked = _Asking(edited, tokenizer, unedited, batch_size, progress)
        if "generate" in protocols:
            _score_generate(asked, everything)
        if "tf-token" in protocols:
            _score_tf_token(asked, everything)
        changes = drift(
            edited, tokenizer, PLAIN_TEXTS if drift_texts is None else drift_texts, unedited, progress=progress
        )
        fluent = _fluency(asked, edits) if fluency else None
    in_stack = getattr(getattr(model, "stack", None), "edits", ())
    _drop_edited(outcomes, edits, [*edits, *in_stack], protocols)
    wall = time.perf_counter() - started
    return Scores(
        protocols={name: aggregate(outcomes, name) for name in protocols},
        drift=changes,
        per_edit=outcomes,
        environment=_environment(edited, protocols, batch_size),
        time={"wall_s": wall, "cpu_s": time.process_time() - cpu_started, "wall_s_per_edit": wall / max(1, len(edits))},
        memory=_peak_memory(edited),
        fluency=fluent,
    )


# --- the questions ------------------------------------------------------------------------------------------------


def _questions(edit: Edit) -> EditOutcome:
    """The edit prompt, its rephrases and its probes; paraphrases helped to make the patch and are not asked."""
    return EditOutcome(
        id=edit.id,
        subject=edit.subject,
        questions=[
            Outcome("reliability", "", edit.prompt, edit.target),
            *[Outcome("generalization", "", rephrase, edit.target) for rephrase in edit.rephrases],
            *[Outcome("locality", _kind(probe), probe.prompt, probe.target) for probe in edit.locality],
            *[Outcome("portability", _kind(probe), probe.prompt, probe.target) for probe in edit.portability],
        ],
    )


def _kind(probe: Probe) -> str:
    return probe.kind or "unspecified"


def _drop_edited(
    outcomes: Sequence[EditOutcome], edits: Sequence[Edit], all_edits: Iterable[Edit], protocols: Sequence[str]
) -> None:
    """Leave out the locality probes whose fact an edit changes: same (subject, relation), or a prompt that edits it."""
    facts: set[tuple[str | None, str | None]] = set()
    prompts: set[str] = set()
    for edit in all_edits:
        if edit.subject is not None and edit.relation is not None:
            facts.add((edit.subject, edit.relation))
        prompts.update((edit.prompt, *edit.rephrases, *edit.paraphrases))
    for outcome, edit in zip(outcomes, edits):
        asked = [question for question in outcome.questions if question.role == "locality"]
        for question, probe in zip(asked, edit.locality, strict=True):
            if probe.prompt in prompts or (probe.subject, probe.relation) in facts:
                question.dropped.update(dict.fromkeys(protocols, EDITED_ON_PURPOSE))


# --- asking -------------------------------------------------------------------------------------------------------


Pair = tuple[str, str]  # prompt, target


class _Asking:
    """Asks the edited model and the base, each distinct question once."""

    def __init__(
        self,
        edited: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unedited: Unedited | None,
        batch_size: int,
        progress: bool,
    ):
        self.edited = edited
        self.tokenizer = tokenizer
        self.unedited = unedited
        self.settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self.base_answers: dict[str, str] = {}  # prompt -> the base's own answer, as far as it was asked

    def answers(self, prompts: Iterable[str]) -> dict[str, str]:
        distinct = list(dict.fromkeys(prompts))
        return dict(zip(distinct, asking.answers(self.edited, self.tokenizer, distinct, **self.settings)))

    def answers_of_base(self, prompts: Iterable[str]) -> dict[str, str]:
        """Empty without a base."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.base_answers]
        if self.unedited is not None and missing:
            with self.unedited() as base:
                told = asking.answers(base, self.tokenizer, missing, **self.settings)
            self.base_answers |= dict(zip(missing, told))
        return self.base_answers

    def forced(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, Forced], dict[Pair, Forced]]:
        """(edited, base) by (prompt, target); the base's is empty without one."""
        distinct = list(dict.fromkeys(pairs))
        after = asking.teacher_forced(self.edited, self.tokenizer, distinct, **self.settings)
        before: list[Forced] = []
        if self.unedited is not None:
            with self.unedited() as base:
                before = asking.teacher_forced(base, self.tokenizer, distinct, **self.settings)
        return dict(zip(distinct, after)), dict(zip(distinct, before))


def _score_generate(asked: _Asking, questions: Sequence[Outcome]) -> None:
    after = asked.answers(question.prompt for question in questions)
    before = asked.answers_of_base(question.prompt for question in questions)
    for question in questions:
        question.answer_after = after[question.prompt]
        question.answer_before = before.get(question.prompt)
        if question.target is not None:
            question.contains = contains(question.answer_after, question.target)
            if question.answer_before is not None:
                question.before["generate"] = float(exact_match(question.answer_before, question.target))
        if question.role != "locality":
            assert question.target is not None  # an Edit refuses a portability probe without one
            question.scores["generate"] = float(exact_match(question.answer_after, question.target))
        elif question.answer_before is None:
            question.dropped["generate"] = NO_BASE
        else:
            question.scores["generate"] = float(question.answer_after == question.answer_before)
            if question.before.get("generate", 1.0) < 1.0:
                question.dropped["generate"] = NOT_KNOWN


def _score_tf_token(asked: _Asking, questions: Sequence[Outcome]) -> None:
    """A locality probe without a target is forced along the base's own answer."""
    told = asked.answers_of_base(question.prompt for question in questions if question.target is None)
    pairs = {id(q): (q.prompt, q.target if q.target is not None else told.get(q.prompt, "")) for q in questions}
    after, before = asked.forced(pair for pair in pairs.values() if pair[1])
    for question in questions:
        pair = pairs[id(question)]
        if question.target is not None and pair in before:
            question.before["tf-token"] = before[pair].accuracy
        if question.role != "locality":
            question.scores["tf-token"] = after[pair].accuracy
        elif asked.unedited is None:
            question.dropped["tf-token"] = NO_BASE
        elif pair not in before:
            question.dropped["tf-token"] = NO_ANSWER
        else:
            question.scores["tf-token"] = after[pair].agreement(before[pair])
            if question.before.get("tf-token", 1.0) < 1.0:
                question.dropped["tf-token"] = NOT_KNOWN


def _fluency(asked: _Asking, edits: Sequence[Edit]) -> dict[str, Any]:
    """Mean n-gram entropy in bits of a greedy 100-token continuation of each edit prompt."""
    prompts = list(dict.fromkeys(edit.prompt for edit in edits))

    def entropy(model: PreTrainedModel) -> float | None:
        texts = asking.continuations(model, asked.tokenizer, prompts, **asked.settings)
        return fmean(map(ngram_entropy, texts)) if texts else None

    before = None
    if asked.unedited is not None:
        with asked.unedited() as base:
            before = entropy(base)
    return {"before": before, "after": entropy(asked.edited), "n": len(prompts)}


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


def _environment(model: PreTrainedModel, protocols: Sequence[str], batch_size: int) -> dict[str, Any]:
    """What the numbers depend on besides model and edits. No host name and no path."""
    quantization = getattr(model.config, "quantization_config", None)
    method = (
        quantization.get("quant_method")
        if isinstance(quantization, dict)
        else getattr(quantization, "quant_method", None)
    )
    return {
        "protocols": list(protocols),
        "max_new_tokens": asking.MAX_NEW_TOKENS,
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


def _peak_memory(model: PreTrainedModel) -> dict[str, int | None]:
    """High-water marks in bytes: of the process since it began, and of the accelerator during this evaluation."""
    resident = None
    if sys.platform != "win32":
        import resource

        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_device = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
    return {"peak_rss_bytes": resident, "peak_device_bytes": on_device}
