"""Published settings: what reaches an edit on a model of these sizes, against the published tables written out once more. No weights."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from kedit_hub.base.profile import ValueSettings
from kedit_hub.editors.editor import EDITORS, _settings
from kedit_hub.editors.presets import BREADTH_FIRST, FINETUNED, NEURONS, ONE_STEP, PUBLISHED, preset, sizes


def _gpt(layers: int, width: int) -> dict[str, int]:
    return {"n_layer": layers, "n_embd": width, "n_head": 16}


def _llama(layers: int, width: int, units: int) -> dict[str, int]:
    return {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": units}


MODELS = {
    "gpt2-medium": AutoConfig.for_model("gpt2", **_gpt(24, 1024)),
    "gpt2-large": AutoConfig.for_model("gpt2", **_gpt(36, 1280)),
    "gpt2-xl": AutoConfig.for_model("gpt2", **_gpt(48, 1600)),
    "gpt-j": AutoConfig.for_model("gptj", **_gpt(28, 4096)),
    "llama-2-7b": AutoConfig.for_model("llama", **_llama(32, 4096, 11008)),
    "llama-3-8b": AutoConfig.for_model("llama", **_llama(32, 4096, 14336)),
    "llama-3.2-3b": AutoConfig.for_model("llama", **_llama(28, 3072, 8192)),
    "mistral-7b": AutoConfig.for_model("mistral", **_llama(32, 4096, 14336)),
    "qwen2.5-7b": AutoConfig.for_model("qwen2", **_llama(28, 3584, 18944)),
    "t5-3b": AutoConfig.for_model("t5", num_layers=24, d_model=1024, d_ff=16384),
    "phi-4": AutoConfig.for_model("phi3", **_llama(40, 5120, 17920)),
}
UNKNOWN = {
    "gpt2": AutoConfig.for_model("gpt2"),
    "qwen3-8b": AutoConfig.for_model("qwen3", **_llama(36, 4096, 12288)),
    "gemma-7b": AutoConfig.for_model("gemma", **_llama(28, 3072, 24576)),
    "phi-3-mini": AutoConfig.for_model("phi3", **_llama(32, 3072, 8192)),
    "atlas-llama": AutoConfig.for_model("llama", **_llama(6, 256, 688)),
    "atlas-gpt2": AutoConfig.for_model("gpt2", **_gpt(6, 192), n_inner=768),
}
PROFILE: Any = SimpleNamespace(settings=SimpleNamespace(value=ValueSettings()))


def reaching(name: str, method: str, **asked: Any) -> Any:
    """The settings of an edit of this method on this model."""
    model: Any = SimpleNamespace(config=(MODELS | UNKNOWN)[name])
    return _settings(EDITORS[method], method, asked, model, PROFILE)


def through(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


# lr, steps, weight decay, clamp, kl
VALUES = {
    "gpt2-medium": {"rome": (0.5, 20, 0.5, 3, 0.0625), "memit": (0.5, 20, 0.5, 0.75, 0.0625)},
    "gpt2-large": {"rome": (0.5, 20, 0.5, 4, 0.0625), "memit": (0.5, 20, 0.5, 0.75, 0.0625)},
    "gpt2-xl": {"rome": (0.5, 20, 0.5, 4, 0.0625), "memit": (0.5, 20, 0.5, 0.75, 0.0625)},
    "gpt-j": {"rome": (0.5, 20, 0.5, 4, 0.0625), "memit": (0.5, 25, 0.5, 0.75, 0.0625), "pmet": (0.2, 30, 0.5, 0.75, 1.0)},
    "llama-2-7b": {"rome": (0.5, 25, 1e-3, 4, 0.0625), "memit": (0.5, 25, 1e-3, 4, 0.0625), "pmet": (0.5, 20, 0.5, 1, 0.0625)},
    "llama-3-8b": {"rome": (0.5, 25, 1e-3, 4, 0.0625), "memit": (0.1, 25, 0.5, 0.75, 0.0625), "pmet": (0.1, 25, 0.5, 1, 0.0625)},
    "llama-3.2-3b": {"rome": (0.5, 25, 1e-3, 4, 0.0625), "memit": (0.5, 25, 1e-3, 4, 0.0625), "pmet": (0.5, 25, 0.5, 1, 0.0625)},
    "mistral-7b": {"rome": (0.5, 25, 1e-3, 4, 0.0625), "memit": (0.5, 25, 1e-3, 4, 0.0625)},
    "qwen2.5-7b": {"rome": (0.5, 25, 1e-3, 4, 0.0625), "memit": (0.5, 25, 1e-3, 4, 0.0625)},
}  # fmt: skip
LAYERS = {
    "gpt2-medium": (4, 8), "gpt2-large": (8, 12), "gpt2-xl": (13, 17), "gpt-j": (3, 8), "llama-2-7b": (4, 8), "llama-3-8b": (4, 8),
    "llama-3.2-3b": (4, 8), "mistral-7b": (4, 8), "qwen2.5-7b": (4, 8),
}  # fmt: skip
LAM = {name: 20_000.0 if name.startswith("gpt2") else 15_000.0 for name in LAYERS}
NULL = {"gpt2-xl": (2e-2, 10), "gpt-j": (2e-2, 10), "llama-3-8b": (2e-2, 10), "qwen2.5-7b": (2e-2, 1)}
EMMET = {
    "gpt2-xl": (17, 10_000), "gpt-j": (5, 100_000), "llama-2-7b": (5, 100_000), "llama-3-8b": (5, 100_000),
    "llama-3.2-3b": (5, 100_000), "mistral-7b": (5, 100_000),
}  # fmt: skip
# layers of FT and FT-M, of FT-L, its bound, passes
FT = {
    "gpt2-medium": (None, None, 2e-3, 25), "gpt2-large": (None, None, 1e-3, 25), "gpt2-xl": ((1,), (0,), 5e-4, 25),
    "gpt-j": ((21,), (0,), 5e-5, 25), "llama-2-7b": ((21,), (21,), "auto", 25), "llama-3-8b": ((21,), (21,), "auto", 25),
    "llama-3.2-3b": ((21,), (21,), "auto", 25), "mistral-7b": ((21,), (21,), 5e-5, 25), "qwen2.5-7b": ((27,), (27,), 5e-5, 25),
    "t5-3b": ((0, 21), (0, 21), "auto", 50),
}  # fmt: skip
LOCFT = {"llama-3-8b": ((22,), 5e-4), "qwen2.5-7b": ((6,), 5e-4), "mistral-7b": ((23,), 5e-5)}
ULTRAEDIT = {
    "mistral-7b": {"down": (29, 30)}, "gpt-j": {"down": through(18, 26)}, "phi-4": {"down": through(30, 38)},
    "llama-3-8b": {"gate": through(11, 15), "up": through(18, 24)},
    "qwen2.5-7b": {"gate": through(18, 26), "up": through(18, 26)},
}  # fmt: skip
KN = {
    "gpt2-xl": 20,
    "gpt-j": 20,
    "llama-2-7b": 1,
    "llama-3-8b": 20,
    "llama-3.2-3b": 20,
    "mistral-7b": 20,
    "qwen2.5-7b": 20,
    "t5-3b": 20,
}


def test_every_row_is_compared() -> None:
    for table, rows in (
        (PUBLISHED, LAYERS),
        (FINETUNED, FT),
        (BREADTH_FIRST, LOCFT),
        (ONE_STEP, ULTRAEDIT),
        (NEURONS, KN),
    ):
        assert set(table) == {sizes(MODELS[name]) for name in rows}


@pytest.mark.parametrize("name", LAYERS)
def test_values_layers_and_lam(name: str) -> None:
    told = VALUES[name]
    methods = {
        "rome-published": "rome", "r-rome": "rome", "memit-spread": "memit", "memit-blue": "memit", "alphaedit-spread": "memit",
        "alphaedit-blue": "memit", "pmet-spread": "pmet",
    }  # fmt: skip
    for method, like in methods.items():
        found = reaching(name, method)
        lr, steps, decay, clamp, kl = told.get(like, told["memit"])
        assert found.value == ValueSettings(
            lr=lr, steps=steps, weight_decay=decay, clamp=clamp, kl=kl, absolute=True, eased=like == "pmet"
        )
        window = through(*LAYERS[name])
        wanted = None if like == "rome" else (window[0], window[-1]) if method.endswith("blue") else window
        assert found.layers == wanted
        if method in ("memit-spread", "memit-blue", "pmet-spread"):
            assert (found.lam, found.l2, found.null_threshold) == (LAM[name], None, None)
        elif "alphaedit" in method:
            tau, l2 = NULL.get(name, (None, None))
            assert (found.lam, found.l2, found.null_threshold, found.null_rank) == (None, l2, tau, None)


@pytest.mark.parametrize("name", LAYERS)
def test_emmet(name: str) -> None:
    found = reaching(name, "emmet")
    layer, lam = EMMET.get(name, (None, None))
    assert (found.layers, found.lam) == (None if layer is None else (layer,), lam)
    assert found.omega == 10 and found.value is None  # 1 / eps; values at the site of the profile are its own


@pytest.mark.parametrize("name", FT)
def test_fine_tuning(name: str) -> None:
    layers, bounded, bound, epochs = FT[name]
    for method, wanted in (("ft", layers), ("ft-m", layers), ("ft-l", bounded)):
        found = reaching(name, method)
        assert (found.layers, found.lr, found.epochs, found.batch, found.stop_loss) == (wanted, 5e-4, epochs, 1, 1e-2)
        assert found.norm_bound == (bound if method == "ft-l" else None)
        assert found.objective == ("target" if method == "ft-m" else "prompt-last")


@pytest.mark.parametrize("name", MODELS)
def test_locft_kn_and_ultraedit(name: str) -> None:
    found = reaching(name, "locft")
    assert (found.layers, found.lr) == LOCFT.get(name, (None, "auto"))
    assert (found.batch, found.epochs, found.shuffle) == (100, 25, True)
    found = reaching(name, "kn")
    assert (found.steps, found.threshold) == ((KN[name], 0.2) if name in KN else (20, 0.4))
    found = reaching(name, "ultraedit")
    if name in ULTRAEDIT:
        assert (found.maps, found.eta, found.rows, found.ridge) == (ULTRAEDIT[name], 1e-6, "all", 1.0)
    else:
        assert (found.maps, found.eta, found.rows, found.step) == (None, None, "answer", 0.5)


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_nothing_is_published_the_rule_of_the_method_holds(name: str) -> None:
    for method, editor in EDITORS.items():
        if editor.like in ("emmet", "ft", "ft-l", "ft-m", "locft", "kn", "ultraedit"):
            assert preset(UNKNOWN[name], editor.like) == {}
            assert reaching(name, method) == editor.settings.model_validate(dict(editor.defaults))
        elif editor.like is not None:
            found = reaching(name, method)
            assert (found.lam, found.l2, found.null_threshold, found.null_rank) == (None, None, None, None)
            assert found.value.kl == 0.0625 and not found.value.absolute
            assert found.value.clamp == (4.0 if editor.like == "rome" else 0.75)


def test_what_is_asked_for_takes_the_place_of_what_is_published() -> None:
    found = reaching("llama-3-8b", "alphaedit-spread", lam=100.0, null_rank=0.5)
    assert (found.lam, found.l2, found.null_rank, found.null_threshold) == (100.0, None, 0.5, None)
    found = reaching("llama-3-8b", "alphaedit-spread", preconditioner="second-moment")
    assert (found.lam, found.l2, found.null_threshold) == (15_000.0, None, None)
    found = reaching("llama-3-8b", "memit-spread", preconditioner="null-space")
    assert (found.lam, found.l2, found.null_threshold) == (None, 10.0, 2e-2)
    found = reaching("llama-3-8b", "memit-spread", preconditioner="hybrid")
    assert (found.lam, found.l2, found.null_threshold) == (None, None, None)
    assert reaching("llama-3-8b", "emmet", preconditioner="null-space").lam is None
    found = reaching("llama-3-8b", "ultraedit", layers=[7], step=0.1)
    assert (found.layers, found.maps, found.step, found.eta) == ((7,), None, 0.1, None)
    found = reaching("gpt2-xl", "ft-l", norm_bound=None, layers=[3], lr="auto")
    assert (found.norm_bound, found.layers, found.lr, found.batch) == (None, (3,), "auto", 1)
    found = reaching("gpt-j", "pmet-spread", value={"clamp": 2.0})
    assert (found.value.clamp, found.value.kl, found.value.steps) == (2.0, 1.0, 30)
