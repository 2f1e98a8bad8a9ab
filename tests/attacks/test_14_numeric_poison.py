"""14 · Numeric poison: numbers that are none, that are too large, that point outside, that lie about their meaning; a change
of a module where no fact is kept.

All of these patches are sealed by somebody who knows the format: every digest and the id are right.
"""

import math

import pytest
import torch

import kedit_hub
from kedit_hub.errors import KeditError, LimitError, PatchFormatError, UnsupportedModelError
from kedit_hub.limits import Limits
from kedit_hub.patch import BaseRef, Dense, LowRank, ModuleFingerprint, Patch, Sparse
from kedit_hub.patch.deltas.half import encode
from tests.attacks.tools import AT, Case, Files, every, first_value, forged, of_kind, refuse, resealed, setting
from tests.patch.build import PATHS, D, M, make_patch, numbers
from tests.patch.kinds import EXAMPLES
from tests.profiles import EDITS, logits, patched, profile_of
from tests.profiles import make_patch as rows_patch
from tests.tiny import tiny_model

T = torch.tensor
NAN, INF = float("nan"), float("inf")
HALF = EXAMPLES["associative-f16"].to_tensors()
WHITE = EXAMPLES["associative-whitened"]


def kind(name: str, words: str, error: type[PatchFormatError] = PatchFormatError, *, meta=None, **tensors) -> Case:
    return Case(of_kind(name, meta=meta, **tensors), error, words, every)


def with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.reshape(-1)[-1] = value
    return changed


def shaped(name: str, *shape: int) -> Case:
    """A module that is said to be (m, d), everywhere where it is said."""

    def attack(files: Files) -> Files:
        files = setting("modules", AT[name], "shape", value=list(shape))(files)
        prints = {"shape": list(shape), "dtype": "float32"}
        return setting("base", "fingerprint", AT[name], value=prints)(files)

    return Case(attack, LimitError, "at most 1,048,576 is taken", every)


def scaled(values: list[float]) -> dict[str, torch.Tensor]:
    return {"keys_scale": T(values)}


POISON = {  # a float of every kind
    "associative": "residuals", "associative-whitened": "whitened_keys",
    "associative-narrowed": "thresholds", "lowrank": "a", "dense": "delta",
    "sparse": "values", "neurons": "biases", "neurons-gated": "multipliers", "codebook": "values",
    "sidememory-norm": "delta", "sidememory-mask": "background", "facts-projection": "projection",
    "facts-model": "embeddings", "lowrank-keyed": "keys", "dense-keyed": "keys", "sparse-keyed": "keys",
}  # fmt: skip

