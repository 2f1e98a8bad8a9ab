"""One small delta of every kind without randomness, and hypothesis strategies that draw any valid one (three edits)."""

import torch
from hypothesis import strategies as st

from kedit_hub.patch import Associative, Codebook, Dense, Facts, LowRank, Neurons, Patch, SideMemory, Sparse
from kedit_hub.patch.deltas import KINDS, Delta
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.manifest import BaseRef
from tests.patch.build import EDITS, D, M, Model, associative, numbers

ENCODER = "org/encoder@" + "1" * 40


def whitened() -> Associative:
    rows = associative()
    return Associative(**rows.tensors(), whitened_keys=rows.keys * 2, site="answer", gate_module=rows.gate_module)


def narrowed() -> Associative:
    """With counter-keys and thresholds of its own, rounded to float16."""
    rows = associative()
    more = {"counter_keys": numbers(3, D), "counter_edit": torch.tensor([1, 0, 1])}
    thresholds = torch.tensor([[0.5, 0.25], [-1.0, 1.0]])
    return Associative(
        **rows.tensors(), **more, thresholds=thresholds, site="answer", gate_module=rows.gate_module
    ).halved()


EXAMPLES: dict[str, Delta] = {
    "associative": associative(),
    "associative-f16": associative().halved(),
    "associative-whitened": whitened(),
    "lowrank": LowRank(numbers(2, D).half(), numbers(M, 2).half()),
    "dense": Dense(numbers(M, D).bfloat16()),
    "sparse": Sparse(torch.tensor([0, 13, 95]), torch.tensor([1.0, -2.0, 0.5]), (M, D)),
    "lowrank-keyed": LowRank(numbers(2, D), numbers(M, 2), numbers(3, D), torch.tensor([0, 1, 1])),
    "dense-keyed": Dense(numbers(M, D).half(), numbers(1, D), torch.tensor([1])),
    "sparse-keyed": Sparse(
        torch.tensor([0, 13, 95]), torch.tensor([1.0, -2.0, 0.5]), (M, D), numbers(2, D), torch.tensor([0, 0])
    ),
    "neurons": Neurons(numbers(2, 5), numbers(2), numbers(2, M), (M, D), input_module="model.layers.0.mlp.down_proj"),
    "neurons-gated": Neurons(
        numbers(2, D), numbers(2), numbers(2, M), (M, D), numbers(2, D), torch.tensor([0, 1]), activation="silu"
    ),
    "codebook": Codebook(numbers(2, D), numbers(2, M), torch.tensor([1.0, 0.5]), torch.tensor([0, 1])),
    "sidememory-norm": SideMemory(numbers(M, D), threshold=1.5),
    "sidememory-mask": SideMemory(
        numbers(M, D).half(),
        masks=torch.tensor([[0, 3, 4], [1, 3, 11]]),
        mask_edit=torch.tensor([0, 1]),
        background=numbers(D),
        permutation=torch.arange(D).flip(0),
        routing="mask",
        threshold=0.5,
    ),
    "facts-lexical": Facts(torch.tensor([0, 1]), (M, D), threshold=0.75),
    "facts-projection": Facts(
        torch.tensor([0, 1]), (M, D), numbers(2, 3), numbers(3, D), "projection", threshold=0.5, scale=2.0
    ),
    "facts-model": Facts(
        torch.tensor([0, 1]), (M, D), numbers(2, 3), None, "model", "model", 0.5, 1.0, ENCODER, ENCODER
    ),
    "associative-narrowed": narrowed(),
}


def every_kind() -> Patch:
    """One patch with all examples, each on a module of its own. Format 2."""
    paths = [f"model.layers.{i}.mlp.down_proj" for i in range(len(EXAMPLES))]
    weight = fingerprint(Model().get_submodule("model.layers.0.mlp.down_proj"))
    base = BaseRef(id="org/base", revision="0" * 40, model_type="llama", fingerprint=dict.fromkeys(paths, weight))
    return Patch.create(
        deltas=dict(zip(paths, EXAMPLES.values())),
        edits=EDITS,
        base=base,
        method="every-kind",
        profile_id="a" * 64,
        provenance={
            **{"version": "0.1.0", "seed": 0, "commit": "2" * 40, "dirty": False},
            "environment": {"platform": "Linux-x86_64", "device": "cpu", "dtype": "float32"},
            "datasets": [{"id": "org/facts", "revision": "3" * 40}, {"id": "mine", "sha256": "b" * 64}],
        },
    )


# --- any delta ----------------------------------------------------------------------------------------------------

sizes = st.integers(1, 5)
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
F32 = torch.float32


@st.composite
def matrix(draw, dtype, *shape, low=-1e6, high=1e6):
    count = int(torch.tensor(shape).prod())
    floats = st.floats(low, high, width=32)
    tensor = torch.tensor(draw(st.lists(floats, min_size=count, max_size=count))).reshape(shape).to(dtype)
    return torch.where(torch.isfinite(tensor), tensor, torch.zeros_like(tensor))


