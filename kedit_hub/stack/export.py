"""A stack as files that other software reads. Law: only what is linear leaves, and the README says what was lost.

    peft      adapter_config.json, adapter_model.safetensors: a LoRA on the changed modules alone (PEFT, transformers)
    serving   the same with one rank everywhere and zero-filled pairs in every layer: servers drop or refuse all else
    merged    a plain transformers folder with the change written into the weights, quantized once where that is asked for

W + D with D = B A is a LoRA of scaling lora_alpha / r = 1: `lora_A` (r, in) and `lora_B` (out, r), whichever way round
the module stores W (`fan_in_fan_out` tells the reader). The gate is no linear map: a gated stack leaves as the joint
solve of the same rows. Neurons, codebooks and side memories have no linear form: a stack that holds one is refused.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_hub import strictjson
from kedit_hub.base.families import dense_weight, family_of, linear_shape, n_layers
from kedit_hub.base.load import Quantization
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError
from kedit_hub.patch.folder import check_place
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Branch
from kedit_hub.runtime.linear import DenseBranch, LowRankBranch, SparseBranch, summed
from kedit_hub.runtime.linear import linear as as_linear
from kedit_hub.stack.compose import Composition
from kedit_hub.stack.exported import base_of, card, record
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.quantized import Survival, save_quantized, survival
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack

Format = Literal["peft", "serving", "merged"]
Pair = tuple[Tensor, Tensor]  # A (r, in), B (out, r), float32
Measured = Callable[
    [PatchedModel], Mapping[str, Any] | None
]  # see kedit_hub.api.export: floors below cannot ask models
DENSE_RANK = 64  # largest rank at which a dense change is taken apart


def export(
    stack: PatchedModel | PatchStack | Patch | Sequence[Patch],
    folder: str | os.PathLike[str],
    format: Format = "peft",
    *,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    profile: BaseProfile | None = None,
    budget: float | None = None,
    quantization: Quantization | None = None,
    measured: Measured | None = None,
) -> Path:
    """Write the stack to `folder` (new or empty), whole or not at all; returns the folder.

    stack: what `kedit_hub.apply` returned, exported as it answers (a gated one in its joint form); or patches, which
    then need `model`, the plain base, and `profile`, its base profile, if any of them has associative rows.
    budget: drift allowed to the joint solve. tokenizer: written beside a merged model.
    quantization: of a merged model, "int8", "nf4" or "fp4": full-precision weights with the change are rounded once.
    measured: what the change of form costs in answers (see kedit_hub.stack.exported). README.md tells that, and what rounding
    left of the change; kedit_export.json has the numbers.
    KeditError says what is missing; UnsupportedModelError when a quantized base is to be merged.
    """
    if format not in ("peft", "serving", "merged"):
        raise KeditError(f'format={format!r} is unknown; take "peft", "serving" or "merged"')
    if quantization is not None and (quantization not in get_args(Quantization) or format != "merged"):
        raise KeditError(
            f"quantization={quantization!r} with format={format!r}: only a merged model has weights to quantize; take "
            'format="merged" with "int8", "nf4" or "fp4", or load the base of an adapter in the precision you want'
        )
    target = Path(folder).expanduser()
    _check_free(target)
    patched = _patched(stack, model, tokenizer, profile, budget)
    tokenizer = tokenizer or patched.tokenizer
    if format == "merged" and tokenizer is None:
        raise KeditError("a merged model is saved with its tokenizer, and none is known here: pass tokenizer=")
    linear = patched.linear_form()

    files: dict[str, bytes] = {}
    fused: Any = None
    survived: Mapping[str, float] = {}
    left: Mapping[str, Survival] = {}
    pairs: dict[str, Pair] = {}
    if format == "merged":
        fused = patched.fuse()
        survived = patched.report["fused"]["survived"]
        if quantization is not None:
            left = _left(patched, linear, quantization)
    else:
        pairs = {path: _pair(branches, path) for path, branches in linear.branches.items()}
        config, tensors = _adapter(pairs, patched) if format == "peft" else _served(pairs, patched)
        files["adapter_config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    told = record(
        format,
        quantization,
        patched,
        linear,
        ranks={path: len(a) for path, (a, _) in pairs.items()},
        survived=survived,
        rounded=left,
        measured=None if measured is None else measured(patched),
    )
    files["kedit_export.json"] = strictjson.pretty(told)
    files["README.md"] = card(told).encode()

    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            if quantization is not None:
                save_quantized(fused, tokenizer, temporary, quantization)
            elif fused is not None:
                fused.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
            else:
                save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            if target.exists():
                target.rmdir()  # empty, or it was filled meanwhile and this fails
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as cause:
        raise KeditError(f"cannot write the export to {str(target)!r}: {cause.strerror or cause}") from cause
    return target


def _left(patched: PatchedModel, linear: Composition, quantization: Quantization) -> dict[str, Survival]:
    """By module, what rounding leaves of the change, at the keys of its rows where they are known."""
    profiles = patched.profiles
    found: dict[str, Survival] = {}
    for path, branches in linear.branches.items():
        deltas = (patch.deltas.get(path) for patch in sorted(patched.stack, key=lambda patch: patch.id))
        keys = [known for delta in deltas if (known := getattr(delta, "keys", None)) is not None]
        change = summed(as_linear(branches))
        moment = profiles[path].second_moment if path in profiles else None
        weight = dense_weight(patched.model.get_submodule(path)).cpu()
        found[path] = survival(weight, change, quantization, torch.cat(keys) if keys else None, moment)
    return found


def _check_free(target: Path) -> None:
    check_place(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise KeditError(f"{str(target)!r} is a file or a link: export to a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise KeditError(f"the folder {str(target)!r} is not empty and is left as it is: export to a new folder")


def _patched(stack: Any, model: Any, tokenizer: Any, profile: BaseProfile | None, budget: float | None) -> PatchedModel:
    """What is exported, as one patched model."""
    if isinstance(stack, PatchedModel):
        if model is not None or profile is not None or budget is not None:
            raise KeditError(
                "a patched model brings its own base, profile and drift budget: leave model=, profile= and budget= "
                "out, or give its .stack instead of itself"
            )
        patched = stack
    else:
        if isinstance(stack, (str, os.PathLike)):
            raise KeditError(
                f"export takes patches, not {os.fspath(stack)!r}: load it with kedit_hub.pull or Patch.load, or pass "
                "what kedit_hub.apply returns"
            )
        if not isinstance(stack, PatchStack):
            stack = PatchStack([stack] if isinstance(stack, Patch) else stack)
        if not isinstance(model, nn.Module):
            given = "" if model is None else f" (it was given {type(model).__name__} {str(model)[:80]!r})"
            raise KeditError(
                f"export needs the loaded base of these patches{given}: pass model= with the transformers model, or "
                "pass what kedit_hub.apply returns instead of the patches"
            )
        known = {} if profile is None else {profile.module: profile}
        settings = StackSettings.of(mode="joint", budget=budget)
        patched = PatchedModel(model, tokenizer, stack, profiles=lambda *_: known, settings=settings)
    if len(patched.stack) == 0:
        raise KeditError("the stack is empty: there is nothing to export")
    return patched


# -- LoRA --------------------------------------------------------------------------------------------------------------


def _pair(branches: Sequence[Branch], path: str) -> Pair:
    """One A (r, in) and B (out, r) with B A = the summed change of a module: the ranks of all branches side by side."""
    parts: list[Pair] = []
    for branch in as_linear(branches):
        match branch:
            case LowRankBranch():
                parts.append((branch.v, branch.u.T))
            case SparseBranch():
                parts.append(_lines(branch) or _taken_apart(branch.matrix(), path))
            case DenseBranch():
                parts.append(_taken_apart(branch.delta, path))
            case _:
                assert_never(branch)
    a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1)
    if len(a) > min(a.shape[1], b.shape[0]):  # more ranks than the matrix has: its own factors are as exact and smaller
        u, s, v = torch.linalg.svd(b.double() @ a.double(), full_matrices=False)
        a, b = v, u * s
    return a.float().contiguous(), b.float().contiguous()


def _lines(branch: SparseBranch) -> Pair | None:
    """A change of few rows or few columns, entry by entry: those lines times the choice of where they go; None: of many."""
    out, width = branch.size
    rows, columns = (branch.positions // width).unique(), (branch.positions % width).unique()
    if min(len(rows), len(columns)) > DENSE_RANK:
        return None
    matrix = branch.matrix()
    if len(rows) < len(columns):
        return matrix[rows], torch.zeros(out, len(rows)).index_put_((rows, torch.arange(len(rows))), torch.ones(()))
    return (
        torch.zeros(len(columns), width).index_put_((torch.arange(len(columns)), columns), torch.ones(())),
        matrix[:, columns],
    )


def _taken_apart(delta: Tensor, path: str) -> Pair:
    """A dense change by its singular values, none left out; KeditError when there are too many for a LoRA."""
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    rank = max(int((s > s[0] * max(delta.shape) * torch.finfo(torch.float32).eps).sum()), 1)
    if rank > DENSE_RANK:
        raise KeditError(
            f"a patch changes {path} by a matrix of rank {rank}; a LoRA takes at most {DENSE_RANK} of them here, "
            'and cutting it off would be another edit: export with format="merged"'
        )
    return v[:rank], u[:, :rank] * s[:rank]


def _adapter(pairs: Mapping[str, Pair], patched: PatchedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Only the changed modules, by their full paths, each with its own rank."""
    r = max(len(a) for a, _ in pairs.values())
    ranks = {path: len(a) for path, (a, _) in pairs.items() if len(a) != r}
    config = _config(patched, r, list(pairs), pairs) | {"rank_pattern": ranks, "alpha_pattern": ranks}
    return config, _named(pairs)


