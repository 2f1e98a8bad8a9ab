"""Fine-tuning of the editable linear map of one or a few layers: FT, FT-L, FT-M and LocFT-BF as settings of one loop.

    dW = 0                                        (m, d) float32, beside the frozen base: y + x dW^T
    for every pass over the examples, for every batch of it:
        loss = mean over the batch of -log p(target | prompt), a mean over the target's tokens
        dW <- Adam(dW, d loss / d dW)             unless the loss is below stop_loss already
        dW <- clamp(dW, -norm_bound, norm_bound)  entry by entry
    until the mean loss of a pass is below stop_loss

ft      objective "prompt-last": every token of the target is predicted at the prompt's last token, as in the baselines of Meng et al. 2022
        and EasyEdit. Of a target of several tokens this teaches a mixture; it is kept to be compared with.
ft-l    the same inside |dW| <= norm_bound (Zhu et al. 2020).
ft-m    objective "target": ordinary next-token prediction of the target and of the end of the answer (Zhang et al. 2024).
locft   the same breadth first (LocFT-BF, arXiv 2509.22072): batches over the whole set of edits, in a new order on every pass.

The first three take all edits of a patch as one batch, whose mean loss has to fall below stop_loss; with the published settings of a known
model (presets.py) a batch is one example. An edit's own paraphrases are examples like its prompt. What comes out belongs to the model as it
was trained on, patches below included.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kedit_hub.base.families import linear_shape
from kedit_hub.base.moments import regularised
from kedit_hub.base.signals import FP16_LOSS_SCALE, capture, last_logits, quiet
from kedit_hub.base.tokens import encode
from kedit_hub.editors.job import Advance, Clock, Job, Result, states
from kedit_hub.editors.keyed import inputs_of
from kedit_hub.editors.outcome import Weights, outcome
from kedit_hub.editors.own_words import learnt_end
from kedit_hub.editors.places import Layers, at_depth, linears
from kedit_hub.editors.rows import with_end
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError
from kedit_hub.evaluate.protocols import on_device
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.deltas import Dense, LowRank

AT_ONCE = 32  # examples in one forward pass; a larger batch adds up its gradients
PIECE = 16  # forward passes, or those of one batch, between two states that survive a kill
DEPTH = 2 / 3  # layer 21 of 32 in FT and FT-M, 22 of 32 and 23 of 32 in LocFT-BF
State = dict[
    str, Tensor
]  # the changes, what Adam remembers of them, the loss of the last pass, and how far the next one is


class FinetuneSettings(BaseModel):
    """What a user may set; the defaults are those of ft-m.

    Adam moves every entry of dW by about lr on a step, so an output moves by lr * sum |x|: what is right for a wide map is too little for
    a narrow one, and "auto" goes as 1 / d (Yang et al. 2022, muP). Published are lr = 5e-4 at d = 14336, which is 7.2 / d, and for FT-L
    norm_bound from 8 / d (GPT-2 medium) down to 0.8 / d (GPT-J); models that these are published for take them (presets.py). For all others
    LR and BOUND were chosen on 20 dev edits of Atlas, made one by one, 6 settings a method.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    LR: ClassVar[float] = 1.72
    BOUND: ClassVar[float] = 13.8

    objective: Literal["target", "prompt-last"] = "target"
    layers: Layers | None = None  # None: one, at two thirds of the depth
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # "auto": LR / d
    epochs: int = Field(default=25, ge=1, le=1000)  # passes over the examples; in one batch a pass is a step
    batch: int | None = Field(default=None, ge=1)  # examples a step; None: all of them
    shuffle: bool = False  # the examples, anew on every pass
    norm_bound: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None  # "auto": BOUND / d
    stop_loss: float = Field(default=1e-2, ge=0)
    answer_end: str | None = Field(default=None, max_length=64)  # None: what the base itself says; "": not learnt
    rank: int | None = Field(
        default=None, ge=1
    )  # None: the change is kept as it is; else its best of this rank on text

    @model_validator(mode="after")
    def _one_token_has_no_end(self) -> Self:
        if self.objective == "prompt-last" and self.answer_end:
            raise ValueError('answer_end is learnt after the target: take objective="target", or leave it out')
        return self


class FTSettings(FinetuneSettings):
    LR: ClassVar[float] = 0.86
    objective: Literal["target", "prompt-last"] = "prompt-last"


class FTLSettings(FTSettings):
    LR: ClassVar[float] = 1.72
    norm_bound: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"


class LocFTSettings(FinetuneSettings):
    LR: ClassVar[float] = 0.86  # on 60 dev edits in one patch, 5 settings tried
    batch: int | None = Field(default=100, ge=1)
    shuffle: bool = True


