"""What the page works with: bases, patches, limits, and what one visitor holds.

Law: a base is loaded once and never changed; a request is a value, so two visitors cannot see each other's edits; what
a visitor holds lies in the visitor's own session, and Hub repos are read with the visitor's own login or none. Every patch passes
the trust policy of the machine, if there is one, before it is offered and again whenever it is put on a base.
"""

import gc
import importlib.util
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.hf_api import RepoFile

import kedit_hub
from kedit_hub import KeditError, Patch, PatchedModel, PatchStack
from kedit_hub.api import EMBEDDED, Fetched, admit, find_profile, load_model
from kedit_hub.errors import HubError, LimitError, TrustError
from kedit_hub.evaluate.beside import weights_digest
from kedit_hub.evaluate.claims import check_claims
from kedit_hub.hub.client import client, hub_errors, printable
from kedit_hub.hub.ref import HubRef, parse_ref
from kedit_hub.hub.repo import resolve
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.patch import CARD, CONFIG, EVALS, SIGNATURE, TENSORS
from kedit_hub.patch.trust import VARIABLE, TrustPolicy, policy_of
from kedit_hub.stack.conflicts import find_conflicts
from kedit_hub.verification import Claims
from space.gpu import device
from space.sentences import Both, Language, both, told

MAX_QUESTION = 500  # characters of one question
MAX_PATCHES = 50  # chosen at once, and held by one visitor
MAX_NEW_TOKENS = 64
MAX_PATCH_BYTES = 16 << 20  # of a patch that a visitor adds from the Hub
MAX_HELD_BYTES = 64 << 20  # of all patches of one visitor
MAX_PATCH_EDITS = 1_000
MAX_INSTALLED = 16  # patched views kept warm; a view shares its base's weights

PRECISIONS: Mapping[str, Literal["int8", "nf4"] | None] = {"float32": None, "int8": "int8", "nf4": "nf4"}
TITLES = {"llama": "Atlas, Llama architecture", "gpt2": "Atlas, GPT-2 architecture"}
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REF = re.compile(rf"(?:hf://)?{_NAME}/{_NAME}(?:@[A-Za-z0-9_.+/%-]{{1,200}})?")