def _served(pairs: Mapping[str, Pair], patched: PatchedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One rank r, no patterns, the changed kinds of module in every layer; where nothing changes A and B are zero."""
    r = max(len(a) for a, _ in pairs.values())
    model, layers = patched.model, family_of(patched.model).layers
    inside: set[str] = set()  # module paths inside a block
    for path in pairs:
        number, _, rest = path.removeprefix(f"{layers}.").partition(".")
        if not path.startswith(f"{layers}.") or not number.isdigit() or not rest:
            raise KeditError(
                f"a patch changes {path}, which is in no layer, and servers take adapters of layers only: "
                'export with format="peft" or "merged"'
            )
        inside.add(rest)
    full: dict[str, Pair] = {}
    for rest in sorted(inside):
        for layer in range(n_layers(model)):
            path = f"{layers}.{layer}.{rest}"
            out, width = linear_shape(model.get_submodule(path))
            a, b = pairs.get(path, (torch.zeros(0, width), torch.zeros(out, 0)))
            more = r - len(a)
            full[path] = torch.cat([a, torch.zeros(more, width)]), torch.cat([b, torch.zeros(out, more)], 1)
    return _config(patched, r, [_short(model, rest, full) for rest in sorted(inside)], full), _named(full)


def _short(model: nn.Module, rest: str, full: Mapping[str, Pair]) -> str:
    """The name servers know a kind of module by, "down_proj"; longer where two kinds share it (GPT-2's c_proj)."""
    last = rest.rpartition(".")[2]
    named = {name for name, _ in model.named_modules() if name.endswith(f".{last}")}
    return last if named <= set(full) else rest


def _config(patched: PatchedModel, r: int, target_modules: Sequence[str], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_of(patched),
        "revision": None,
        "r": r,
        "lora_alpha": r,
        "target_modules": list(target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(patched.model.get_submodule(path), Conv1D) for path in pairs),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _named(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    return {
        f"base_model.model.{path}.lora_{letter}.weight": factor.contiguous()
        for path, (a, b) in pairs.items()
        for letter, factor in (("A", a), ("B", b))
    }
