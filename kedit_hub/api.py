"""The public functions that need every floor: `apply`, `edit`, `build_profile`, `export`, and how bases and profiles are found by name.

A base is named in a patch by its Hub id; the embedded demo models have ids of their own and are loaded from the package. A profile is
looked for where it cannot be mistaken: by content digest among the shipped ones and in the cache, else it is measured and cached.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, assert_never

from pydantic import BaseModel
from torch import Tensor

from kedit_hub import demo, provenance, strictjson
from kedit_hub.base.digest import base_digest
from kedit_hub.base.families import edited_linear, n_layers
from kedit_hub.base.load import load_base
from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors import sweep
from kedit_hub.editors.editor import (
    EDITORS,
    check_works_on,
    editor_of,
    make_patch,
    named,
    progress_bar,
    wants_profile,
)
from kedit_hub.editors.hyper.instructedit import POOL, TASKS
from kedit_hub.editors.hyper.instructions import BRIEF, Propose, Trial, by_grammar, optimise_instructions
from kedit_hub.editors.hyper.lessons import TASK, Lesson
from kedit_hub.editors.hyper.make import in_runs
from kedit_hub.editors.hyper.settings import InstructEditTraining
from kedit_hub.editors.hyper.state import StateError
from kedit_hub.editors.hyper.train import train, trial_editor
from kedit_hub.editors.hyper.trained import METHODS as TRAINED
from kedit_hub.editors.hyper.trained import FileCheckpoint, TrainedEditor, check_saveable, read_settings
from kedit_hub.editors.job import Memo, compute
from kedit_hub.editors.memory.serac import bound, editor_name
from kedit_hub.editors.memory.serac_training import train_serac
from kedit_hub.editors.own_words import sample_texts
from kedit_hub.editors.presets import published_layer
from kedit_hub.editors.rebase import remeasured
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, HubError, KeditError, ProfileError, TrustError
from kedit_hub.evaluate.crew import crew
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.home import home
from kedit_hub.hub.client import Token
from kedit_hub.hub.editors import pull_editor
from kedit_hub.hub.history import is_published
from kedit_hub.hub.ref import FolderRef, HubRef, parse_ref
from kedit_hub.hub.repo import Commit, pull
from kedit_hub.hub.repo import resolve as commit_of
from kedit_hub.hub.seen import is_version
from kedit_hub.hub.stacks import is_stack, pull_entry, pull_stack
from kedit_hub.patch.deltas import Associative, Delta
from kedit_hub.patch.deltas.weights import Weights
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.signature import CONFIG
from kedit_hub.patch.trust import Distrusted, Trusted, TrustPolicy, policy_of
from kedit_hub.records.extras import Record
from kedit_hub.resuming import kept_in
from kedit_hub.stack.choose import by_form, has_rows
from kedit_hub.stack.export import export as write_export
from kedit_hub.stack.lock import LOCK, InRepo, Lock, beside, restore
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.precedence import Policy
from kedit_hub.stack.settings import Mode, StackSettings
from kedit_hub.stack.stack import PatchStack

ASKED = 64  # edits of a stack that an export asks
AFTERWARDS = (
    "failed",
    "precision",
    "portable",
)  # settings that act on finished pieces of work, and so do not name them
EMBEDDED: Mapping[str, str] = {"kedit-hub/atlas-llama": "llama", "kedit-hub/atlas-gpt2": "gpt2"}


def apply(
    patches: Any,
    model: Any = None,
    *,
    tokenizer: Any = None,
    quantization: Literal["int8", "nf4", "fp4"] | None = None,
    dtype: Any = None,
    device_map: Any = None,
    mode: str = "auto",
    conflicts: Policy | None = None,
    trust: TrustPolicy | str | os.PathLike[str] | None = None,
    token: str | None = None,
    profile: BaseProfile | None = None,
    budget: float | None = None,
    settings: StackSettings | Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    strengths: Mapping[str, float] | None = None,
    pinned: Sequence[str | Patch] = (),
    protect: Sequence[str] = (),
    force: bool = False,
    models: Mapping[str, Any] | Sequence[Any] = (),
) -> PatchedModel:
    """A base model that answers with `patches`.

    patches: "user/repo", "user/repo@v1.2.0", "hf://user/repo@sha", a local folder, a Patch, a PatchStack, what `fetch`
    returned, or a list of these. A stack repo, or the path of a kedit.lock, stands for the patches it names; the settings, weights,
    pins and choices of the only stack hold where no argument says otherwise (several stacks give their patches alone).
    model: None (the base the patches name), a transformers model (it is not changed), or a model id or folder.
    quantization, dtype, device_map: how a base is loaded that is not handed in. mode: "auto" | "gated" | "joint" | "sum".
    conflicts: "error" | "latest" | "pin" | a function to ask; None: as the stack says, else "error". profile: the base profile, when it
    is neither shipped nor cached. budget: drift allowed to joint solves. settings: all that can be said of composing; mode and budget
    say it shorter. weights, strengths, pinned: see PatchStack. protect: prompts that the base shall go on answering as it does.
    force: take a base of the same model_type and shapes whose weights are not those the patches were made for (with a warning).
    models: what patches with facts name and nobody fetches, by these names: encoders (texts -> vectors), cross-encoders (pairs -> scores),
    causal models with the base's tokenizer. Trained editors of serac need no name: a list of them (or of folders or Hub refs) will do, and
    the one that comes with a demo model is known.
    trust: a TrustPolicy or the file of one; None: the file that KEDIT_TRUST names, else none. Every patch, also one that is added
    later, is refused with TrustError unless the policy trusts it, before anything touches a model. Only a Hub ref has an author.
    """
    policy = policy_of(trust)
    if isinstance(settings, Mapping):
        settings = StackSettings.of(**settings)
    if isinstance(model, PatchedModel):
        raise KeditError(
            "this model is patched already: add to it with .add(patch), or give the base it was made from (.model)"
        )

    def resolve(item: Any) -> Patch:
        return _admitted(item, policy, token).patch

    locked: Lock | None = None
    if isinstance(patches, PatchStack):
        stack = patches
        for patch in stack:
            resolve(patch)
    else:
        listed = list(patches) if isinstance(patches, (list, tuple)) else [patches]
        found = [fetch_any(item, token=token) for item in listed]
        spliced = [one for item in found for one in (item.patches if isinstance(item, FetchedStack) else (item,))]
        locks = [item.lock for item in found if isinstance(item, FetchedStack)]
        locked = locks[0] if len(locks) == 1 else None
        admitted = [resolve(one) for one in spliced]
        if locked is None:
            stack = PatchStack(admitted, conflicts=conflicts or "error", pinned=pinned)
        else:
            stack = locked.stack(admitted, conflicts)
            settings = settings or (locked.decided if len(found) == 1 else locked.settings)
    for name, weight in (weights or {}).items():
        stack = stack.weigh(name, weight)
    for name, strength in (strengths or {}).items():
        stack = stack.strengthen(name, strength)
    stack = stack.pin(*pinned) if pinned else stack
    if model is None:
        model, revision = _base_of(stack)
    else:
        revision = None
    if isinstance(model, (str, os.PathLike)):
        model, loaded = load_model(
            model, quantization=quantization, dtype=dtype, device_map=device_map, revision=revision, token=token
        )
        tokenizer = tokenizer or loaded
    elif quantization is not None or dtype is not None or device_map is not None:
        raise KeditError(
            "quantization, dtype and device_map say how to load a base; this one is loaded already: leave them out"
        )
    tokenizer = tokenizer or tokenizer_of(model)
    return PatchedModel(
        model,
        tokenizer,
        stack,
        profiles=_profiles(tokenizer, profile, () if locked is None else locked.profiles),
        settings=_settings(settings or StackSettings(), mode, budget),
        protect=protect or (() if locked is None else locked.protect),
        remeasure=remeasured,
        force=force,
        resolve=resolve,
        models=_Models(models, base_name(model)[0], tokenizer),
    )


class _Models(Mapping[str, Any]):
    """By the names that patches use: what was handed over, and the trained editor that comes with a demo model. A trained editor is known
    by its content, whatever it is called here."""

    def __init__(self, given: Mapping[str, Any] | Sequence[Any], base: str, tokenizer: Any):
        self.tokenizer = tokenizer
        self.known: dict[str, Any] = {}
        self.shipped = demo.editor_path("serac", EMBEDDED.get(base))
        for name, item in given.items() if isinstance(given, Mapping) else (("", item) for item in given):
            self._take(name, pull_editor(item) if isinstance(item, (str, os.PathLike)) else item)

    def _take(self, name: str, item: Any) -> None:
        if isinstance(item, TrainedEditor):
            self.known[editor_name(item)] = bound(item, self.tokenizer)
        elif name:
            self.known[name] = item
        else:
            raise KeditError(
                f"models= holds {str(item)[:80]!r}, which is no trained editor: say by which name patches ask for it, as in "
                'models={"owner/name@<commit>": ...}'
            )

    def __getitem__(self, name: str) -> Any:
        if name not in self.known and self.shipped is not None:
            self._take("", TrainedEditor.load(self.shipped))
            self.shipped = None
        return self.known[name]

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _settings(settings: StackSettings, mode: str, budget: float | None) -> StackSettings:
    """What was said shorter goes before."""
    said = {"mode": None if mode == "auto" else mode, "budget": budget}
    return StackSettings.of(
        **{**settings.model_dump(), **{name: value for name, value in said.items() if value is not None}}
    )


@dataclass(frozen=True)
class Fetched:
    """A patch, and whose it is.

    author: the user or organization who put it into the branch or tag of the Hub repo it came from; None: a folder, memory, a repo
    without an owner, or a commit. commit: one that `author` is not known of yet, since it may be of anybody's pull request.
    """

    patch: Patch
    author: str | None = None
    commit: HubRef | None = None


@dataclass(frozen=True)
class FetchedStack:
    """A locked stack: its lock, and its patches in order, each as it was fetched."""

    lock: Lock
    patches: tuple[Fetched, ...]


def fetch(item: Any, *, token: Token = None, endpoint: str | None = None) -> Fetched:
    """What `item` names (or is), unjudged: a Hub ref, a folder, a Patch. KeditError for a stack. See `admit`."""
    found = fetch_any(item, token=token, endpoint=endpoint)
    match found:
        case Fetched():
            return found
        case FetchedStack(patches=patches):
            held = ", ".join(one.patch.id[:12] for one in patches[:5]) + (", ..." if len(patches) > 5 else "")
            raise KeditError(
                f"'{item}' is a stack of {len(patches)} patches ({held}), and one patch is wanted here: name the repo or folder "
                "of one of them, or give the stack to kedit_hub.apply"
            )
        case _:
            assert_never(found)


def fetch_any(item: Any, *, token: Token = None, endpoint: str | None = None) -> Fetched | FetchedStack:
    """`fetch`, where the item may also be a stack: a stack repo, the path of a kedit.lock, or the folder of one that holds no patch.

    The patches of a stack are those that were locked, or it is refused with the reasons.
    """
    if isinstance(item, (Fetched, FetchedStack)):
        return item
    if isinstance(item, Patch):
        return Fetched(item)
    file = lock_file(item)
    if file is not None:
        lock = Lock.load(file)
        stack, _ = restore(lock, beside(lock, file, partial(pull_entry, token=token, endpoint=endpoint)))
        return FetchedStack(lock, _entries(lock, stack, None, None))
    ref = item if isinstance(item, HubRef) else parse_ref(item)
    match ref:
        case FolderRef(path):
            return Fetched(Patch.load(path))
        case HubRef(repo_id):
            commit = ref if ref.is_pinned else commit_of(ref, token=token, endpoint=endpoint)
            author, unsure = (_owner(repo_id), None) if _is_own(ref) else (None, commit)
            if is_stack(commit, token=token, endpoint=endpoint):
                pulled = pull_stack(commit, token=token, endpoint=endpoint)
                return FetchedStack(pulled.lock, _entries(pulled.lock, pulled.stack, author, unsure))
            return Fetched(pull(commit, token=token, endpoint=endpoint), author, unsure)
        case _:
            assert_never(ref)


def lock_file(item: Any) -> Path | None:
    """The kedit.lock that a path names, itself or as its folder; None for anything else, and for the folder of a patch."""
    if not isinstance(item, (str, os.PathLike)) or (isinstance(item, str) and item.startswith("hf://")):
        return None
    path = os.path.expanduser(item)
    inside = os.path.join(path, LOCK)
    if os.path.basename(path) == LOCK and os.path.isfile(path):
        return Path(path)
    return Path(inside) if os.path.isfile(inside) and not os.path.lexists(os.path.join(path, CONFIG)) else None


def _entries(lock: Lock, stack: PatchStack, author: str | None, commit: HubRef | None) -> tuple[Fetched, ...]:
    """Every patch with where it came from: of one in a repo that repo, of a packed one the stack (author, commit)."""
    return tuple(
        Fetched(patch, commit=HubRef(entry.source.repo, entry.source.commit))
        if isinstance(entry.source, InRepo)
        else Fetched(patch, author, commit)
        for entry, patch in zip(lock.patches, stack)
    )


def author_for(policy: TrustPolicy, found: Fetched, *, token: Token = None, endpoint: str | None = None) -> str | None:
    """The author to judge `found` by. Whose a commit is, is asked of the hub where the verdict depends on it; TrustError without one."""
    commit = found.commit
    if commit is None or isinstance(policy.judge(found.patch, found.author), Trusted):
        return found.author
    owner = _owner(commit.repo_id)
    if isinstance(policy.judge(found.patch, owner), Distrusted):
        return owner  # refused whoever made the commit, and the reasons name the repo
    try:
        return owner if is_published(commit, token=token, endpoint=endpoint) else None
    except HubError as cause:
        raise TrustError(
            f"the trust policy goes by the author of '{commit}', and whether that commit is in a branch or tag of the repo, or in "
            f"somebody's pull request, cannot be asked of the hub: {cause} Name a version tag, or trust a signer."
        ) from cause


def admit(
    item: Any,
    trust: TrustPolicy | str | os.PathLike[str] | None = None,
    *,
    token: Token = None,
    endpoint: str | None = None,
) -> Fetched:
    """`fetch` for whoever uses a patch without `apply`: TrustError unless the policy trusts it. trust: as for `apply`."""
    return _admitted(item, policy_of(trust), token, endpoint)


def _admitted(item: Any, policy: TrustPolicy | None, token: Token, endpoint: str | None = None) -> Fetched:
    found = fetch(item, token=token, endpoint=endpoint)
    if policy is None:
        return found
    author = author_for(policy, found, token=token, endpoint=endpoint)
    policy.require(found.patch, author)
    return found if author is None else Fetched(found.patch, author)


def _is_own(ref: HubRef) -> bool:
    """True for what only members of a repo can move: main, and the tags of versions. Of others the hub has to say whose they are."""
    if isinstance(ref, Commit):
        return ref.asked == "main" or is_version(ref.asked)
    return ref.revision in (None, "main") or is_version(ref.revision)


def _owner(repo_id: str) -> str | None:
    return repo_id.rpartition("/")[0] or None


def edit(
    model: Any,
    edits: Sequence[Edit | Record] | Edit | Record,
    method: str = "memit",
    *,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | BaseModel | None = None,
    profile: BaseProfile | None = None,
    on: PatchStack | PatchedModel | Patch | Sequence[Patch] | None = None,
    datasets: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    work: str | os.PathLike[str] | None = None,
    progress: bool = True,
    editor: TrainedEditor | str | os.PathLike[str] | None = None,
    models: Mapping[str, Any] | Sequence[Any] = (),
) -> Patch:
    """A patch that makes `model` answer the edits. The model is not changed.

    model: a transformers model, a PatchedModel (edited as its base: keys and values belong to the base, so that they hold in any company),
    or a model id or folder. edits: Edit, or records of read_records, each of which InstructEdit reads as of its own task where the settings
    name none. method: one of `kedit_hub.methods()`. settings: of the method, a mapping or an object of its class; what is not
    given to either stays as the method has it. profile: None = the shipped or cached one of this base, else one is measured now, where the
    method goes by one. on: a stack the patch is meant for; ConflictError if it would contradict it. A method whose patches stand on what
    lies below (fine-tuning, weights written layer by layer) edits the model as that stack leaves it, and its patch requires the stack;
    DAFNet goes on from the patches that the same trained editor made, and requires those. datasets: where the edits come from, each
    {"id", "revision"?, "sha256"?}; written into the patch's provenance.
    work: a folder to keep finished batches in: the same call goes on from there after it was killed. editor: a trained editor, its folder
    or Hub repo, which says the method; the methods that take one have a shipped editor for the demo model, or none. models: what the
    patches of `on` name and nobody fetches, as for `apply`.
    """
    given = [edits] if isinstance(edits, (Edit, Record)) else list(edits)
    for one in given:
        if not isinstance(one, (Edit, Record)):
            raise EditError(
                f"{str(one)[:80]!r} is no Edit: write Edit(prompt, target, subject=...), or read a file by read_edits"
            )
    wanted = [one.edit if isinstance(one, Record) else one for one in given]
    if on is not None and not isinstance(on, (PatchStack, PatchedModel)):
        on = PatchStack([on] if isinstance(on, Patch) else on)
    stack = on.stack if isinstance(on, PatchedModel) else on
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if isinstance(model, PatchedModel):
        stands = editor is None and method in EDITORS and not EDITORS[method].on_base
        with nullcontext() if stands and on is model else model.disabled():
            return edit(
                model.model, given, method, tokenizer=tokenizer, settings=settings, profile=profile, on=on, datasets=datasets,
                seed=seed, work=work, progress=progress, editor=editor, models=models,
            )  # fmt: skip
    if isinstance(model, (str, os.PathLike)):
        model, loaded = load_model(model)
        tokenizer = tokenizer or loaded
    tokenizer = tokenizer or tokenizer_of(model)
    if editor is not None or method in TRAINED:
        method, settings = _with_editor(model, method, settings, editor, given)
    row = editor_of(method)
    settings = named(settings, row.settings)
    check_works_on(model, method)
    standing = stack is not None and len(stack) > 0 and not row.on_base
    if stack is not None:
        stack.foresee(wanted)
    live = on if isinstance(on, PatchedModel) else None
    if live is None and standing:
        live = apply(stack, model, tokenizer=tokenizer, models=models)
    with live.disabled() if live is not None else nullcontext():
        if profile is None and wants_profile(model, row):
            find = partial(profile_of, progress=progress) if row.site is None else classic_profile
            profile = find(model, tokenizer)
    used = live.model if standing and live is not None else model
    below = tuple(stack) if standing and stack is not None else ()
    if row.follows and stack is not None:
        own = getattr(settings.get("editor"), "id", None)
        below = tuple(
            patch for patch in stack if own is not None and patch.manifest.settings.get("trained_editor") == own
        )
        weakened = [patch.id for patch in below if stack.strengths.get(patch.id, 1.0) != 1.0]
        if weakened:
            raise KeditError(
                f"patch {weakened[0][:12]} stands in the stack at strength {stack.strengths[weakened[0]]:g}, and {method} weighs new edits "
                "against its whole: make the patch on the stack at full strength, and weaken them together"
            )
    name = base_name(model)
    memo: Memo = compute
    if work is not None:
        told = {key: _named(value) for key, value in settings.items() if key not in AFTERWARDS}
        records = [edit.to_record() for edit in wanted]
        made_from = {
            "method": method,
            "settings": told,
            "edits": records,
            "base": [*name, base_digest(model)],
            "seed": seed,
        }
        made_from |= {"profile": profile and profile.id, "below": [patch.id for patch in below]}
        memo = kept_in(work, made_from | {"versions": provenance.versions()})
    patch = make_patch(
        used,
        tokenizer,
        wanted,
        profile,
        method=method,
        settings=settings,
        base=name,
        below=below,
        moments=_moments(model, tokenizer, live),
        datasets=datasets,
        seed=seed,
        memo=memo,
        progress=progress,
    )
    if stack is not None:
        stack.add(patch)
    return patch


def _named(value: Any) -> str:
    """A setting's value, the same in every process: an editor by its id, a function by where it is written."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(getattr(value, "id", repr(value)))


