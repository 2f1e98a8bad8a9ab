"""SERAC (Mitchell et al. 2022): the edits in words, a scope that knows which question is about which, a model that answers from the words.

    scope  "projection"  trained over what the base reads      "cross"  trained, or any cross-encoder: reads every fact with the question
           "model"       any sentence encoder, untrained       "lexical"  every word of the prompt
    answer "model"       the trained counterfactual model      "prompt"   the base, which reads the fact before the question

Nothing is trained here: a trained editor (`kedit_hub.train_editor(..., "serac")`) brings projection, cross-encoder and counterfactual
model, and the patch holds the embeddings of its edits and names the editor by its content. Published: one memory for a model; here one of
every patch, which a stack puts together.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.editors.hyper.trained import TrainedEditor
from kedit_hub.editors.job import Clock, Job, Made, Result
from kedit_hub.editors.memory.asked import late_layer
from kedit_hub.editors.memory.serac_training import last_inputs, said
from kedit_hub.editors.memory.seracnet import Bound
from kedit_hub.editors.untaken import untaken
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch.deltas import Facts

UNSAID = (
    "The small model of the trained editor reads these facts and does not say their targets. Train the editor longer, let the base answer "
    'with settings={"answer": "prompt"}, or pass settings={"failed": "drop"}.'
)


class SeracSettings(BaseModel):
    """What a user may set. editor: the trained one; `kedit_hub.edit(..., editor=)` fills it in. encoder: texts -> (n, e), for the scope
    "model". encoder_name: owner/name@<commit of 40 hex digits>, by which the patch asks for it (or for a cross-encoder) again."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )

    editor: TrainedEditor | None = Field(default=None, exclude=True)
    scope: Literal["projection", "cross", "model", "lexical"] = "projection"
    answer: Literal["model", "prompt"] = "model"
    threshold: float = Field(default=0.6, gt=0, le=1)  # chosen on dev edits of Atlas, four tries
    scale: float = Field(default=1.0, gt=0)  # of squared distances between the vectors of an encoder
    encoder: Any = Field(default=None, exclude=True)
    encoder_name: str | None = None
    paraphrases: bool = True  # the author's paraphrases are embedded too
    failed: Literal["raise", "drop"] = "raise"


def editor_name(editor: TrainedEditor) -> str:
    """How a patch names a trained editor: by its content."""
    return f"trained-editor/serac@{editor.id[:40]}"


def bound(editor: TrainedEditor, tokenizer: Any) -> Bound:
    """The trained editor as a stack takes it (`apply(..., models=)`)."""
    if editor.method != "serac":
        raise KeditError(
            f"the trained editor {editor.id[:12]} is of {editor.method}: facts are put to use by one of serac"
        )
    return Bound(editor.network(), tokenizer)


def serac(job: Job) -> Result:
    """The edits as facts with a scope. EditFailedError names edits whose target the trained model does not say, unless they may be dropped;
    KeditError where what the settings need is not given."""
    settings = job.settings
    assert isinstance(settings, SeracSettings)
    clock = Clock()
    trained = settings.scope == "projection" or settings.answer == "model" or (
        settings.scope == "cross" and settings.encoder_name is None
    )  # fmt: skip
    tools = bound(_editor(job, settings), job.tokenizer) if trained else None
    if tools is None:
        path, _ = edited_linear(job.model, late_layer(job.model, None, 0.5))
    else:
        path = tools.network.paths[0]
    edits, dropped = list(job.edits), list[Edit]()
    good = torch.ones(len(edits), dtype=torch.bool)
    if tools is not None and settings.answer == "model":
        good = said(tools.network, job.tokenizer, edits, [edit.prompt for edit in edits])
        dropped = untaken(edits, good.tolist(), settings.failed, "with SERAC", UNSAID)
        edits = [edit for edit in edits if edit not in dropped]
    delta = _facts(job, settings, edits, path, tools)
    job.advance(len(job.edits))
    made = Made(
        edits=len(job.edits),
        dropped=[edit.prompt for edit in dropped],
        value_success=good.float().mean().item() if settings.answer == "model" else None,
        **clock.times(),
    )
    how = settings.model_dump(exclude={"editor", "encoder", "failed"}, exclude_none=True)
    if settings.editor is not None and trained:
        how["trained_editor"] = settings.editor.id
    return Result({path: delta}, edits, made, how)


def _facts(job: Job, settings: SeracSettings, edits: list[Edit], path: str, tools: Bound | None) -> Facts:
    own = [
        (number, text)
        for number, edit in enumerate(edits)
        for text in (edit.prompt, *(edit.paraphrases if settings.paraphrases else ()))
    ]
    named = None if settings.editor is None else editor_name(settings.editor)
    size = linear_shape(job.model.get_submodule(path))
    more: dict[str, Any] = {"answer_model": named} if settings.answer == "model" else {}
    if settings.scope in ("lexical", "cross"):
        of = torch.arange(len(edits))
        more |= {"scope_model": settings.encoder_name or named} if settings.scope == "cross" else {}
    else:
        of = torch.tensor([number for number, _ in own])
        texts = [text for _, text in own]
        if settings.scope == "projection":
            assert tools is not None
            projection = tools.network.projection.detach().cpu()
            read = last_inputs(job.model, job.tokenizer, path, texts)
            more |= {"embeddings": read @ projection.T, "projection": projection, "scale": 1.0}
        else:
            more |= {
                "embeddings": _encoded(settings, texts),
                "scale": settings.scale,
                "scope_model": settings.encoder_name,
            }
    return Facts(of, size, scope=settings.scope, answer=settings.answer, threshold=settings.threshold, **more)


def _editor(job: Job, settings: SeracSettings) -> TrainedEditor:
    if settings.editor is None:
        raise KeditError(
            f"serac with the scope {settings.scope!r} and the answer {settings.answer!r} takes a trained editor, and none is given: pass "
            'editor=<folder>, train one with kedit_hub.train_editor(..., "serac"), or leave it untrained with settings={"scope": "model", '
            '"encoder": ..., "encoder_name": ..., "answer": "prompt"}'
        )
    settings.editor.verify(job.model)
    return settings.editor


def _encoded(settings: SeracSettings, texts: list[str]) -> Tensor:
    if settings.encoder is None or settings.encoder_name is None:
        raise KeditError(
            "serac with the scope 'model' needs the encoder and its name: settings={\"encoder\": texts -> vectors, "
            '"encoder_name": "owner/name@<commit>"}'
        )
    encode = getattr(settings.encoder, "encode", settings.encoder)
    vectors = torch.as_tensor(encode(texts)).float()
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise KeditError(
            f"the encoder made {tuple(vectors.shape)} of {len(texts)} texts: it has to make one vector of each"
        )
    return vectors