def finetune(job: Job) -> Result:
    """One change for each layer, of all edits together. The seed is that of the order in which they are shuffled.

    Edits that the trained model does not say are in the patch all the same, and named in what was measured.
    EditFailedError where the training diverges.
    """
    model: Any = job.model
    edits, settings = job.edits, job.settings
    assert isinstance(settings, FinetuneSettings)
    clock = Clock()
    paths = linears(model, settings.layers or at_depth(model, DEPTH))
    end = _end(job, settings)
    examples = [(prompt, edit.target) for edit in edits for prompt in (edit.prompt, *edit.paraphrases)]
    read, owner = inputs_of(edits, model, job.tokenizer, paths)
    width = read[paths[0]].shape[1]  # the same in all layers
    lr = settings.LR / width if settings.lr == "auto" else settings.lr
    bound = settings.BOUND / width if settings.norm_bound == "auto" else settings.norm_bound
    places = _places(model, job.tokenizer, paths, edits[0])
    training = Training(model, job.tokenizer, examples, places, settings, lr, bound, end)

    batches = _batches(len(examples), settings, job.seed)
    size = math.ceil(PIECE / math.ceil(len(batches[0].examples) / AT_ONCE))  # batches of one piece
    starts = range(0, len(batches), size)
    state, tell = training.start(), _shares(job.advance, len(edits), len(batches))

    def go_on(piece: int) -> State:  # from the state that the loop below has reached
        return training.go_on(state, batches[starts[piece] : starts[piece] + size])

    for state in states(job.memo, [f"batch-{start}" for start in starts], go_on):
        tell(int(state["at"]))
        if _done(state, settings):
            break
    tell(len(batches))

    deltas: dict[str, Weights] = {}
    for number, path in enumerate(paths):
        change = state[f"change-{number}"]
        if settings.rank is None:
            deltas[path] = Dense(change, read[path], owner).smallest()
        else:
            deltas[path] = replace(truncated(change, job.moment(path), settings.rank), keys=read[path], key_edit=owner)
    how = settings.model_dump(exclude={"layers"}, exclude_none=True) | {"modules": paths, "lr": lr, "answer_end": end}
    return Result(deltas, edits, outcome(job, deltas, clock), how if bound is None else how | {"norm_bound": bound})


def _places(model: nn.Module, tokenizer: Any, paths: Sequence[str], edit: Edit) -> dict[str, torch.device]:
    """Where the maps compute: an offloaded one has no device of its own."""
    outputs = capture(model, paths, encode(tokenizer, [edit.prompt], model=model), outputs=True)
    return {path: outputs[path].device for path in paths}


def _end(job: Job, settings: FinetuneSettings) -> str:
    """What is learnt after the target: as the settings say, else the base profile, else the base after the answers it knows."""
    if settings.objective == "prompt-last":
        return ""
    return learnt_end(job) if settings.answer_end is None else settings.answer_end


@dataclass(frozen=True)
class Batch:
    examples: Tensor  # (n,) numbers
    ends: bool  # whether it is the last of the pass