Policy = Literal["error", "latest", "pin"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A base model on offer. id: as patches name it; source: what load_model takes."""

    id: str
    title: str
    source: str


@dataclass(frozen=True)
class Loaded:
    """A base in memory. lock: held for as long as anything runs through its modules or those of its views. digest: of its weights, as they
    were loaded."""

    id: str
    precision: str
    model: Any
    tokenizer: Any
    digest: str
    lock: Any = field(default_factory=threading.RLock, repr=False)


@dataclass(frozen=True)
class Held:
    """A patch to choose. where: what `kedit_hub.apply` takes for it (made here: after unpacking the download).

    fetched: the patch as the library let it in, with its author, for the trust policy; None: it has no author.
    """

    patch: Patch
    where: str
    origin: Literal["sample", "hub", "made"]
    fetched: Fetched | None = None

    @cached_property
    def claims(self) -> Claims:
        """Whether its scores follow from its recorded answers."""
        return check_claims(self.patch)

    @property
    def name(self) -> str:
        return self.where.removeprefix("patches/")

    @property
    def title(self) -> str:
        return self.titled("en")

    def titled(self, language: Language) -> str:
        """The first edit and the method, as plain text for a label."""
        first, others = self.patch.edits[0], len(self.patch.edits) - 1
        more = told(language, "others", count=others) if others else ""
        origins = {"sample": "", "hub": f" · {self.where.split('@')[0]}", "made": told(language, "made_here")}
        origin = origins[self.origin]
        fact = f"{shortened(first.prompt, 70)} → {shortened(first.target, 30)}"
        return printable(f"{fact}{more} · {self.patch.manifest.method}{origin}")


def kept(own: tuple[Held, ...], held: Held) -> tuple[Held, ...]:
    """What a visitor holds, with one more. LimitError when it is too much."""
    if held in own:
        return own
    size = sum(delta.cost().bytes for item in (*own, held) for delta in item.patch.deltas.values())
    if len(own) >= MAX_PATCHES or size > MAX_HELD_BYTES:
        raise LimitError(
            both("held_too_much", count=len(own) + 1, size=size, most=MAX_PATCHES, most_size=MAX_HELD_BYTES)
        )
    return (*own, held)


@dataclass
class Stop:
    """One visitor's wish to end what runs for them. Read between two forward passes of the model. above: another one that ends this too."""

    own: bool = False
    above: "Stop | None" = None

    @property
    def wished(self) -> bool:
        return self.own or (self.above is not None and self.above.wished)

    @wished.setter
    def wished(self, wish: bool) -> None:
        self.own = wish


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# --- what is on offer ---------------------------------------------------------------------------------------------


def embedded_bases() -> list[Base]:
    """The demo models that come with the package."""
    return [
        Base(name, TITLES.get(architecture, name), name)
        for name, architecture in EMBEDDED.items()
        if (kedit_hub.demo.model_path(architecture) / "config.json").is_file()
    ]


def sample_patches(folder: Path) -> list[Held]:
    """The patches under `folder`, by name. One that cannot be read, or is not trusted, is left out, and the log says why.

    TrustError when there is a trust policy that cannot be read: then nothing is offered at all.
    """
    policy_of(None)
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (path / CONFIG).is_file():
            try:
                found.append(Held(admit(path).patch, f"{folder.name}/{path.name}", "sample"))
            except KeditError as error:
                logger.warning("%s is left out: %s", path.name, error)
    return found


def can_edit(base: str) -> bool:
    """Whether patches can be made here on this base: its profile is shipped, so nobody waits while one is measured."""
    return base in EMBEDDED and kedit_hub.demo.profile(EMBEDDED[base]) is not None


def precisions() -> list[str]:
    """What this machine can load."""
    quantized = importlib.util.find_spec("bitsandbytes") is not None
    return [name for name, quantization in PRECISIONS.items() if quantization is None or quantized]


def hub_endpoint() -> str | None:
    """Address of the hub in use: KEDIT_HUB_ENDPOINT, else None for huggingface_hub's own (HF_ENDPOINT)."""
    return os.environ.get("KEDIT_HUB_ENDPOINT") or None


# --- the trust policy ---------------------------------------------------------------------------------------------


def policy() -> tuple[str, TrustPolicy] | None:
    """The policy that KEDIT_TRUST names and the name of its file, without the folders above it. TrustError."""
    with named_alone():
        found = policy_of(None)
    return None if found is None else (Path(os.environ[VARIABLE]).name, found)


@contextmanager
def named_alone() -> Iterator[None]:
    """Errors about the policy name its file alone: where it lies on this machine is no visitor's business."""
    try:
        yield
    except TrustError as error:
        path = os.environ.get(VARIABLE, "")
        raise TrustError(str(error).replace(f"'{path}'", f"'{Path(path).name}'")) from None


# --- the workshop -------------------------------------------------------------------------------------------------


class Workshop:
    """Bases and sample patches of one running app, and warm patched views. Safe to share between threads."""

    def __init__(
        self,
        bases: Sequence[Base],
        samples: Sequence[Held],
        *,
        endpoint: str | None = None,
        board: str | None = None,
    ):
        """board: the leaderboard that is shown to whoever names no other, user/repo."""
        if not bases:
            raise KeditError("there is no base model to show: install kedit_hub with its demo models")
        self.bases = {base.id: base for base in bases}
        self.samples = tuple(samples)
        self.endpoint = endpoint
        self.board = board
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str], Loaded] = {}
        self._installed: OrderedDict[tuple[Any, ...], PatchedModel] = OrderedDict()

    @cached_property
    def world_edits(self) -> tuple[kedit_hub.Edit, ...]:
        """All demo edits, with their probes: where probes for a visitor's edit come from."""
        return (*kedit_hub.demo.edits("dev"), *kedit_hub.demo.edits("test"))

    def load(self, base: str, precision: str = "float32") -> Loaded:
        """A base at a precision; the first call loads it."""
        if base not in self.bases:
            raise KeditError(both("no_base", base=base[:80], bases=", ".join(self.bases)))
        if precision not in PRECISIONS:
            raise KeditError(both("no_precision", precision=precision[:80], precisions=", ".join(PRECISIONS)))
        with self._lock:
            if (base, precision) not in self._loaded:
                model, tokenizer = load_model(self.bases[base].source, quantization=PRECISIONS[precision])
                self._loaded[base, precision] = Loaded(base, precision, model, tokenizer, weights_digest(model))
            loaded = self._loaded[base, precision]
            if PRECISIONS[precision] is None and loaded.model.device.type != device():
                loaded.model.to(device())
            return loaded

    def admitted(self, patches: Iterable[Held]) -> list[Fetched]:
        """The patches as the library lets them in now. TrustError where the policy refuses one of them."""
        with named_alone():
            return [admit(held.fetched or held.patch, token=False, endpoint=self.endpoint) for held in patches]

    def patched(
        self,
        loaded: Loaded,
        patches: Iterable[Held],
        conflicts: Policy = "error",
        mode: str = "auto",
        pinned: Sequence[str] = (),
        strengths: Sequence[tuple[str, float]] = (),
    ) -> PatchedModel:
        """A view of a base with patches on it, kept warm by content. Hold `loaded.lock` while calling and using it.

        pinned: ids of those that win where patches disagree. strengths: (id, share of its change).
        TrustError where the policy refuses one of them now, also for views that are warm.
        """
        admitted = self.admitted(patches)
        stack = PatchStack([item.patch for item in admitted], conflicts=conflicts, pinned=pinned)
        shares = {key: share for key, share in strengths if share != 1}
        key = (loaded.id, loaded.precision, stack.ids, conflicts, mode, stack.pinned, tuple(sorted(shares.items())))
        with self._lock:
            if key in self._installed:
                self._installed.move_to_end(key)
                return self._installed[key]
        with named_alone():
            made = kedit_hub.apply(
                admitted,
                model=loaded.model,
                tokenizer=loaded.tokenizer,
                conflicts=conflicts,
                mode=mode,
                pinned=sorted(stack.pinned),
                strengths=shares,
            )
        with self._lock:
            self._installed[key] = made
            crowded = len(self._installed) > MAX_INSTALLED
            while len(self._installed) > MAX_INSTALLED:
                self._installed.popitem(last=False)
        if crowded:  # a view and its hooks know each other, and the few objects of its megabytes would wait for a collection for long
            gc.collect()
        return made

    def offered(self, own: Sequence[Held], base: str | None = None) -> list[Held]:
        """Samples, then the visitor's own; each patch once. base: only those made for it."""
        distinct: dict[str, Held] = {}
        for held in (*self.samples, *own):
            distinct.setdefault(held.patch.id, held)
        return [held for held in distinct.values() if base is None or held.patch.manifest.base.id == base]

    def chosen(self, keys: Sequence[str], own: Sequence[Held] = ()) -> tuple[Held, ...]:
        """The patches with these ids, in this order."""
        if len(keys) > MAX_PATCHES:
            raise LimitError(both("too_many_chosen", count=len(keys), most=MAX_PATCHES))
        offered = {held.patch.id: held for held in self.offered(own)}
        missing = [key for key in keys if key not in offered]
        if missing:
            raise KeditError(both("patch_gone", key=missing[0][:64]))
        return tuple(offered[key] for key in dict.fromkeys(keys))

    def find(self, name: str) -> Held:
        """For callers without a session: a sample by name or id, else a public Hub repo."""
        for held in self.samples:
            if name in (held.name, held.where, held.patch.id):
                return held
        return self.from_hub(name)

    def from_hub(self, text: str, token: str | Literal[False] = False) -> Held:
        """A patch of a Hub repo, pinned to its commit, for one of the bases here. token: of the visitor's own login, for private ones;
        False: of public repos alone.

        HubError, SignatureError, TrustError, LimitError, ...: whatever cannot be believed is not added.
        """
        ref = hub_ref(text)
        pinned = resolve(ref, token=token, endpoint=self.endpoint)
        with hub_errors(ref.repo_id, revision=ref.revision, endpoint=self.endpoint, token=token):
            listed = client(self.endpoint, token).get_paths_info(
                pinned.repo_id, [CONFIG, TENSORS, EVALS, SIGNATURE, CARD], revision=pinned.revision
            )
        size = sum(file.size for file in listed if isinstance(file, RepoFile))
        if size > MAX_PATCH_BYTES:
            raise LimitError(both("patch_large", ref=ref, size=size, most=MAX_PATCH_BYTES))
        with named_alone():
            admitted = admit(pinned, token=token, endpoint=self.endpoint)
        patch = admitted.patch
        if len(patch.edits) > MAX_PATCH_EDITS:
            raise LimitError(both("patch_many_edits", ref=ref, count=len(patch.edits), most=MAX_PATCH_EDITS))
        if patch.manifest.base.id not in self.bases:
            raise KeditError(
                both("patch_other_base", ref=ref, base=patch.manifest.base.id, bases=", ".join(self.bases))
            )
        profile = patch.manifest.profile_id
        if any(isinstance(delta, Associative) for delta in patch.deltas.values()) and (
            profile is None or find_profile(profile) is None
        ):  # measuring one takes minutes, which other visitors would wait
            raise KeditError(both("patch_no_profile", ref=ref))
        return Held(patch, str(pinned), "hub", admitted)


def hub_ref(text: str) -> HubRef:
    """user/repo or user/repo@revision, nothing else: no path and no address of a visitor is ever opened."""
    text = text.strip()
    if not _REF.fullmatch(text) or ".." in text:
        raise HubError(both("not_a_name", name=printable(text[:120])))
    ref = parse_ref(text if text.startswith("hf://") else f"hf://{text}")  # hf:// always means the Hub
    assert isinstance(ref, HubRef)
    return ref


def clashes(patches: Sequence[Held]) -> list[Both]:
    """One sentence for each question that two of these patches answer differently. Plain text."""
    titles = {held.patch.id: held.name for held in patches}
    return [
        both(
            "clash",
            question=clash.question,
            first=titles[clash.earlier[0]],
            one=clash.targets[0],
            second=titles[clash.later[0]],
            other=clash.targets[1],
        )
        for clash in find_conflicts([held.patch for held in patches])
    ]
