"""Locate-then-edit: ROME and MEMIT as settings of one code path, at either key site.

    contexts -> keys k, base outputs W k        (one pass, hooks)
             -> residuals r                     (values.py: the value v* = W k + r that makes the model say the target)
             -> rows (k, r) of an associative delta

No weight is changed and no system is solved here: what the rows do to the map is decided when a stack is put together (gate or joint
solve), so the same rows serve any company. ROME (Meng et al. 2022) asks for equality at its key, W' k = v*; MEMIT (Meng et al. 2023)
trades it off against ordinary text. That difference is the row weight `omega`, and the way contexts are averaged into the key: ROME takes
the plain mean, MEMIT gives the bare prompt half of the weight. ROME's key and value come from the same contexts (the consistent form,
Gupta et al. 2024): then k^T C0^-1 k > 0 and the update cannot blow up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kedit_hub.base.families import block_path, edited_linear
from kedit_hub.base.moments import regularised
from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.base.signals import observe
from kedit_hub.base.tokens import encode
from kedit_hub.editors.calibrate import calibrated
from kedit_hub.editors.essence import essence
from kedit_hub.editors.job import Clock, Job, Made, Result, Unconverged
from kedit_hub.editors.paraphrase import (
    SPARE,
    Paraphraser,
    by_base,
    by_templates,
    extended,
    may_open,
    openings,
)
from kedit_hub.editors.places import Edits
from kedit_hub.editors.rows import Rows, context_rows
from kedit_hub.editors.slots import slots
from kedit_hub.editors.untaken import untaken
from kedit_hub.editors.values import Values, optimise_values
from kedit_hub.edits import Edit
from kedit_hub.patch.deltas import Associative

EQUALITY = 1e6  # omega of a row that has to be met exactly
TOLD = ("success", "contexts", "nll", "norm", "clamped", "unfinished")  # of a value, see `value_told`
MOST_TOLD = 1000  # values that did not converge and are told one by one; the prompts of all of them are named


class LocateSettings(BaseModel):
    """What a user may set. None = as the base profile says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    value: ValueSettings | None = None
    failed: Literal["raise", "drop"] = (
        "raise"  # what to do with edits whose value does not make the model say the target
    )
    batch_edits: int = Field(default=32, ge=1)  # edits optimised at once; bounds memory, changes no result
    precision: Literal["f32", "f16"] = "f32"  # how rows are stored; f16 takes half the bytes and rounds them once
    portable: bool = False  # store (C0 + rho I)^-1 k beside every key k, so that solving a stack takes no C0
    # what is found at edit time to make the gate's job easier; 0 and False: nothing, and the patch is as it always was
    template_paraphrases: int = Field(default=0, ge=0, le=32)  # per edit, as other edits of the batch ask, or by rules
    base_paraphrases: int = Field(default=0, ge=0, le=32)  # per edit, from what the base writes about the subject
    caller_paraphrases: int = Field(default=0, ge=0, le=32)  # per edit, from `paraphraser`
    paraphraser: Paraphraser | None = Field(default=None, exclude=True)
    openings: int = Field(default=0, ge=0, le=128)  # beginnings of other prompts after which the subject is read too
    counter_keys: int = Field(default=0, ge=0, le=128)  # per edit, of other questions about its subject
    thresholds: bool = False  # calibrated for every edit, in place of the profile's
    company: Edits = Field(default=(), exclude=True)  # edits whose phrasings and subjects may be borrowed

    @model_validator(mode="after")
    def _called(self) -> "LocateSettings":
        if (self.caller_paraphrases > 0) != (self.paraphraser is not None):
            raise ValueError("caller_paraphrases says how many to take from paraphraser: give both, or none of them")
        return self

    def helps(self) -> dict[str, int | bool]:
        """Those of the settings above that are on, as they are recorded in a patch."""
        names = (
            "template_paraphrases",
            "base_paraphrases",
            "caller_paraphrases",
            "openings",
            "counter_keys",
            "thresholds",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def locate(job: Job, *, bare_weight: float | None) -> Result:
    """Rows of all edits, in order. bare_weight: share of the bare prompt in a key (MEMIT: 1/2); None = plain mean (ROME). Values are
    optimised as the settings say, or else the profile.

    The seed is that of what is sampled where paraphrases, counter-keys or thresholds are asked for; nothing else is drawn.
    EditFailedError names every edit whose value failed, unless settings.failed == "drop"; it then also leaves them out.
    """
    model, tokenizer, edits, settings, profile = job.model, job.tokenizer, job.edits, job.settings, job.profile
    assert profile is not None and isinstance(settings, LocateSettings)
    clock = Clock()
    value = settings.value or profile.settings.value
    asked, found = extended(edits, _sources(model, tokenizer, edits, settings, job.seed))
    begun = openings([*edits, *settings.company]) if settings.openings else []
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(edits), settings.batch_edits):
        chunk = asked[start : start + settings.batch_edits]

        def work(chunk: Sequence[Edit] = chunk) -> dict[str, Tensor]:
            rows = context_rows(tokenizer, chunk, profile.settings.contexts, profile.site, profile.settings.answer_end)
            more = [[o for o in begun if may_open(o, edit)][: settings.openings] for edit in chunk]
            signals = measure(model, profile, rows) | mentions(model, tokenizer, profile, chunk, more)
            answer_site = profile.site == "answer"
            about = (
                essence(model, tokenizer, chunk, block_path(model, profile.layer))
                if value.kl and not answer_site
                else None
            )
            values = optimise_values(
                model, profile.layer, rows, signals["hidden"], value,
                answer_site=answer_site, essence=about, advance=job.advance,
            )  # fmt: skip
            return _packed(rows, signals, values, profile, bare_weight)

        parts.append(job.memo(f"edits-{start}", work))

    success = torch.cat([part["success"] for part in parts]) > 0
    kept = taken(edits, success, settings.failed, f"layer {profile.layer} ({profile.site} site)")
    delta = _concatenate([part for part in parts if "keys" in part], profile)
    if settings.counter_keys or settings.thresholds:
        delta = calibrated(
            model, tokenizer, profile, kept, delta,
            counter_keys=settings.counter_keys, thresholds=settings.thresholds, company=settings.company, seed=job.seed,
        )  # fmt: skip
    made = Made(
        edits=len(edits),
        **how_values_did(edits, parts),
        **clock.times(),
        paraphrases=found or None,
        counter_keys=None if delta.counter_keys is None else len(delta.counter_keys),
    )
    how = {"layer": profile.layer, "site": profile.site, **flat(value), **settings.helps()}
    return Result({profile.module: stored_form(delta, profile, settings)}, kept, made, how)