def _batches(count: int, settings: FinetuneSettings, seed: int) -> list[Batch]:
    """Those of all passes, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(settings.epochs):
        order = torch.randperm(count, generator=generator) if settings.shuffle else torch.arange(count)
        parts = order.split(settings.batch or count)
        found += [Batch(part, part is parts[-1]) for part in parts]
    return found


def _done(state: State, settings: FinetuneSettings) -> bool:
    return float(state["loss"]) < settings.stop_loss


def _shares(advance: Advance, edits: int, batches: int) -> Callable[[int], None]:
    """Called with how many batches are done, it advances by as many edits as that share of all batches is worth."""
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        worth = edits * done // batches
        advance(worth - told)
        told = worth

    return tell


@dataclass(frozen=True)
class Training:
    """The loop, from one state to a later one. examples: (prompt, target) each. places: by path of a trained map, where it computes."""

    model: Any
    tokenizer: Any
    examples: Sequence[tuple[str, str]]
    places: Mapping[str, torch.device]
    settings: FinetuneSettings
    lr: float
    bound: float | None
    end: str

    def start(self) -> State:
        """Nothing is changed, no batch is done ("at") and no pass has a "loss" yet; "total" is that of the batches since one ended."""
        shapes = [linear_shape(self.model.get_submodule(path)) for path in self.places]
        return {
            "at": torch.tensor(0),
            "loss": torch.tensor(torch.inf),
            "total": torch.tensor(0.0, dtype=torch.float64),
            **{f"change-{number}": torch.zeros(shape) for number, shape in enumerate(shapes)},
        }

    def changes(self, state: State) -> dict[str, Tensor]:
        """By path, copies (m, d) float32 where they are needed."""
        return {
            path: state[f"change-{number}"].to(place, copy=True)
            for number, (path, place) in enumerate(self.places.items())
        }

    @torch.enable_grad()
    def go_on(self, state: State, batches: Sequence[Batch]) -> State:
        """The state after these batches, or after the first pass that ends among them with a loss that is low enough."""
        changes = self.changes(state)
        trained = [change.requires_grad_() for change in changes.values()]
        adam = torch.optim.Adam(trained, lr=self.lr)
        _remember(adam, trained, state)
        at, total, told = int(state["at"]), state["total"].item(), {"loss": state["loss"]}
        with quiet(self.model), hung(self.model, changes):
            for batch in batches:
                total += self._step(batch.examples, adam, trained) * len(batch.examples) / len(self.examples)
                at += 1
                if batch.ends:
                    self._check(total, trained)
                    told, total = {"loss": torch.tensor(total)}, 0.0
                    if _done(told, self.settings):
                        break
        told |= {"at": torch.tensor(at), "total": torch.tensor(total, dtype=torch.float64)}
        told |= {f"change-{number}": change.detach().cpu() for number, change in enumerate(trained)}
        return told | _remembered(adam, trained)

    def _step(self, batch: Tensor, adam: torch.optim.Adam, trained: Sequence[Tensor]) -> float:
        """The mean loss of a batch of examples (n,), before its step."""
        scale = FP16_LOSS_SCALE if self.model.dtype == torch.float16 else 1.0
        loss = 0.0
        for chunk in batch.split(AT_ONCE):
            nll = self._nll([self.examples[index] for index in chunk.tolist()])
            (nll.sum() * (scale / len(batch))).backward()
            loss += nll.detach().sum().item() / len(batch)
        if loss >= self.settings.stop_loss:
            for change in trained:
                assert change.grad is not None
                change.grad /= scale
            adam.step()
        adam.zero_grad()
        if self.bound is not None:
            with torch.no_grad():
                for change in trained:
                    change.clamp_(-self.bound, self.bound)
        return loss

    def _check(self, total: float, trained: Sequence[Tensor]) -> None:
        """EditFailedError where a pass of this loss has run away."""
        largest = max(float(change.detach().abs().max()) for change in trained)
        if not math.isfinite(total + largest) or largest > DEFAULT.max_abs_value:
            raise EditFailedError(
                f"fine-tuning ran away at lr={self.lr:g}: the loss is {total:g}, the largest change of a weight {largest:g}. Take a "
                "smaller lr, or bound the change by norm_bound"
            )

    def _nll(self, examples: Sequence[tuple[str, str]]) -> Tensor:
        """(n,) mean over the target's tokens of -log p, each given those before it or, "prompt-last", given the prompt alone."""
        prompts, targets = zip(*examples)
        batch = on_device(self.model, with_end(self.tokenizer, prompts, targets, self.end, self.model)[0])
        kept = int(batch.target_mask.sum(1).max()) + 1  # left padded: the targets are the last tokens of every row
        logits = last_logits(self.model, kept, **batch.inputs(self.model), use_cache=False)[:, :-1].float()
        labels, wanted = (
            x[:, 1 - kept :].to(logits.device) for x in (batch.input_ids, batch.target_mask)
        )  # (n, T) each
        if self.settings.objective == "prompt-last":
            first = wanted.int().argmax(1)  # (n,) the position that predicts the first token of the target
            logits = logits[torch.arange(len(first)), first][:, None].expand_as(logits)
        nll = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # (n, T)
        return (nll * wanted).sum(1) / wanted.sum(1)


def _remember(adam: torch.optim.Adam, trained: Sequence[Tensor], state: State) -> None:
    """Give Adam back what it knew; the inverse of `_remembered`."""
    for number, change in enumerate(trained):
        if f"mean-{number}" in state:
            adam.state[change] = {
                "step": state[f"step-{number}"].clone(),
                "exp_avg": state[f"mean-{number}"].to(change.device, copy=True),
                "exp_avg_sq": state[f"square-{number}"].to(change.device, copy=True),
            }


def _remembered(adam: torch.optim.Adam, trained: Sequence[Tensor]) -> State:
    state: State = {}
    for number, change in enumerate(trained):
        if known := adam.state.get(change):  # there is none before the first step
            state[f"step-{number}"] = known["step"].cpu()
            state[f"mean-{number}"], state[f"square-{number}"] = known["exp_avg"].cpu(), known["exp_avg_sq"].cpu()
    return state


@contextmanager
def hung(model: nn.Module, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """y + x dW^T at the named maps, in float32 and cast once, after whatever hangs there already."""
    handles = []
    try:
        for path, change in changes.items():
            handles.append(model.get_submodule(path).register_forward_hook(partial(_beside, change)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _beside(change: Tensor, _module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return (y.float() + args[0].to(y.device).float() @ change.T).to(y.dtype)


def truncated(change: Tensor, moment: Tensor, rank: int) -> LowRank:
    """Of all changes of this rank the one that is nearest to `change` (m, d) on inputs of the second moment C0 (d, d).

    The mean of |(D - D') x|^2 is |(D - D') F|^2 with C0 + rho I = F F^T, so D F is cut and not D.
    """
    factor = torch.linalg.cholesky(regularised(moment))
    u, s, v = torch.linalg.svd(change.double() @ factor, full_matrices=False)
    a = torch.linalg.solve_triangular(factor, v[:rank], upper=False, left=False)  # (r, d): a F = v
    return LowRank(a.float(), (u[:, :rank] * s[:rank]).float())