def _moments(model: Any, tokenizer: Any, live: PatchedModel | None) -> Callable[[str], Tensor]:
    """Second moments of the base by path of the map, on ordinary text; measured once a machine and kept, like profiles."""
    texts: list[str] = []
    digest = cache(partial(base_digest, model))  # it reads every weight

    def moment(path: str) -> Tensor:
        layer = next(i for i in range(n_layers(model)) if edited_linear(model, i)[0] == path)

        def build() -> BaseProfile:
            name = base_name(model)[0]
            if not texts:
                embedded = name in EMBEDDED
                texts.extend(demo.texts("profile") if embedded else sample_texts(model, tokenizer, 2000, seed=0))
            return sweep.build_profile(model, tokenizer, texts, layer, site="subject", name=name, progress=False)

        with live.disabled() if live is not None else nullcontext():
            return _kept(f"text-{layer}-{digest()}", build).second_moment

    return moment


def _with_editor(
    model: Any,
    method: str,
    settings: Mapping[str, Any] | BaseModel | None,
    editor: TrainedEditor | str | os.PathLike[str] | None,
    edits: Sequence[Edit | Record],
) -> tuple[str, dict[str, Any]]:
    """The method of the trained editor, and settings that hold it, and the tasks of records."""
    found = named(settings, EDITORS[method].settings if method in TRAINED else None)
    if editor is None:
        shipped = demo.editor_path(method, EMBEDDED.get(base_name(model)[0]))
        editor = found.get("editor") or shipped
    if isinstance(editor, (str, os.PathLike)):
        editor = pull_editor(editor)
    if editor is None:
        return method, found  # the method says what it lacks
    if method not in ("memit", editor.method):
        raise KeditError(f"method={method!r} and an editor of {editor.method}: leave method out, the editor says it")
    told = [name for name in ("task", "description") if found.get(name) is not None]
    instructed = editor.method == "instructedit" and editor.settings.instructed
    if told and not instructed:
        raise KeditError(
            f"{told[0]}={str(found[told[0]])[:80]!r} is for an editor of instructedit, this one is of {editor.method} and reads no "
            "instruction: leave it out"
        )
    if instructed and found.get("task") is None and any(isinstance(one, Record) for one in edits):
        found["task"] = in_runs([Lesson.of(one).task for one in edits])
    return editor.method, {**found, "editor": editor}