UNSAID = (
    "Even with the optimised value in place the model does not say the target. Try more value steps or a larger clamp, or pass "
    'settings={"failed": "drop"} to leave these edits out.'
)


def taken(edits: Sequence[Edit], success: Tensor, failed: Literal["raise", "drop"], where: str) -> list[Edit]:
    """The edits whose value makes the model say the target, success (E,) bool. EditFailedError names the others where they are not to
    be dropped, or are all."""
    untaken(edits, success.tolist(), failed, f"at {where}", UNSAID)
    return [edit for edit, good in zip(edits, success.tolist()) if good]


def how_values_did(edits: Sequence[Edit], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Fields of Made, from parts that hold what `value_told` says of consecutive edits.

    A value has converged when it was stopped because every context says the target, and surely enough. One that lies at its bound and
    was stopped for that reason has converged too.
    """
    told = {name: torch.cat([part[name] for part in parts]) for name in TOLD}
    success = told["success"] > 0
    open_ends = success & ((told["contexts"] < 1) | (told["unfinished"] > 0))
    unfinished = [
        Unconverged(
            prompt=edits[index].prompt,
            value_norm=_short(told["norm"][index]),
            nll=_short(told["nll"][index]),
            contexts=_short(told["contexts"][index]),
            at_clamp=bool(told["clamped"][index]),
            out_of_steps=bool(told["unfinished"][index]),
        )
        for index in open_ends.nonzero()[:, 0].tolist()
    ]
    return {
        "dropped": [edit.prompt for edit, good in zip(edits, success.tolist()) if not good],
        "not_converged": [one.prompt for one in unfinished],
        "unconverged": unfinished[:MOST_TOLD],
        "value_success": success.float().mean().item(),
        "context_success": told["contexts"].mean().item(),
        "value_norm": told["norm"].mean().item(),
        "nll": told["nll"].mean().item(),
    }


def _short(number: Tensor) -> float:
    return float(f"{number.item():.4g}")


def value_told(values: Values) -> dict[str, Tensor]:
    """(E,) each: how the values of E edits did, as pieces of work keep it."""
    return {
        "success": values.success.long(),
        "contexts": values.contexts,
        "nll": values.nll,
        "norm": values.norm,
        "clamped": values.clamped.long(),
        "unfinished": values.unfinished.long(),
    }


def flat(value: ValueSettings) -> dict[str, Any]:
    return {f"value.{name}": setting for name, setting in value.model_dump().items()}


def _packed(
    rows: Rows, signals: dict[str, Tensor], values: Values, profile: BaseProfile, bare_weight: float | None
) -> dict[str, Tensor]:
    """What one chunk of edits came to: how each value did, and the rows of those that succeeded."""
    told = value_told(values)
    if not bool(values.success.any()):
        return told
    return told | assemble(rows, signals, values, profile, bare_weight).tensors()


def _sources(
    model: nn.Module, tokenizer: Any, edits: Sequence[Edit], settings: LocateSettings, seed: int
) -> dict[str, tuple[Paraphraser, int]]:
    """The paraphrasers that are switched on, with how many paraphrases each may give."""
    near = [*edits, *settings.company]
    sources: dict[str, tuple[Paraphraser, int]] = {}
    if settings.paraphraser is not None:
        sources["caller"] = (settings.paraphraser, settings.caller_paraphrases)
    if settings.template_paraphrases:
        sources["templates"] = (by_templates(near), settings.template_paraphrases)
    if settings.base_paraphrases:
        sources["base"] = (
            by_base(model, tokenizer, near, SPARE * settings.base_paraphrases, seed),
            settings.base_paraphrases,
        )
    return sources


def measure(model: nn.Module, profile: BaseProfile, rows: Rows) -> dict[str, Tensor]:
    """On the base: "hidden" (N, T, m) output of the block, on the model's device; "keys" (N, T, d) and "outputs" (N, T, m) of
    the edited map; "gate" (N, T, dg) inputs of the early map."""
    path, _ = edited_linear(model, profile.layer)
    whole = block_path(model, profile.layer)
    inputs, outputs = observe(model, sorted({path, profile.gate_module}), [path, whole], rows.encoded)
    return {
        "hidden": outputs[whole],
        "keys": inputs[path].cpu(),
        "outputs": outputs[path].cpu(),
        "gate": inputs[profile.gate_module].cpu(),
    }


def mentions(
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile,
    edits: Sequence[Edit],
    openings: Sequence[Sequence[str]] | None = None,
) -> dict[str, Tensor]:
    """Keys of the subjects by themselves: "mentions" (g, dg) inputs of the early map at the subject's last token, "of" (g,) whose.

    A subject that opens a sentence and one that stands inside it are other tokens to most tokenizers, and a prompt shows only one of the
    two. So each subject is also read alone, after every context sentence, after the first words of it, and after its `openings`.
    """
    before = [
        "",
        *profile.settings.contexts,
        *(" ".join(c.split()[: len(c.split()) // 2]) for c in profile.settings.contexts),
    ]
    places = [before] * len(edits) if openings is None else [[*before, *more] for more in openings]
    texts = [f"{text} {edit.subject}".strip() for edit, read in zip(edits, places) for text in read]
    encoded = encode(tokenizer, texts)
    last = encoded.attention_mask.sum(1) - 1  # the text ends with the subject
    inputs, _ = observe(model, [profile.gate_module], [], encoded)
    keys = inputs[profile.gate_module].cpu()[torch.arange(len(texts)), last]
    return {"mentions": keys, "of": torch.arange(len(edits)).repeat_interleave(torch.tensor([*map(len, places)]))}


def assemble(
    rows: Rows, signals: dict[str, Tensor], values: Values, profile: BaseProfile, bare_weight: float | None
) -> Associative:
    """Rows of the edits whose value succeeded: one per edit and site, mean key over contexts, every context's own key beside it."""
    good = values.success
    renumber = torch.cumsum(good, 0) - 1  # old edit -> new edit
    used = good[rows.edit].nonzero()[:, 0]
    rows = rows.take(used)
    alone, of = signals["mentions"], signals["of"]
    signals = {name: signals[name][used] for name in ("keys", "outputs", "gate")}

    slot = slots(rows, bare_weight)
    keys = slot.read(signals["keys"])  # (c, d)
    held = (rows.subject >= 0).nonzero()[:, 0]
    mentioned = good[of].nonzero()[:, 0]
    return Associative(
        keys=slot.mean(keys),
        residuals=values.delta[slot.edit, slot.site],
        base_outputs=slot.mean(slot.read(signals["outputs"])),
        edit_index=renumber[slot.edit],
        context_keys=keys,
        context_row=slot.slot,
        gate_keys=torch.cat([signals["gate"][held, rows.subject[held]], alone[mentioned]]),
        gate_edit=torch.cat([renumber[rows.edit[held]], renumber[of[mentioned]]]),
        site=profile.site,
        gate_module=profile.gate_module,
    )


def stored_form(delta: Associative, profile: BaseProfile, settings: LocateSettings) -> Associative:
    """The rows as they will be stored. Whitened keys belong to the rounded keys, which are the ones that will be read."""
    if settings.precision == "f16":
        delta = delta.halved()
    if settings.portable:
        factor = torch.linalg.cholesky(regularised(profile.second_moment))
        whitened = torch.cholesky_solve(delta.keys.double().T, factor).T  # (n, d) float64
        delta = replace(delta, whitened_keys=whitened.float())
    return delta


def _concatenate(parts: Sequence[Mapping[str, Tensor]], profile: BaseProfile) -> Associative:
    """One delta from the rows of consecutive chunks of edits, each counted within its chunk."""
    joined: dict[str, list[Tensor]] = {}
    rows = edits = 0
    for part in parts:
        shift = {"edit_index": edits, "gate_edit": edits, "context_row": rows}
        for name in Associative.specs.keys() & part.keys():
            joined.setdefault(name, []).append(part[name] + shift[name] if name in shift else part[name])
        rows += len(part["keys"])
        edits += int(part["edit_index"].max()) + 1
    whole: dict[str, Any] = {name: torch.cat(parts) for name, parts in joined.items()}
    return Associative(**whole, site=profile.site, gate_module=profile.gate_module)
