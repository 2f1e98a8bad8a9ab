"""The editors by name, and `edit`: one call from (base, edits, method) to a patch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from kedit_hub import provenance
from kedit_hub.base.families import (
    ON_ENCODER_DECODERS,
    encoder_decoder,
    linear_shape,
    quantization_of,
    refuse_encoder_decoder,
)
from kedit_hub.base.profile import BaseProfile, Site, ValueSettings
from kedit_hub.editors.finetune import FinetuneSettings, FTLSettings, FTSettings, LocFTSettings, finetune
from kedit_hub.editors.hyper.make import HyperSettings, trained
from kedit_hub.editors.hyper.settings import METHODS as HYPER
from kedit_hub.editors.job import Advance, Job, Memo, Moment, Result, compute
from kedit_hub.editors.locate import EQUALITY, LocateSettings, locate
from kedit_hub.editors.memory.calinet import CaliNetSettings, calinet
from kedit_hub.editors.memory.grace import GraceSettings, grace
from kedit_hub.editors.memory.ike import IkeSettings, ike
from kedit_hub.editors.memory.serac import SeracSettings, serac
from kedit_hub.editors.memory.tpatcher import TPatcherSettings, t_patcher
from kedit_hub.editors.memory.wise import WiseSettings, wise
from kedit_hub.editors.neurons import NeuronSettings, neurons
from kedit_hub.editors.presets import CLASSIC_MEMIT, CLASSIC_ROME, Like, preset
from kedit_hub.editors.spread import SpreadSettings, spread
from kedit_hub.editors.ultraedit import UltraEditSettings, ultraedit
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, KeditError, ProfileError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.manifest import BaseRef, Dataset
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.conflicts import contradictions_within


@dataclass(frozen=True)
class Editor:
    """One row of the table of methods."""

    summary: str
    settings: type[BaseModel]
    make: Callable[[Job], Result]
    stored: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({})
    )  # what the stack has to know of the method, written into the patch's settings
    site: Site | None = None  # where its keys have to be taken; None = where the base profile found it best
    profiled: bool = True  # whether it edits where a base profile says
    defaults: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({})
    )  # settings, where they are not its class's
    like: Like | None = None  # whose published settings it takes for the model at hand
    on_base: bool = True  # whether its keys and values belong to the base; else a patch stands on those below it
    follows: bool = False  # reads the base, and goes on from those patches below that its own trained editor made


def _located(bare_weight: float | None) -> Callable[[Job], Result]:
    return lambda job: locate(job, bare_weight=bare_weight)


_SUBJECT: Site = "subject"


def _written(summary: str, site: Site | None, like: Like | None, **defaults: Any) -> Editor:
    return Editor(
        summary, SpreadSettings, spread, site=site, defaults=MappingProxyType(defaults), like=like, on_base=False
    )


# Two settings that say one thing: which of them a user names takes the place of the other, where that is published
EITHER = (("lam", "l2"), ("null_rank", "null_threshold"), ("layers", "maps"), ("step", "eta"))

EDITORS: Mapping[str, Editor] = MappingProxyType(
    {
        "rome": Editor(
            "rank-one model editing with consistent keys: the row is met exactly (Meng et al. 2022; Gupta et al. 2024)",
            LocateSettings,
            _located(bare_weight=None),
            MappingProxyType({"omega": EQUALITY}),
        ),
        "memit": Editor(
            "many edits at one layer, traded off against ordinary text (Meng et al. 2023)",
            LocateSettings,
            _located(bare_weight=0.5),
            MappingProxyType({"omega": 1.0}),
        ),
        "rome-classic": Editor(
            "ROME where it was published: at the subject's last token, at the layer usual for the base's depth",
            LocateSettings,
            _located(bare_weight=None),
            MappingProxyType({"omega": EQUALITY}),
            site="subject",
            defaults=MappingProxyType({"value": CLASSIC_ROME.model_dump()}),
        ),
        "memit-classic": Editor(
            "one-layer MEMIT where it was published: at the subject's last token, at the layer usual for the base's depth",
            LocateSettings,
            _located(bare_weight=0.5),
            MappingProxyType({"omega": 1.0}),
            site="subject",
            defaults=MappingProxyType({"value": CLASSIC_MEMIT.model_dump()}),
        ),
        "rome-published": _written(
            "ROME as published: into the weights, one edit after the other, met at the bare prompt's key (Meng et al. 2022)",
            _SUBJECT, "rome", omega=EQUALITY, at_once=1, bare_weight=None, keys="bare",
        ),
        "r-rome": _written(
            "ROME with one key throughout, into the weights, one edit after the other (Gupta et al. 2024)",
            _SUBJECT, "rome", omega=EQUALITY, at_once=1, bare_weight=None,
        ),
        "emmet": _written(
            "all edits met as equalities at once, into the weights (Gupta et al. 2024)", None, "emmet", omega=10.0, bare_weight=None
        ),
        "pmet": _written(
            "MEMIT with a value of attention's own, into the weights (Li et al. 2024)", None, None, split="root", attention=True
        ),
        "alphaedit": _written(
            "MEMIT in the null space of text and of earlier edits, into the weights (Fang et al. 2025)",
            None, None, preconditioner="null-space", history=True,
        ),
        "memit-spread": _written("MEMIT as published: spread over several layers (Meng et al. 2023)", _SUBJECT, "memit"),
        "pmet-spread": _written(
            "PMET as published: spread over several layers (Li et al. 2024)", _SUBJECT, "pmet", split="root", attention=True
        ),
        "alphaedit-spread": _written(
            "AlphaEdit as published: spread over several layers (Fang et al. 2025)",
            _SUBJECT, "memit", preconditioner="null-space", history=True,
        ),
        "memit-blue": _written(
            "MEMIT at the first and last of its layers, a value for each (Gu et al. 2025)", _SUBJECT, "blue", split="whole"
        ),
        "alphaedit-blue": _written(
            "AlphaEdit at the first and last of its layers, a value for each (Gu et al. 2025)",
            _SUBJECT, "blue", split="whole", preconditioner="null-space", history=True,
        ),
        "ft": Editor(
            "fine-tuning of one layer, every target token predicted at the prompt's end (as in Meng et al. 2022)",
            FTSettings,
            finetune,
            profiled=False,
            like="ft",
            on_base=False,
        ),
        "ft-l": Editor(
            "the same with every weight held near its old value (Zhu et al. 2020)",
            FTLSettings,
            finetune,
            profiled=False,
            like="ft-l",
            on_base=False,
        ),
        "ft-m": Editor(
            "fine-tuning of one layer by ordinary next-token loss on the target (Zhang et al. 2024)",
            FinetuneSettings,
            finetune,
            profiled=False,
            like="ft-m",
            on_base=False,
        ),
        "kn": Editor(
            "knowledge neurons: units behind the old answer are found and rewritten (Dai et al. 2022)",
            NeuronSettings,
            neurons,
            profiled=False,
            like="kn",
            on_base=False,
        ),
        "ultraedit": Editor(
            "one backward pass and one least-squares solve, nothing trained (UltraEdit, 2505.14679)",
            UltraEditSettings,
            ultraedit,
            profiled=False,
            like="ultraedit",
            on_base=False,
        ),
        "locft": Editor(
            "the same breadth first, in shuffled batches over the whole set of edits (LocFT-BF, 2509.22072)",
            LocFTSettings,
            finetune,
            profiled=False,
            like="locft",
            on_base=False,
        ),
        "grace": Editor(
            "a codebook at a late layer: outputs replaced near the questions it knows (Hartvigsen et al. 2023)",
            GraceSettings,
            grace,
        ),
        "t-patcher": Editor(
            "a neuron for every wrong token, in the last feed-forward block (Huang et al. 2023)",
            TPatcherSettings,
            t_patcher,
        ),
        "calinet": Editor(
            "calibration slots beside a feed-forward block, trained on all edits at once (Dong et al. 2022)",
            CaliNetSettings,
            calinet,
        ),
        "wise": Editor(
            "a side memory of one late weight, at work where it is loud, learnt in parts and merged (Wang et al. 2024)",
            WiseSettings,
            wise,
        ),
        "ike": Editor(
            "the fact in words, put before the questions that hold the words of its prompt (Zheng et al. 2023)",
            IkeSettings,
            ike,
        ),
        "serac": Editor(
            "the fact in words, a trained scope, and a small model that answers from the words (Mitchell et al. 2022)",
            SeracSettings,
            serac,
            profiled=False,
        ),
        **{
            name: Editor(f"{method.summary}; trained", HyperSettings, trained(name), profiled=False, follows=name == "dafnet")
            for name, method in HYPER.items()
        },
    }
)  # fmt: skip


def methods() -> list[str]:
    """Names that `edit(..., method=)` takes."""
    return list(EDITORS)


def editor_of(method: str) -> Editor:
    """The row of a method; KeditError for one that there is not."""
    if method not in EDITORS:
        raise KeditError(f"there is no method {method!r}; take one of: {', '.join(methods())}")
    return EDITORS[method]


def check_works_on(model: nn.Module, method: str) -> None:
    """UnsupportedModelError where the method does not work on a model of this kind; it names those that do."""
    if method not in ON_ENCODER_DECODERS:
        refuse_encoder_decoder(model, f"method {method!r}")


def wants_profile(model: nn.Module, editor: Editor) -> bool:
    """Whether an edit goes by a base profile. Encoder-decoders have none; of it their methods need nothing but how an answer ends."""
    return editor.profiled and not encoder_decoder(model)


def make_patch(
    model: nn.Module,
    tokenizer: Any,
    edits: Sequence[Edit],
    profile: BaseProfile | None = None,
    *,
    method: str = "memit",
    settings: Mapping[str, Any] | BaseModel | None = None,
    base: tuple[str, str | None],
    below: Sequence[Patch] = (),
    moments: Moment | None = None,
    datasets: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    memo: Memo = compute,
    progress: bool = True,
) -> Patch:
    """A patch of `edits` on `model`, whose profile is given where the method goes by one. base: (model id, revision) as it is
    written into the patch.

    below: patches that `model` answers with already, or that the editor goes on from; one that is not `on_base` or that `follows` requires
    them from then on.
    moments: second moments of the base at other modules than the profile's. memo: keeps finished pieces of long work.
    datasets: where the edits come from, each {"id", "revision"?, "sha256"?}, recorded. The seed is recorded too: of whatever the method
    draws at random. KeditError for an unknown method or setting, EditError for edits that contradict each other, EditFailedError when a
    value does not reach its target.
    """
    editor = editor_of(method)
    check_works_on(model, method)
    if not edits:
        raise EditError("there are no edits to make: pass at least one Edit(prompt, target, subject=...)")
    if not wants_profile(model, editor):
        profile = None
    elif profile is None:
        raise ProfileError(
            f"{method} edits where a base profile says, and none is given: build one with `kedit profile`"
        )
    else:
        _check_profile(model, profile, method, editor)
    chosen = _settings(editor, method, settings, model, profile)
    _check_distinct(edits)
    stands = not editor.on_base or editor.follows  # on the patches below it
    if stands:
        _check_depth(method, below)
    sources = [_dataset(item) for item in datasets]
    with progress_bar(f"{method}: making edits", len(edits)) if progress else nullcontext(lambda done: None) as advance:
        job = Job(
            model, tokenizer, edits, chosen, profile=profile, seed=seed, below=below, moments=moments, advance=advance, memo=memo
        )  # fmt: skip
        result = editor.make(job)
    paths = sorted(result.deltas)
    associative = (delta for delta in result.deltas.values() if isinstance(delta, Associative))
    heard = {delta.gate_module for delta in associative if delta.gate_module is not None}
    prints = {path: fingerprint(model.get_submodule(path)) for path in sorted({*paths, *heard})}
    commit, dirty = provenance.source()
    patch = Patch.create(
        deltas=dict(result.deltas),
        edits=list(result.edits),
        base=BaseRef(id=base[0], revision=base[1], model_type=str(model.config.model_type), fingerprint=prints),  # type: ignore[union-attr]
        method=method,
        settings={**editor.stored, **result.settings},
        provenance={
            "seed": seed,
            "commit": commit,
            "dirty": dirty,
            "versions": provenance.versions(),
            "environment": provenance.environment(model, quantization_of(model.get_submodule(paths[0]))),
            "datasets": sources,
        },
        requires=sorted(patch.id for patch in below) if stands else (),
        profile_id=None if profile is None else profile.id,
    )
    return patch.replace_evals({"making": result.made.model_dump(exclude_none=True)})


def _check_depth(method: str, below: Sequence[Patch]) -> None:
    """Before the work is done: the patch is going to require every patch below it."""
    if len(below) > DEFAULT.max_requires:
        raise KeditError(
            f"{method} edits the model as its patches have left it, and a patch may require at most {DEFAULT.max_requires} others: "
            f"there are {len(below)} below it. Export those as a merged model and edit that, or make rows (memit, rome), which require none"
        )


def named(settings: Mapping[str, Any] | BaseModel | None, kind: type[BaseModel] | None) -> dict[str, Any]:
    """The settings that somebody has named, by name: of an object of the method's class those that were given to it, of its `value` too.

    kind: that class; None where the method is not known yet. KeditError for what is neither of it nor a mapping.
    """
    if settings is None:
        return {}
    if isinstance(settings, Mapping):
        return dict(settings)
    if not isinstance(settings, BaseModel) or (kind is not None and type(settings) is not kind):
        raise KeditError(
            f"settings must be a mapping or {kind.__name__ if kind else 'of the method'}, not {settings!r}"
        )
    found = _given(settings)
    value = found.get("value")
    return found | {"value": _given(value)} if isinstance(value, ValueSettings) else found


def _given(settings: BaseModel) -> dict[str, Any]:
    """Not a dump: those that are left out of it are settings too. In the order of the class, by which work is found again."""
    return {name: getattr(settings, name) for name in type(settings).model_fields if name in settings.model_fields_set}


def _settings(
    editor: Editor,
    method: str,
    settings: Mapping[str, Any] | BaseModel | None,
    model: nn.Module,
    profile: BaseProfile | None,
) -> BaseModel:
    """What is asked for, before what is published for this model, before what the method is by default. Of `value`, each setting by itself;
    what nobody names stays as the method has it, or else as the profile says."""
    own = named(settings, editor.settings)
    usual = {**editor.defaults, **_published(editor, model, own)}
    for pair in EITHER:
        if any(name in own for name in pair):
            usual = {name: value for name, value in usual.items() if name not in pair}
    asked = {**usual, **own}
    values = [part.get("value") for part in (usual, own)]
    field = editor.settings.model_fields.get("value")
    default = None if field is None else field.get_default(call_default_factory=True)
    start = default or (profile.settings.value if profile is not None else None)
    if any(values) and all(value is None or isinstance(value, Mapping) for value in values):
        asked["value"] = {**(start.model_dump() if start else {}), **(values[0] or {}), **(values[1] or {})}
    if isinstance(asked.get("layers"), list):  # as JSON has it
        asked["layers"] = tuple(asked["layers"])
    try:
        return editor.settings.model_validate(asked)
    except ValidationError as error:
        raise KeditError(f"{method} does not take {_fault(error, asked, editor.settings)}") from None


def _published(editor: Editor, model: nn.Module, own: Mapping[str, Any]) -> dict[str, Any]:
    if editor.like is None:
        return {}
    solved_with = {**editor.defaults, **own}.get("preconditioner", "second-moment")
    return preset(model.config, editor.like, solved_with)


def _fault(error: ValidationError, asked: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """The first setting that is wrong, what was given, and what it may be: pydantic tells it once for every branch of a union."""
    faults = error.errors()
    first = faults[0]
    said = first["msg"].removeprefix("Value error, ")
    where = _place(first["loc"], asked)
    if not where:
        return f"these settings together: {said}"
    given = first.get("input")
    if first["type"] == "tuple_type" and isinstance(given, (int, float, str)):
        return f"the setting {where}={given!r}: write {where}=[{given!r}]"
    branches = [fault["msg"] for fault in faults if _place(fault["loc"], asked) == where]
    if len(branches) > 1:
        said = " or ".join(dict.fromkeys(branches))
    return f"the setting {where}={given!r}: {said}; it takes {', '.join(kind.model_fields)}"


def _place(loc: Sequence[int | str], asked: Mapping[str, Any]) -> str:
    """A place in what was asked for, "value.clamp", without the branches of unions that pydantic puts among its names."""
    found: list[str] = []
    inside: Any = asked
    for part in loc:
        if not found or (isinstance(inside, Mapping) and part in inside):
            inside = inside.get(part) if isinstance(inside, Mapping) else None
        elif isinstance(inside, (list, tuple)) and isinstance(part, int) and part < len(inside):
            inside = inside[part]
        else:
            continue
        found.append(str(part))
    return ".".join(found)


def _dataset(item: Mapping[str, Any]) -> dict[str, Any]:
    """The same, checked before the work is done and not after it."""
    try:
        return Dataset.model_validate(dict(item)).model_dump(exclude_none=True)
    except (ValidationError, ValueError, TypeError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise KeditError(
            f"{str(item)[:200]!r} does not name a data set: {said}; write it as "
            '{"id": "owner/name", "revision": <commit of 40 hex digits>, "sha256": <64 hex digits>}, the last two if known'
        ) from None


def _check_profile(model: nn.Module, profile: BaseProfile, method: str, editor: Editor) -> None:
    model_type = getattr(model.config, "model_type", None)
    if model_type != profile.settings.model_type:
        raise ProfileError(
            f"the profile was measured on a {profile.settings.model_type} model ({profile.settings.base}), this is a {model_type}: build "
            "one with `kedit profile`"
        )
    try:
        module = model.get_submodule(profile.module)
    except AttributeError:
        raise ProfileError(
            f"the profile edits {profile.module}, which this model does not have: build one with `kedit profile`"
        ) from None
    width = linear_shape(module)[1]
    if width != len(profile.second_moment):
        raise ProfileError(
            f"the profile's second moment is {len(profile.second_moment)} wide, {profile.module} takes {width}: it belongs to "
            "another base; build one with `kedit profile`"
        )
    if editor.site is not None and profile.site != editor.site:
        raise ProfileError(
            f"{method} takes its keys at the {editor.site} site, the profile of {profile.settings.base} at the {profile.site} site: leave "
            f"profile= out, or build one with `kedit profile --site {editor.site}`"
        )


def _check_distinct(edits: Sequence[Edit]) -> None:
    """EditError where two edits contradict each other as the patches of a stack may not."""
    for conflict in contradictions_within([_Edits(edits)]):
        first, second = (edits[place] for _, place in (conflict.earlier, conflict.later))
        asked = f'"{first.prompt}"'
        if first.prompt != second.prompt:
            asked = f'one question, "{first.prompt}" and "{second.prompt}"'
        raise EditError(
            f'two edits ask for different answers to {asked}: "{first.target}" and "{second.target}"; keep one of them'
        )


@dataclass(frozen=True)
class _Edits:
    """What is to become a patch."""

    edits: Sequence[Edit]
    id: str = "to be made"


class progress_bar:
    """A progress bar on standard error that yields `advance(done)`."""

    def __init__(self, title: str, total: int):
        from rich.console import Console

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task(title, total=total)

    def __enter__(self) -> Advance:
        self.progress.start()
        return lambda done: self.progress.advance(self.task, done)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