def edits(count):
    return st.lists(st.integers(0, 2), min_size=count, max_size=count).map(torch.tensor)


@st.composite
def deltas(draw, kinds=tuple(KINDS)):
    n, m, d, r = (draw(sizes) for _ in range(4))
    dtype = draw(FLOATS)
    maybe = draw(st.booleans())
    keyed = {"keys": draw(matrix(F32, n, d)), "key_edit": draw(edits(n))} if maybe else {}
    match draw(st.sampled_from(kinds)):
        case "dense":
            return Dense(draw(matrix(dtype, m, d)), **keyed)
        case "lowrank":
            return LowRank(draw(matrix(dtype, r, d)), draw(matrix(dtype, m, r)), **keyed)
        case "sparse":
            at = sorted(draw(st.sets(st.integers(0, m * d - 1), min_size=1)))
            values = draw(matrix(dtype, len(at)))
            return Sparse(torch.tensor(at), torch.where(values == 0, torch.ones_like(values), values), (m, d), **keyed)
        case "neurons":
            e = draw(sizes)
            return Neurons(
                draw(matrix(dtype, n, e)),
                draw(matrix(dtype, n)),
                draw(matrix(dtype, n, m)),
                (m, d),
                draw(matrix(dtype, n, e)) if maybe else None,
                draw(edits(n)) if maybe else None,
                draw(st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"])),
                "h.0",
            )
        case "codebook":
            radii = draw(matrix(F32, n, low=2.0**-20))
            where = draw(st.sampled_from(["last", "every"]))
            return Codebook(draw(matrix(F32, n, d)), draw(matrix(F32, n, m)), radii, draw(edits(n)), where)
        case "sidememory":
            delta, threshold = draw(matrix(dtype, m, d)), draw(st.floats(2.0**-10, 1e3))
            if not maybe:
                return SideMemory(delta, threshold=threshold)
            k = draw(st.integers(1, d))
            masks = [sorted(draw(st.permutations(range(d)))[:k]) for _ in range(n)]
            permutation = torch.tensor(draw(st.permutations(range(d))))
            return SideMemory(
                delta, torch.tensor(masks), draw(edits(n)), draw(matrix(F32, d)), permutation, "mask", threshold
            )
        case "facts":
            e = draw(sizes)
            answer = draw(st.sampled_from(["prompt", "model"]))
            other = ENCODER if answer == "model" else None
            threshold = draw(st.floats(2.0**-10, 1.0))
            match draw(st.sampled_from(["lexical", "projection", "model", "cross"])):
                case "lexical":
                    texts = draw(st.lists(st.text("aé\n", min_size=1, max_size=4), max_size=3))
                    more = {"demonstrations": tuple(texts), "shown": 2} if texts else {}
                    more["told"] = draw(st.sampled_from([None, 1, 64]))
                    return Facts(draw(edits(n)), (m, d), answer=answer, threshold=threshold, answer_model=other, **more)
                case "cross":
                    known = {"scope": "cross", "scope_model": ENCODER, "threshold": threshold}
                    return Facts(draw(edits(n)), (m, d), answer=answer, answer_model=other, **known)
                case "projection":
                    known = (draw(matrix(F32, n, e)), draw(matrix(F32, e, d)), "projection", answer, threshold, 0.5)
                    return Facts(draw(edits(n)), (m, d), *known, None, other)
                case _:
                    known = (draw(matrix(F32, n, e)), None, "model", answer, threshold, 2.0, ENCODER)
                    return Facts(draw(edits(n)), (m, d), *known, other)
    extra = {}
    if maybe:
        extra |= {"context_keys": draw(matrix(F32, r, d)), "context_row": torch.zeros(r, dtype=torch.int64)}
    if draw(st.booleans()):
        extra |= {"gate_keys": draw(matrix(F32, r, m)), "gate_edit": torch.tensor([2] * r), "gate_module": "h.0"}
    keys, residuals, outputs = draw(matrix(F32, n, d)), draw(matrix(F32, n, m)), draw(matrix(F32, n, m))
    if draw(st.booleans()):
        keys = torch.where(keys.abs() < 1e-10, torch.ones_like(keys), keys)
        extra |= {"whitened_keys": keys}
    if draw(st.booleans()):
        extra |= {"counter_keys": draw(matrix(F32, r, d)), "counter_edit": draw(edits(r))}
    if draw(st.booleans()):
        extra |= {"thresholds": draw(matrix(F32, 3, 2, low=-1, high=1))}
    site = draw(st.sampled_from(["subject", "answer"]))
    rows = Associative(keys, residuals, outputs, draw(edits(n)), site=site, **extra)
    return rows.halved() if draw(st.booleans()) else rows