def train_editor(
    model: Any,
    edits: Sequence[Any],
    method: str = "mend",
    *,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    datasets: Sequence[Mapping[str, Any]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    half: bool = False,
    progress: bool = True,
    out: str | os.PathLike[str] | None = None,
) -> TrainedEditor:
    """An editor trained on `edits`, split by subject into training and validation. The model is not changed.

    edits: Edit, records of read_records, or Lesson. method: "ke", "mend", "instructedit", "dafnet", "malmen", "rledit", "serac". settings:
    of its class, see kedit_hub.editors.hyper.trained.METHODS. checkpoint: a folder; the same call goes on from there after it was killed,
    to the same editor. half: keep parameters in float16. out: a folder to save the editor to, before the checkpoint is removed. Under
    `accelerate launch` its processes train one editor together (SERAC: the first one, and the others wait), and each returns it; the
    first one saves.
    """
    if method not in TRAINED:
        raise KeditError(f"there is no editor to train of the name {method!r}; take one of: {', '.join(TRAINED)}")
    chosen = read_settings(method, settings or {})
    lessons = _lessons(edits, seed)
    if out is not None:
        check_saveable(out)
    if isinstance(model, (str, os.PathLike)):
        model, loaded = load_model(model)
        tokenizer = tokenizer or loaded
    tokenizer = tokenizer or tokenizer_of(model)
    kept = None
    if checkpoint is not None:
        kept = FileCheckpoint(
            checkpoint, method=method, settings=chosen.model_dump(mode="json"), seed=seed, base=base_digest(model),
            lessons=sha256(repr(lessons).encode()).hexdigest(), versions=provenance.versions(),
        )  # fmt: skip
    with crew() as team:
        talks = progress and team.leads
        bar = progress_bar(f"{method}: training", chosen.steps) if talks else nullcontext(lambda done: None)
        with bar as advance:
            how: dict[str, Any] = {"seed": seed, "checkpoint": kept, "advance": advance}
            try:
                if method == "serac":
                    [trained] = team.map([chosen], lambda chosen: train_serac(model, tokenizer, lessons, chosen, **how))
                else:
                    trained = train(model, tokenizer, lessons, method, chosen, crew=team, **how)
            except StateError as cause:
                raise (cause if kept is None else kept.damaged(str(cause))) from None
    made = TrainedEditor.create(
        trained,
        method=method,
        model=model,
        base=base_name(model),
        lessons=lessons,
        seed=seed,
        datasets=datasets,
        half=half,
    )
    if team.leads and out is not None:
        made.save(out)
    if team.leads and kept is not None:
        kept.done()
    return made


def _lessons(edits: Sequence[Any], seed: int, task: str = TASK) -> list[Lesson]:
    """What an editor is trained on, with this seed; of `task` where nothing else is said. EditError for what is no edit, KeditError for a
    seed that no generator takes."""
    given = [edits] if isinstance(edits, (Edit, Record, Lesson)) else list(edits)
    for one in given:
        if not isinstance(one, (Edit, Record, Lesson)):
            raise EditError(
                f"{str(one)[:80]!r} is no edit to train on: write Edit(prompt, target, subject=...), or read a file by read_edits"
            )
    if not (isinstance(seed, int) and 0 <= seed < 1 << 63):
        raise KeditError(f"seed={seed!r} is no seed: take a whole number from 0 to 2**63 - 1")
    return [Lesson.of(edit, task) for edit in given]


def find_instructions(
    model: Any,
    edits: Sequence[Any],
    task: str,
    *,
    tokenizer: Any = None,
    propose: Propose | None = None,
    settings: Mapping[str, Any] | None = None,
    count: int = 4,
    patience: int = 2,
    keep: int = POOL,
    seed: int = 0,
    told: Callable[[Trial], None] = lambda trial: None,
    progress: bool = True,
) -> tuple[list[str], list[Trial]]:
    """(the best `keep` instructions for InstructEdit's `task`, best first; all that were tried). The model is not changed.

    One editor is trained briefly, as `settings` (of an "instructedit" training) say, and asked under every instruction about the same edits
    of subjects it was not trained on. propose: None = `count` at a time from the template grammar, without a network; see
    kedit_hub.editors.hyper.instructions for a language model's. It ends when nothing is proposed, or `patience` rounds brought nothing
    better. told: called with every trial. edits: as for `train_editor`, of `task` where they say of no other.
    `train_editor(..., settings={"pools": {task: best}})` takes the instructions. KeditError for an unknown task, and a count, patience or
    keep below 1.
    """
    if task not in TASKS:
        raise KeditError(f"there is no task {task!r}; take one of {', '.join(TASKS)}")
    for name, number in (("count", count), ("patience", patience), ("keep", keep)):
        if not (isinstance(number, int) and number >= 1):
            raise KeditError(f"{name}={number!r}: take a whole number from 1")
    lessons = _lessons(edits, seed, task)
    if isinstance(model, (str, os.PathLike)):
        model, loaded = load_model(model)
        tokenizer = tokenizer or loaded
    tokenizer = tokenizer or tokenizer_of(model)
    chosen = read_settings("instructedit", {**BRIEF, **(settings or {})})
    assert isinstance(chosen, InstructEditTraining)
    propose = propose or by_grammar(task, count, seed)
    with (
        progress_bar("trial editor: training", chosen.steps) if progress else nullcontext(lambda done: None) as advance
    ):
        trial = trial_editor(model, tokenizer, lessons, task, chosen, seed=seed, advance=advance)
    return optimise_instructions(propose, trial, patience=patience, keep=keep, told=told)


def evaluate_editor(
    editor: TrainedEditor | str | os.PathLike[str],
    edits: Sequence[Edit | Record],
    model: Any = None,
    *,
    tokenizer: Any = None,
    sizes: Sequence[int] = (1, 10, 100),
    sequences: int = 10,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """How sequences of edits by a trained editor go, asked under teacher forcing after the last edit of each.

    model: None = the base the editor was trained on. sizes: edits of a sequence; of each size at most `sequences` are cut from the front of
    `edits`, one after the other. Means over sequences, the change applied as weights; sizes that there are too few edits for are left out,
    and so are edits of subjects that the editor was trained on, with a warning: it does better on these than on what it has not seen.
    Records are edited under their own tasks, as by `edit`. turn in a row: edits that were read at once, where that were not all.
    """
    editor = editor if isinstance(editor, TrainedEditor) else pull_editor(editor)
    unseen = editor.unseen(edits)
    if len(unseen) < len(edits):
        warnings.warn(
            f"{len(edits) - len(unseen):,} of {len(edits):,} edits are left out: the editor was trained on their subjects or questions",
            stacklevel=2,
        )
    model = editor.manifest.base.id if model is None else model
    if isinstance(model, (str, os.PathLike)):
        model, loaded = load_model(model)
        tokenizer = tokenizer or loaded
    tokenizer = tokenizer or tokenizer_of(model)
    rows = []
    for size in sizes:
        cut = [unseen[i : i + size] for i in range(0, len(unseen) - size + 1, size)][:sequences]
        bar = (
            progress_bar(f"{editor.method}: sequences of {size}", len(cut))
            if progress
            else nullcontext(lambda done: None)
        )
        with bar as advance:
            sheets = []
            for chosen in cut:
                patch = edit(model, chosen, editor=editor, tokenizer=tokenizer, settings=settings, progress=False)
                models = [editor] if editor.method == "serac" else []
                patched = apply(patch, model, tokenizer=tokenizer, mode="sum", models=models)
                sheet = evaluate(patched, patch.edits, protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
                patched.detach()
                seconds = (patch.evals or {})["making"]["seconds"] / size
                localities = {f"locality.{kind}": value for kind, value in sheet["locality"].items()}
                sheets.append(
                    {
                        **{name: sheet[name] for name in ("reliability", "generalization")},
                        **localities,
                        "seconds": seconds,
                    }
                )
                advance(1)
        if sheets:
            names = dict.fromkeys(name for sheet in sheets for name in sheet)
            known = {name: [sheet[name] for sheet in sheets if sheet.get(name) is not None] for name in names}
            means = {name: sum(values) / len(values) for name, values in known.items() if values}
            turn = patch.manifest.settings.get("turn")
            rows.append({"edits": size, "sequences": len(sheets), **({} if turn is None else {"turn": turn}), **means})
    return rows


def build_profile(
    model: Any,
    tokenizer: Any = None,
    texts: Sequence[str] | None = None,
    layer: int | Literal["auto"] = "auto",
    *,
    site: Literal["auto", "subject", "answer"] = "auto",
    edits: Sequence[Edit] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> BaseProfile:
    """Measure a base: see kedit_hub.editors.sweep. edits: dev edits; None = the general-knowledge dev edits that come with the package."""
    if isinstance(model, (str, os.PathLike)):
        model, loaded = load_model(model)
        tokenizer = tokenizer or loaded
    tokenizer = tokenizer or tokenizer_of(model)
    dev = demo.edits("dev") if edits is None else edits
    name = base_name(model)[0]
    return sweep.build_profile(
        model, tokenizer, texts, layer, site=site, edits=dev, name=name, seed=seed, progress=progress
    )


def export(
    stack: Any,
    folder: str | os.PathLike[str],
    format: Literal["peft", "serving", "merged"] = "peft",
    *,
    model: Any = None,
    tokenizer: Any = None,
    profile: BaseProfile | None = None,
    budget: float | None = None,
    quantization: Literal["int8", "nf4", "fp4"] | None = None,
    measure: bool = True,
) -> Path:
    """Write a stack as files other software reads: see kedit_hub.stack.export. Returns the folder, which has to be new or empty.

    stack: what `apply` returned, or whatever `apply` takes, which is then applied to `model` (None: the base the patches name).
    quantization: of a merged model, rounded once. measure: ask some of the edits in the gated form and in the one that leaves, and
    write into README.md and kedit_export.json what leaving the gate costs.
    """
    measured = _cost_of_leaving if measure else None
    if isinstance(stack, PatchedModel):
        return write_export(
            stack, folder, format, model=model, tokenizer=tokenizer, profile=profile, budget=budget,
            quantization=quantization, measured=measured,
        )  # fmt: skip
    patched = apply(stack, model, tokenizer=tokenizer, mode="joint", profile=profile, budget=budget)
    return write_export(patched, folder, format, quantization=quantization, measured=measured)


def _cost_of_leaving(patched: PatchedModel) -> dict[str, Any] | None:
    """Scores under teacher forcing of at most ASKED edits of the stack, in the form that leaves and, where there is one, behind the gate.

    Which edits are asked is drawn by their contents, so that it is a function of the set. None: there is no tokenizer to ask with.
    """
    if patched.tokenizer is None:
        return None
    stack, mode = patched.stack, patched.report["mode"]
    leaves: Mode = "joint" if mode == "gated" else mode
    gateable = by_form(stack, StackSettings()).mode == "gated" and has_rows(stack)
    everything = sorted(stack.edits, key=lambda edit: sha256(strictjson.canonical(edit.to_record())).hexdigest())
    asked = everything[:ASKED]
    forms: dict[str, Any] = {}
    for form in ("gated", leaves) if gateable else (leaves,):
        with patched.under(form):
            scores = evaluate(patched, asked, protocols=("tf-token",))
        told = scores.protocols["tf-token"]
        forms[form] = {name: told[name] for name in ("reliability", "generalization", "locality")}
        forms[form]["kl"] = scores.drift["kl"]
    return {"protocol": "tf-token", "edits": len(asked), "of": len(everything), "leaves": leaves, "forms": forms}


# -- names ------------------------------------------------------------------------------------------------------------------------------


def load_model(name: str | os.PathLike[str], **how: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a Hub id, a folder or an embedded demo model."""
    embedded = EMBEDDED.get(os.fspath(name))
    if embedded is not None:
        how.pop("revision", None)
        return load_base(demo.model_path(embedded), **how)
    return load_base(name, **how)


def base_name(model: Any) -> tuple[str, str | None]:
    """(id, commit) under which a patch names this base: an embedded id, a Hub id with its commit, or a folder's own name."""
    where = str(getattr(model.config, "_name_or_path", "") or "")
    for name, architecture in EMBEDDED.items():
        if where and Path(where) == demo.model_path(architecture):
            return name, None
    if where and Path(where).expanduser().exists():
        where = Path(where).expanduser().resolve().name
    name = re.sub(r"[^A-Za-z0-9._/-]+", "-", where).strip("-./") or str(model.config.model_type)
    commit = getattr(model.config, "_commit_hash", None)
    return name, commit if isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit) else None


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that lies beside a loaded model."""
    from transformers import AutoTokenizer

    where = str(getattr(model.config, "_name_or_path", "") or "")
    if not where:
        raise KeditError(
            "this model does not say where it came from, so its tokenizer cannot be found: pass tokenizer="
        )
    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError):
        raise KeditError(f"no tokenizer found at {where!r}: pass tokenizer=") from None


def _base_of(stack: PatchStack) -> tuple[str, str | None]:
    bases = {(patch.manifest.base.id, patch.manifest.base.revision) for patch in stack}
    if len({name for name, _ in bases}) != 1:
        named = ", ".join(sorted({name for name, _ in bases})) or "none"
        raise KeditError(
            f"the patches name {len(bases)} different bases ({named}): pass model= to say which one to use"
        )
    revisions = {revision for _, revision in bases if revision is not None}
    name = next(iter(bases))[0]
    if name not in EMBEDDED and "/" not in name:
        raise KeditError(
            f'the patch was made on a local model called "{name}": pass model= with that model or its folder'
        )
    return name, revisions.pop() if len(revisions) == 1 else None


# -- profiles ---------------------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where measured profiles are kept: $KEDIT_HOME, or ~/.cache/kedit_hub."""
    return home() / "profiles"


def save_profile(profile: BaseProfile, name: str | None = None) -> Path:
    """Into the cache, under its content digest (or a digest-made name); whole or not at all."""
    folder = cache_folder() / (name or profile.id)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".profile-") as temporary:
            written = profile.save(Path(temporary) / "new")
            if not folder.exists():
                os.rename(written, folder)
    return folder


def find_profile(profile_id: str) -> BaseProfile | None:
    """A shipped or cached profile by its content digest."""
    for architecture in demo.ARCHITECTURES:
        shipped = demo.profile(architecture)
        if shipped is not None and profile_id in shipped.ids:
            return shipped
    folder = cache_folder() / profile_id
    return BaseProfile.load(folder) if folder.is_dir() else None


def profile_of(model: Any, tokenizer: Any, *, progress: bool = True) -> BaseProfile:
    """The profile to edit this base under: shipped for the demo models, else cached by the digest of its weights, else measured now."""
    architecture = EMBEDDED.get(base_name(model)[0])
    shipped = demo.profile(architecture) if architecture else None
    if shipped is not None:
        return shipped
    return _kept(f"sweep-{base_digest(model)}", lambda: build_profile(model, tokenizer, progress=progress))


def classic_profile(model: Any, tokenizer: Any) -> BaseProfile:
    """What the classic presets edit under: subject site, published depth, nothing swept. Cached by the digest of the base's weights."""

    def build() -> BaseProfile:
        name = base_name(model)[0]
        texts = demo.texts("profile") if name in EMBEDDED else None
        layer = published_layer(model.config)
        return sweep.build_profile(model, tokenizer, texts, layer, site="subject", name=name, progress=False)

    return _kept(f"classic-{base_digest(model)}", build)


def _kept(name: str, build: Callable[[], BaseProfile]) -> BaseProfile:
    """The cached profile of this name, else a new one, kept under the name and under its own id, where a patch that names it finds it."""
    if not (cache_folder() / name).is_dir():
        made = build()
        save_profile(made)
        save_profile(made, name)
    return BaseProfile.load(cache_folder() / name)


def _profiles(
    tokenizer: Any, given: BaseProfile | None, locked: Sequence[str] = ()
) -> Callable[[PatchStack, Any], Mapping[str, BaseProfile]]:
    """The lookup a PatchedModel composes with: profile by path of the edited module, each found once.

    locked: ids of the profiles a lock was made with, which go before those the patches name. ProfileError where one is not here and
    none is given: under another one the same lock would give other answers.
    """
    found = {name: find_profile(name) for name in locked}
    missing = [name for name, profile in found.items() if profile is None]
    if missing and given is None:
        raise ProfileError(
            f"the lock was made with the base profile {missing[0]}, which is not on this machine, and with another one its stack answers "
            f"otherwise. Copy the folder of that profile from where the lock was made to {cache_folder() / missing[0]}; or pass profile=, "
            "such as kedit_hub.build_profile(model), if other answers than those that were locked will do"
        )
    fixed: dict[str, BaseProfile] = {profile.module: profile for profile in found.values() if profile is not None}
    fixed |= {} if given is None else {given.module: given}
    made: dict[tuple[object, ...], BaseProfile] = {}  # of patches, each read or measured once
    digest = cache(base_digest)  # it reads every weight

    def of(patch: Patch, path: str, delta: Delta, model: Any) -> BaseProfile:
        name = patch.manifest.profile_id
        where = (delta.site, delta.gate_module) if isinstance(delta, Associative) else None
        key = (path, name, patch.manifest.modules[path].layer, where)
        if key not in made:
            own = find_profile(name) if name else None
            made[key] = (
                own
                if own is not None and own.module == path
                else _measured(patch, path, delta, model, tokenizer, digest)
            )
        return made[key]

    def lookup(stack: PatchStack, model: Any) -> Mapping[str, BaseProfile]:
        """A function of the set: of a path that several patches name profiles of, the first patch by id, rows before weights."""
        known, later = dict(fixed), {}
        ordered = sorted(stack, key=lambda p: p.id)
        held = [(patch, path, delta) for patch in ordered for path, delta in patch.deltas.items()]
        for patch, path, delta in sorted(held, key=lambda entry: not isinstance(entry[2], Associative)):
            if path not in known and isinstance(delta, Associative):
                known[path] = of(patch, path, delta, model)
            elif path not in known and path not in later and _solvable(delta, path, model):
                later[path] = partial(of, patch, path, delta, model)
        return _Profiles(known, later)

    return lookup


class _Profiles(Mapping[str, BaseProfile]):
    """By path. Those of changes of a weight are measured when they are asked for, which only a joint solve does."""

    def __init__(self, known: Mapping[str, BaseProfile], later: Mapping[str, Callable[[], BaseProfile]]):
        self._known, self._later = known, later

    def __getitem__(self, path: str) -> BaseProfile:
        return self._later[path]() if path in self._later else self._known[path]

    def __contains__(self, path: object) -> bool:
        return path in self._known or path in self._later

    def __iter__(self) -> Iterator[str]:
        return iter({**self._known, **self._later})

    def __len__(self) -> int:
        return len({**self._known, **self._later})


def _solvable(delta: Delta, path: str, model: Any) -> bool:
    """Whether a joint solve takes this change of a weight as rows: it has keys, and profiles are measured at its module."""
    return (
        isinstance(delta, Weights)
        and delta.keys is not None
        and path in {edited_linear(model, layer)[0] for layer in range(n_layers(model))}
    )


def _measured(
    patch: Patch, path: str, delta: Delta, model: Any, tokenizer: Any, digest: Callable[[Any], str]
) -> BaseProfile:
    """Only what composing needs: the second moments where this patch edits, under default thresholds. Cached by content: the digest of
    the model."""
    layer = patch.manifest.modules[path].layer
    heard = delta.gate_module if isinstance(delta, Associative) else None
    gate_layer = 0 if heard is None else int(next(part for part in heard.split(".") if part.isdigit()))
    if layer is None:
        raise ProfileError(f"patch {patch.id[:12]} edits {path}, which is in no layer: pass profile=")
    site: Literal["answer", "subject"] = (
        "subject" if isinstance(delta, Associative) and delta.site == "subject" else "answer"
    )
    name = f"moments-{sha256(f'{digest(model)} {layer} {gate_layer} {site}'.encode()).hexdigest()}"

    def build() -> BaseProfile:
        return sweep.build_profile(
            model, tokenizer, None, layer, site=site, gate_layer=gate_layer, name=base_name(model)[0], progress=False
        )

    return _kept(name, build)