CASES = {
    # no numbers, and too large ones
    "NaN in bytes": Case(first_value(NAN), PatchFormatError, "holds NaN or infinity"),
    "infinity in bytes": Case(first_value(-INF), PatchFormatError, "holds NaN or infinity"),
    "too large in bytes": Case(first_value(2e6), LimitError, "values up to"),
    **{
        f"{what} in {name}/{tensor}": kind(
            name, "holds NaN or infinity", **{tensor: with_one(EXAMPLES[name].tensors()[tensor], value)}
        )
        for name, tensor in POISON.items()
        for what, value in (("NaN", NAN), ("infinity", INF))
    },
    **{
        f"10^6 times the bound in {name}/{tensor}": kind(
            name, "values up to 1e+06", LimitError, **{tensor: with_one(EXAMPLES[name].tensors()[tensor].float(), 1e12)}
        )
        for name, tensor in POISON.items()
    },
    "bfloat16 beyond the bound": kind("dense", "values up to", LimitError, delta=numbers(M, D).bfloat16() * 1e30),
    "float16 at its infinity": kind("lowrank", "holds NaN or infinity", a=(numbers(2, D) * 1e6).half()),
    "NaN of another pattern": kind(
        "dense", "holds NaN or infinity", delta=torch.full((M, D), -1, dtype=torch.int16).view(torch.bfloat16)
    ),
    # shapes that would be broadcast
    "one row for all": kind("lowrank", "its r must be", a=numbers(1, D).half()),
    "one column for all": kind("lowrank", "its fingerprint has another", b=numbers(1, 2).half(), meta={"shape": [1, D]}),
    "scalar residuals": kind("associative", "it must be (n, m)", residuals=numbers(2)),
    "residuals of one output": kind("associative", "its m must be", residuals=numbers(2, 1)),
    "keys of another width": kind("associative", "its d must be", context_keys=numbers(3, D + 1)),
    "three dimensions": kind("dense", "it must be (m, d)", delta=numbers(1, M, D).bfloat16()),
    "transposed matrix": kind("dense", "is not what the manifest", delta=numbers(D, M).bfloat16()),
    "integers in place of floats": kind("dense", "takes F32 or F16 or BF16", delta=torch.ones(M, D, dtype=torch.int64)),
    "floats in place of integers": kind("associative", "takes I64", edit_index=T([0.0, 1.0])),
    "half precision where float32 is meant": kind("associative", "takes F32", keys=numbers(2, D).half()),
    # indices
    "edit that is not there": kind("associative", "points to 2; it must lie in 0..1", edit_index=T([0, 2])),
    "edit before the first": kind("associative", "points to -1", edit_index=T([-1, 0])),
    "edit at 2^63 - 1": kind("associative", "points to 9223372036854775807", edit_index=T([0, 2**63 - 1])),
    "edit at -2^63": kind("associative", "points to -9223372036854775808", edit_index=T([0, -(2**63)])),
    "context of a row that is not there": kind("associative", "points to 2", context_row=T([0, 1, 2])),
    "gate of an edit that is not there": kind("associative", "gate_edit points to 7", gate_edit=T([0, 7])),
    "contexts without rows": kind("associative", "lacks context_row", context_row=None),
    "gate without a module": kind("associative", "lacks gate_module", meta={"gate_module": None}),
    "gate without keys": kind("associative", "lacks gate_keys", gate_keys=None),
    "edit of a deleted record": Case(
        setting("edits", value=[{"prompt": "Ada was born in", "target_new": "Oslo", "subject": "Ada"}]),
        PatchFormatError,
        "it must lie in 0..0",
    ),
    # sparse
    "sparse position behind the end": kind("sparse", "points to 96; it must lie in 0..95", positions=T([0, 13, 96])),
    "sparse position before the beginning": kind("sparse", "points to -1", positions=T([-1, 13, 95])),
    "sparse position at 2^62": kind("sparse", "it must lie in 0..95", positions=T([0, 13, 2**62])),
    "sparse position twice": kind("sparse", "must increase strictly", positions=T([0, 13, 13])),
    "sparse positions unsorted": kind("sparse", "must increase strictly", positions=T([13, 0, 95])),
    "sparse zero": kind("sparse", "holds a zero", values=T([1.0, 0.0, 2.0])),
    "sparse negative zero": kind("sparse", "holds a zero", values=T([1.0, -0.0, 2.0])),
    "sparse value without a position": kind("sparse", "its z must be", values=T([1.0, 2.0])),
    "sparse matrix of 2^42 entries": shaped("sparse", 1 << 21, 1 << 21),
    "sparse matrix of one very long row": shaped("sparse", 1, 1 << 40),
    # neurons
    "neurons of another width": kind("neurons", "State the input_module", meta={"input_module": None}),
    "neurons without biases": kind("neurons", "it needs", biases=None),
    "one bias for all neurons": kind("neurons", "its n must be 2", biases=numbers(1)),
    "neurons for an edit that is not there": kind("neurons-gated", "points to 2", edit_index=T([0, 2])),
    "neurons of a very wide map": shaped("neurons", M, 1 << 21),
    # codebook
    "radius zero": kind("codebook", "a radius is above 0", radii=T([1.0, 0.0])),
    "radius negative": kind("codebook", "a radius is above 0", radii=T([1.0, -1.0])),
    "radius NaN": kind("codebook", "holds NaN or infinity", radii=T([1.0, NAN])),
    "radius infinite": kind("codebook", "holds NaN or infinity", radii=T([1.0, INF])),
    "radius that covers everything": kind("codebook", "values up to", LimitError, radii=T([1.0, 1e30])),
    "radius for every input at once": kind("codebook", "its n must be", radii=T([1.0])),
    # side memory
    "threshold zero": kind("sidememory-norm", "must be a number above 0", meta={"threshold": 0.0}),
    "threshold negative": kind("sidememory-norm", "must be a number above 0", meta={"threshold": -1.0}),
    "threshold missing": kind("sidememory-norm", "must be a number above 0", meta={"threshold": None}),
    "threshold as an integer": kind("sidememory-norm", "changed by hand", meta={"threshold": 1}),
    "masks unsorted": kind("sidememory-mask", "must increase strictly", masks=T([[3, 0, 4], [1, 3, 11]])),
    "mask entry twice": kind("sidememory-mask", "must increase strictly", masks=T([[0, 3, 3], [1, 3, 11]])),
    "mask behind the end": kind("sidememory-mask", "it must lie in 0..11", masks=T([[0, 3, 12], [1, 3, 11]])),
    "mask before the beginning": kind("sidememory-mask", "points to -1", masks=T([[-1, 3, 4], [1, 3, 11]])),
    "permutation with an index twice": kind("sidememory-mask", "every index once", permutation=T([0, 0, *range(2, D)])),
    "permutation behind the end": kind("sidememory-mask", "it must lie in", permutation=T([D, *range(1, D)])),
    "permutation too short": kind("sidememory-mask", "its d must be", permutation=torch.arange(D - 1)),
    "masks without a permutation": kind("sidememory-mask", "lacks permutation", permutation=None),
    "masks routed by norm": kind("sidememory-mask", "only there", meta={"routing": "norm"}),
    "mask routing without masks": kind("sidememory-norm", "only there", meta={"routing": "mask"}),
    # facts
    "similarity above 1": kind("facts-lexical", "a similarity is at most 1", meta={"threshold": 1.5}),
    "similarity zero": kind("facts-lexical", "must be a number above 0", meta={"threshold": 0.0}),
    "scale negative": kind("facts-projection", "must be a number above 0", meta={"scale": -1.0}),
    "scale missing": kind("facts-projection", "needs scale", meta={"scale": None}),
    "projection missing": kind("facts-projection", "needs projection", projection=None),
    "answers of no model": kind("facts-lexical", "needs answer_model", meta={"answer": "model"}),
    "a model that is not asked": kind(
        "facts-lexical", "has no answer_model", meta={"answer_model": "org/x@" + "1" * 40}
    ),
    "fact that is not there": kind("facts-lexical", "points to 5", edit_index=T([0, 5])),
    # float16 rows and their scales: one written form
    "scale no power of two": kind("associative-f16", "is not the power of two", **scaled([3.0, 1.0])),
    "scale zero": kind("associative-f16", "is not the power of two", **scaled([0.0, 1.0])),
    "scale below zero": kind("associative-f16", "is not the power of two", **scaled([-1.0, 1.0])),
    "scale denormal": kind("associative-f16", "is not the power of two", **scaled([2.0**-140, 1.0])),
    "scale infinite": kind("associative-f16", "holds NaN or infinity", **scaled([INF, 1.0])),
    "scale NaN": kind("associative-f16", "holds NaN or infinity", **scaled([NAN, 1.0])),
    "scale of 2^127": kind("associative-f16", "holds NaN or infinity", **scaled([2.0**127, 2.0**127])),
    "scale too large by two": kind(
        "associative-f16", "is not the power of two", keys=HALF["keys"] / 2, keys_scale=HALF["keys_scale"] * 2
    ),
    "row of zeros with a scale": kind(
        "associative-f16", "is not the power of two", keys=torch.zeros(2, D).half(), keys_scale=T([2.0, 2.0])
    ),
    "scale missing of one row": kind("associative-f16", "they must be (n, d) F16 and (n) F32", keys_scale=T([1.0])),
    "scales missing": kind("associative-f16", "lacks keys_scale", keys_scale=None),
    "scales of nothing": kind("associative-f16", "it needs", edit_index_scale=T([1.0, 1.0])),
    "scales without their tensor": kind("associative-f16", "it needs", context_keys=None, context_row=None),
    "scales where nothing is scaled": kind("associative", "it needs", keys_scale=T([1.0, 1.0])),
    "half precision without saying so": kind("associative-f16", "it needs", meta={"precision": None}),
    "float32 said to be half": kind("associative", "lacks keys_scale", meta={"precision": "f16"}),
    "NaN in half precision": kind("associative-f16", "holds NaN", keys=with_one(HALF["keys"], NAN)),
    "scales in half precision": kind("associative-f16", "(n) F32", keys_scale=T([1.0, 1.0]).half()),
    # whitened keys
    "whitened keys of the wrong sign": kind("associative-whitened", "must be above 0", whitened_keys=-WHITE.keys),
    "whitened keys across their keys": kind("associative-whitened", "must be above 0", whitened_keys=torch.zeros(2, D)),
    "whitened keys without their profile": Case(
        resealed(lambda config: config.pop("profile_id")), PatchFormatError, "mean nothing without profile_id", every
    ),
    # sizes
    "rank of 70,000": Case(
        forged(PATHS[0], a=torch.ones(70_000, D).half(), b=torch.ones(M, 70_000).half()), LimitError, "size r is 70,000"
    ),
    "row weight as a list": Case(setting("settings", "note", value=["x"] * 257), LimitError, "of one setting"),
    "300 settings": Case(setting("settings", value={f"s{i}": i for i in range(300)}), LimitError, "300 settings"),
    "1,100 required patches": Case(
        setting("requires", value=[f"{i:064x}" for i in range(1100)]), LimitError, "1,100 required patches"
    ),
    "100,000 required patches": Case(
        setting("requires", value=[f"{i:064x}" for i in range(100_000)]), LimitError, "100,000 required patches"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


def test_bounds_are_of_the_reader_not_of_the_patch():
    """The reader may lower its bounds; the patch has no say."""
    files = make_patch().files()
    for limits in (
        Limits(max_rank=1),
        Limits(max_rows=1),
        Limits(max_dim=8),
        Limits(max_abs_value=0.5),
        Limits(max_edits=1),
    ):
        with pytest.raises(LimitError):
            Patch.from_files(files, limits=limits)


@pytest.mark.parametrize(
    "limits", [Limits(max_config_bytes=10), Limits(max_tensor_bytes=10), Limits(max_evals_bytes=10)], ids=str
)
def test_sizes_are_bounded_before_a_file_is_read(tmp_path, limits):
    folder = make_patch().replace_evals({"drift": {"kl": 1}}).save(tmp_path / "p")
    with pytest.raises(LimitError, match="at most 10 are read"):
        Patch.load(folder, limits=limits)


def test_rank_beyond_both_sides_of_the_matrix_costs_no_more_than_the_matrix():
    """A "low-rank" change of rank 1,000 on an 8 x 12 map is legal, bounded, and its rank is reported as what it can be."""
    patch = make_patch(deltas={PATHS[0]: LowRank(torch.ones(1000, D), torch.ones(M, 1000))})
    assert Patch.from_files(patch.files()) == patch and patch.deltas[PATHS[0]].cost().rank == M


def test_a_small_sparse_file_may_not_become_a_large_matrix():
    """A sparse delta is refused by its sides before anything of its full size is made."""
    huge = 1 << 21
    base = BaseRef(
        id="org/base", model_type="llama", fingerprint={"h.0": ModuleFingerprint(shape=(1, huge), dtype="float32")}
    )
    with pytest.raises(LimitError, match="size d is 2,097,152"):
        Patch.create(deltas={"h.0": Sparse(T([0]), T([1.0]), (1, huge))}, edits=[EDITS[0]], base=base, method="ft")


def test_rounding_is_idempotent_on_hostile_rows():
    """What `decode` accepts, `encode` writes again bit for bit: a row has one stored form."""
    for row in ([1e6] * D, [1e-38] * D, [2.0**-149] * D, [0.0] * D, [1.0, *[1e-30] * (D - 1)]):
        half, scale = encode(T([row, row]))
        again = encode(half.float() * scale[:, None])
        assert torch.equal(half.view(torch.int16), again[0].view(torch.int16)) and torch.equal(scale, again[1])


# --- where a patch may write ---------------------------------------------------------------------------------------


def aimed(model, path: str) -> Patch:
    """A dense change of a module that hides behind a fingerprint of its shape alone."""
    weight = model.get_submodule(path).weight
    shape = (weight.shape[0], weight.shape[-1])
    prints = {path: ModuleFingerprint(shape=shape, dtype="float32")}
    base = BaseRef(id="tiny/base", model_type="llama", fingerprint=prints)
    return Patch.create(deltas={path: Dense(torch.ones(shape))}, edits=[EDITS[0]], base=base, method="ft")


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("path", ["lm_head", "model.embed_tokens", "model.norm", "model.layers.1.input_layernorm"])
@pytest.mark.filterwarnings("ignore:.*compared by shape only")
def test_embeddings_norms_and_the_head_are_out_of_reach(path, tied):
    model, tokenizer = tiny_model("llama", tie_word_embeddings=tied)
    before = logits(model, tokenizer, [EDITS[0].prompt])
    for force in (False, True):
        with pytest.raises(UnsupportedModelError):
            kedit_hub.apply(aimed(model, path), model, tokenizer=tokenizer, force=force)
    assert torch.equal(logits(model, tokenizer, [EDITS[0].prompt]), before)


@pytest.mark.filterwarnings("ignore:.*compared by shape only")
def test_a_map_that_shares_its_weight_is_out_of_reach():
    model, tokenizer = tiny_model("llama")
    first, second = (model.get_submodule(f"model.layers.{layer}.mlp.down_proj") for layer in (0, 1))
    second.weight = first.weight
    with pytest.raises(UnsupportedModelError, match="shares its weight"):
        kedit_hub.apply(aimed(model, "model.layers.0.mlp.down_proj"), model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.mark.parametrize("omega", [0.0, -1.0, 1e9, 1e300])
def test_a_row_weight_cannot_outweigh_everything(tiny, omega):
    with pytest.raises(KeditError, match="asks for the row weight"):
        patched(*tiny, [rows_patch(*tiny, omega=omega)], "joint")


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_the_largest_legal_residuals_stay_numbers(tiny, mode):
    """A patch at the bound ruins what it is asked about, by its author's wish; it makes no NaN, and comes off exactly."""
    model, tokenizer, profile = tiny
    prompts = [edit.prompt for edit in EDITS]
    before = logits(model, tokenizer, prompts)
    delta = rows_patch(*tiny).deltas[profile.module]
    loud = torch.full_like(delta.residuals, 1e6)
    rows = type(delta)(**{**delta.tensors(), "residuals": loud}, site=delta.site, gate_module=delta.gate_module)
    honest = rows_patch(*tiny)
    patch = Patch.create(
        deltas={profile.module: rows}, edits=EDITS, base=honest.manifest.base, method="memit", profile_id=profile.id
    )
    made = patched(model, tokenizer, profile, [patch], mode)
    assert torch.isfinite(logits(made.model, tokenizer, prompts)).all()
    made.detach()
    assert torch.equal(logits(made.model, tokenizer, prompts), before)


def test_a_threshold_that_is_no_number_cannot_be_written():
    with pytest.raises(KeditError):
        make_patch(settings={"threshold": math.nan})
