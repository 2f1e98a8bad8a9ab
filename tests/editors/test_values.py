"""The value optimisation against a slow reference: one edit at a time, unpadded texts one by one, the delta added by a plain hook at the
output of the edited linear map, and the whole model run for every step."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kedit_hub.base.families import block, block_path, edited_linear, family_of
from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.base.signals import capture
from kedit_hub.editors.essence import essence
from kedit_hub.editors.locate import measure
from kedit_hub.editors.rows import context_rows
from kedit_hub.editors.values import Values, optimise_values
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from tests.profiles import EDITS, profile_of
from tests.tiny import TEXT, tiny_model

LAYER = 1
FAST = ValueSettings(steps=12, lr=0.2, clamp=0.9)


def optimised(
    model: Any, tokenizer: Any, profile: BaseProfile, edits: Any, settings: ValueSettings, **more: Any
) -> Values:
    rows = context_rows(tokenizer, edits, profile.settings.contexts, profile.site, profile.settings.answer_end)
    hidden = measure(model, profile, rows)["hidden"]
    return optimise_values(model, profile.layer, rows, hidden, settings, answer_site=profile.site == "answer", **more)


class Reference:
    """One edit. texts: token ids of every context with its target; sites: positions whose output moves."""

    def __init__(self, model: Any, tokenizer: Any, profile: BaseProfile, edit: Edit):
        self.model = model
        self.linear = edited_linear(model, LAYER)[1]
        self.texts, self.sites, self.targets = [], [], []
        for prompt in [edit.prompt, *(f"{c} {edit.prompt}" for c in profile.settings.contexts), *edit.paraphrases]:
            ids = tokenizer(f"{prompt} {edit.target}").input_ids
            known = len(tokenizer(prompt).input_ids)
            if profile.site == "answer":
                sites = list(range(known - 1, len(ids) - 1))
            else:
                cut = prompt.find(str(edit.subject)) + len(str(edit.subject))
                sites = [len(tokenizer(prompt[:cut]).input_ids) - 1]
            self.texts.append(torch.tensor([ids]))
            self.sites.append(sites)
            self.targets.append(list(range(known, len(ids))))
        with torch.no_grad():
            path = next(n for n, m in model.named_modules() if m is block(model, LAYER))
            seen: list[Tensor] = []
            handle = model.get_submodule(path).register_forward_hook(
                lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            model(self.texts[0])
            handle.remove()
        self.width = seen[0].shape[-1]
        self.scale = seen[0][0, self.sites[0]].norm(dim=-1, keepdim=True) / self.width**0.5  # (S, 1)

    def run(self, delta: Tensor) -> tuple[Tensor, list[list[bool]], list[list[float]]]:
        """Mean NLL over contexts; by context and target token: whether it is argmax, and its NLL."""
        losses, right, each = [], [], []
        for ids, sites, targets in zip(self.texts, self.sites, self.targets):

            def hook(module: Any, args: Any, out: Tensor, sites: list[int] = sites) -> Tensor:
                add = torch.zeros_like(out)
                add[0, sites] = delta
                return out + add

            handle = self.linear.register_forward_hook(hook)
            logits = self.model(ids).logits[0]
            handle.remove()
            before = [t - 1 for t in targets]
            nll = F.cross_entropy(logits[before], ids[0, targets], reduction="none")
            losses.append(nll.mean())
            each.append(nll.tolist())
            right.append((logits[before].argmax(-1) == ids[0, targets]).tolist())
        return torch.stack(losses).mean(), right, each

    def optimise(self, settings: ValueSettings, answer_site: bool) -> tuple[Tensor, float, bool, float]:
        """(delta (S, m), NLL, whether the bare prompt says the target, share of contexts that do), Adam written out."""
        x = torch.zeros(len(self.sites[0]), self.width, dtype=self.scale.dtype, requires_grad=True)
        m = torch.zeros_like(x)
        v = torch.zeros_like(x)
        moves = torch.ones(len(x), 1)
        best: tuple[Tensor, float, bool, float] = (torch.zeros_like(x), float("inf"), False, 0.0)
        for step in range(settings.steps + 1):
            delta = self.scale * moves * x
            loss, right, each = self.run(delta)
            if step == 0 and answer_site:
                for s in range(1, len(x)):
                    moves[s] = float(not all(r[s] and n[s] < 0.1 for r, n in zip(right, each)))
            share = sum(all(r) for r in right) / len(right)
            if share > best[3] or (share == best[3] and loss.item() < best[1]):
                best = (delta.detach().clone(), loss.item(), all(right[0]), share)
            if share == 1.0 and loss.item() < settings.stop_nll:
                break
            total = loss + settings.weight_decay * (x.norm(dim=-1) / self.width**0.5).sum()
            (g,) = torch.autograd.grad(total, [x])
            with torch.no_grad():
                m = 0.9 * m + 0.1 * g
                v = 0.999 * v + 0.001 * g * g
                x -= settings.lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                for row in x:
                    if row.norm() > settings.clamp * self.width**0.5:
                        row *= settings.clamp * self.width**0.5 / row.norm()
        return best


@pytest.mark.parametrize("site", ["answer", "subject"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj", "gemma"])
def test_deltas_are_those_of_the_slow_reference(model_type: str, site: Any) -> None:
    model, tokenizer = tiny_model(model_type)
    profile = profile_of(model, tokenizer, layer=LAYER, site=site)
    edits = [*EDITS[:3], Edit("The author of Hamlet is", "Bonn", "Hamlet", paraphrases=("Hamlet lies in",))]
    settings = ValueSettings(steps=12, lr=0.2, clamp=0.9, weight_decay=0.05)
    values = optimised(model, tokenizer, profile, edits, settings)
    bound, exact = False, copy.deepcopy(model).double()
    for number, edit in enumerate(edits):
        reference = Reference(exact, tokenizer, profile, edit)
        delta, nll, success, share = reference.optimise(settings, site == "answer")
        got = values.delta[number, : len(delta)]
        assert (got - delta).norm() < 1e-4 * delta.norm()
        assert values.nll[number].item() == pytest.approx(nll, abs=1e-4)
        assert bool(values.success[number]) == success
        assert values.contexts[number].item() == pytest.approx(share)
        assert not values.delta[number, len(delta) :].any()
        bound |= bool((got.norm(dim=1) / (reference.scale[:, 0] * reference.width**0.5) > 0.899).any())
    assert bound  # the clamp was at work


class Published:
    """One edit with one context, the loss as it is printed: NLL + kl KL(p0 || p) of "<subject> is a" + decay |v| / h0^2, |v| <= clamp h0.

    Of one value at the block's output (MEMIT), one at the MLP's (ROME), or one each at the MLP's and the attention's (PMET), where h0 is
    the norm of what that very module says at the subject; Adam of torch on v itself."""

    def __init__(self, model: Any, tokenizer: Any, edit: Edit, method: str):
        self.model = model
        cut = edit.prompt.find(str(edit.subject)) + len(str(edit.subject))
        self.at = len(tokenizer(edit.prompt[:cut]).input_ids) - 1
        self.ids = torch.tensor([tokenizer(f"{edit.prompt} {edit.target}").input_ids])
        self.known = len(tokenizer(edit.prompt).input_ids)
        self.about = torch.tensor([tokenizer(f"{edit.subject} is a").input_ids])
        self.about_at = len(tokenizer(str(edit.subject)).input_ids) - 1
        whole = block(model, LAYER)
        linear, attention = edited_linear(model, LAYER)[1], whole.get_submodule(family_of(model).attention)
        self.modules = {"memit": [whole], "rome": [linear], "pmet": [linear, attention]}[method]
        self.h0 = torch.stack([self.said(module).norm() for module in self.modules])

    def said(self, module: Any) -> Tensor:
        """(m,) what a module says at the subject in the bare prompt."""
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        with torch.no_grad():
            self.model(self.ids[:, : self.known])
        handle.remove()
        return seen[0][0, self.at]

    def logits(self, ids: Tensor, at: int, values: Tensor) -> Tensor:
        def hook_for(value: Tensor) -> Any:
            def hook(module: Any, args: Any, out: Any) -> Any:
                hidden = (out[0] if isinstance(out, tuple) else out).clone()
                hidden[0, at] += value
                return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

            return hook

        handles = [m.register_forward_hook(hook_for(v)) for m, v in zip(self.modules, values)]
        try:
            return self.model(ids).logits[0]
        finally:
            for handle in handles:
                handle.remove()

    def nll(self, values: Tensor) -> Tensor:
        logits = self.logits(self.ids, self.at, values)
        return F.cross_entropy(logits[self.known - 1 : -1], self.ids[0, self.known :])

    def says(self, values: Tensor) -> bool:
        told = self.logits(self.ids, self.at, values)[self.known - 1 : -1].argmax(-1)
        return bool((told == self.ids[0, self.known :]).all())

    def optimise(self, settings: ValueSettings) -> Tensor:
        values = torch.zeros(len(self.modules), self.model.config.hidden_size, requires_grad=True)
        adam = torch.optim.Adam([values], lr=settings.lr)
        p0 = self.logits(self.about, self.about_at, torch.zeros_like(values))[self.about_at].log_softmax(-1).detach()
        weight, kept = 1.0, None
        for _ in range(settings.steps):
            p = self.logits(self.about, self.about_at, values)[self.about_at].log_softmax(-1)
            kl = (p0.exp() * (p0 - p)).sum()
            loss = weight * self.nll(values) + settings.kl * kl
            if settings.eased:
                said = self.says(values)
                kept = values.detach().clone() if said else kept
                if said and kl < 0.01:
                    return values.detach()
                weight = 0.1 if said else 1.0
            loss = loss + settings.weight_decay * (values.norm(dim=1) / self.h0**2).sum()
            adam.zero_grad()
            loss.backward()
            if _ == 0:  # |v| has no gradient at zero
                values.grad.nan_to_num_()
            adam.step()
            with torch.no_grad():
                values *= (settings.clamp * self.h0 / values.norm(dim=1)).clamp_max(1.0)[:, None]
        return values.detach() if kept is None or self.says(values) else kept


SUBJECTS = (Edit("The capital of France", "Rome", "France"), Edit("The tongue of Marie Curie", "Bonn", "Marie Curie"))


def as_published(model: Any, tokenizer: Any, method: str, settings: ValueSettings, **more: Any) -> Values:
    """The values of SUBJECTS, with what `method` measures them against."""
    rows = context_rows(tokenizer, SUBJECTS, (), "subject")
    whole, under = block_path(model, LAYER), block_path(model, LAYER - 1)
    places = [edited_linear(model, LAYER)[0], f"{whole}.{family_of(model).attention}"]
    seen = capture(model, [whole, under, *places], rows.encoded, outputs=True)
    own = {"memit": [], "rome": places[:1], "pmet": places}[method]
    return optimise_values(
        model, LAYER, rows, seen[whole], settings, answer_site=False, own=[seen[place] for place in own],
        essence=essence(model, tokenizer, SUBJECTS, under if method == "pmet" else whole) if settings.kl else None,
        below=seen[under] if method == "pmet" else None,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["memit", "rome", "pmet"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj"])
def test_published_losses(model_type: str, method: str) -> None:
    model, tokenizer = tiny_model(model_type)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    settings = ValueSettings(steps=4, lr=0.3, clamp=0.5, weight_decay=0.5, kl=0.3, absolute=True, stop_nll=0.0)
    values = as_published(model, tokenizer, method, settings)
    for number, edit in enumerate(SUBJECTS):
        wanted = Published(model, tokenizer, edit, method).optimise(settings)
        assert torch.allclose(values.delta[number, 0], wanted[0], atol=2e-3 * wanted[0].norm().item())
    without = as_published(model, tokenizer, method, settings.model_copy(update={"kl": 0.0}))
    assert not torch.allclose(values.delta, without.delta, atol=1e-2)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_eased_values(model_type: str) -> None:
    """PMET's: a target that is said weighs a tenth from the next step on, and its value is done when the KL is small as well; a value that
    has said its target ends as one that says it."""
    model, tokenizer = tiny_model(model_type)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    settings = ValueSettings(steps=40, lr=0.1, clamp=2.0, weight_decay=0.1, absolute=True, stop_nll=0.0)
    for kl in (0.0625, 10.0):
        eased, plain = (
            as_published(model, tokenizer, "pmet", settings.model_copy(update={"kl": kl, "eased": how}))
            for how in (True, False)
        )
        for number, edit in enumerate(SUBJECTS):
            reference = Published(model, tokenizer, edit, "pmet")
            wanted = reference.optimise(settings.model_copy(update={"kl": kl, "eased": True}))[0]
            assert torch.allclose(eased.delta[number, 0], wanted, atol=1e-3 * wanted.norm().item())
            assert not torch.allclose(eased.delta[number, 0], plain.delta[number, 0], atol=1e-2)
    if model_type == "llama":  # strong enough a KL that one value ended by it
        assert not eased.unfinished[0] and plain.unfinished[0]


@pytest.mark.parametrize("method", ["memit", "rome", "pmet"])
def test_published_bounds_are_of_what_a_value_is_added_to(method: str) -> None:
    """A step that is far too long ends at the bound, whichever module it is of; our own settings are bounded by the block's output."""
    model, tokenizer = tiny_model("llama")
    settings = ValueSettings(steps=1, lr=50.0, clamp=0.7, stop_nll=0.0, absolute=True)
    for number, edit in enumerate(SUBJECTS):
        block_h0, h0 = (Published(model, tokenizer, edit, name).h0[0].item() for name in ("memit", method))
        for absolute, unit in ((True, h0), (False, block_h0)):
            values = as_published(model, tokenizer, method, settings.model_copy(update={"absolute": absolute}))
            size = values.delta[number, 0].norm().item()
            if size:  # else the step made it less likely
                assert size == pytest.approx(0.7 * unit, rel=1e-4)
                assert values.norm[number].item() == pytest.approx(size / block_h0, rel=1e-4)
                assert bool(values.clamped[number]) and bool(values.unfinished[number])


def test_an_anchored_value_of_the_mlp_is_measured_there_and_asked_beside_that_of_attention() -> None:
    model, tokenizer = tiny_model("llama")
    settings = ValueSettings(steps=3, lr=0.05, clamp=0.9, stop_nll=0.0, absolute=True)
    anchored = as_published(model, tokenizer, "pmet", settings.model_copy(update={"anchor": 3.0}))
    for number, edit in enumerate(SUBJECTS):
        reference = Published(model, tokenizer, edit, "pmet")
        mlp, attention = reference.optimise(settings)  # the last step is the best
        before = reference.said(reference.modules[0])
        wanted = (before + mlp) * (3.0 / (before + mlp).norm()) - before
        assert torch.allclose(anchored.delta[number, 0], wanted, atol=1e-3)
        assert anchored.nll[number].item() == pytest.approx(
            reference.nll(torch.stack([wanted, attention])).item(), abs=1e-3
        )
        alone = reference.nll(torch.stack([wanted, torch.zeros(64)])).item()
        assert anchored.nll[number].item() != pytest.approx(alone, abs=1e-2)


def test_an_anchored_value_has_the_norm_that_was_asked_for() -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer, layer=LAYER)
    size = 3.0
    rows = context_rows(tokenizer, EDITS, profile.settings.contexts, profile.site)
    hidden = measure(model, profile, rows)["hidden"]
    values = optimise_values(model, LAYER, rows, hidden, FAST.model_copy(update={"anchor": size}), answer_site=True)
    row, site = (rows.sites[rows.bare] >= 0).nonzero(as_tuple=True)
    bare = rows.bare.nonzero()[:, 0][row]
    delta = values.delta[rows.edit[bare], site]
    moved = delta.abs().amax(1) > 0
    assert bool(moved.any())
    assert torch.allclose(
        (hidden[bare, rows.sites[bare, site]] + delta)[moved].norm(dim=1), torch.tensor(size), atol=1e-3
    )


def test_what_is_said_of_a_subject_lies_where_the_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding and the head may lie on other devices than the block whose output is kept."""
    model, tokenizer = tiny_model("llama")
    edits = [edit for edit in EDITS if edit.subject is not None]
    kept = essence(model, tokenizer, edits, block_path(model, LAYER)).hidden.to("meta")
    monkeypatch.setattr("kedit_hub.editors.essence.capture", lambda model, paths, encoded, outputs: {paths[0]: kept})
    found = essence(model, tokenizer, edits, block_path(model, LAYER))
    placed = [found.hidden, found.at, found.said, found.encoded.input_ids, found.encoded.attention_mask]
    assert {tensor.device.type for tensor in placed} == {"meta"}
    assert found.said[torch.zeros(1, dtype=torch.long, device="meta")].shape[0] == 1


def test_what_is_said_after_a_subject_cannot_be_kept_where_answers_are_predicted() -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer, layer=LAYER)
    with pytest.raises(KeditError, match=r"value.kl=0.1 .* set value.kl=0"):
        optimised(model, tokenizer, profile, EDITS[:1], FAST.model_copy(update={"kl": 0.1}))


@pytest.mark.parametrize("stop_nll", [1.6, 1e6])
def test_finished_edits_stop_and_the_others_go_on(stop_nll: float) -> None:
    """Done when every context says the target, and surely enough; with any NLL sure enough, saying it is all that counts."""
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    settings = ValueSettings(steps=25, lr=0.3, clamp=3.0, stop_nll=stop_nll)
    done: list[int] = []
    values = optimised(model, tokenizer, profile, EDITS, settings, advance=done.append)
    assert sum(done) == len(EDITS) and values.steps < 25
    for number, edit in enumerate(EDITS):
        delta, nll, _, share = Reference(model, tokenizer, profile, edit).optimise(settings, True)
        assert torch.allclose(values.delta[number, : len(delta)], delta, atol=1e-4 * delta.norm().item(), rtol=1e-3)
        assert share == 1.0 and nll < stop_nll
    steps = [optimised(model, tokenizer, profile, [edit], settings).steps for edit in EDITS]
    assert len(set(steps)) > 1 and values.steps == max(steps)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_batch_is_one_by_one(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    profile = profile_of(model, tokenizer)
    together = optimised(model, tokenizer, profile, EDITS, FAST)
    for number, edit in enumerate(EDITS):
        alone = optimised(model, tokenizer, profile, [edit], FAST)
        own = alone.delta.shape[1]
        assert torch.allclose(together.delta[number, :own], alone.delta[0], atol=1e-4)
        assert not together.delta[number, own:].any()
        assert together.success[number] == alone.success[0]


def confident() -> tuple[Any, Any, BaseProfile]:
    """A model that is sure of whatever it says."""
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight *= 30
    return model, tokenizer, profile_of(model, tokenizer, contexts=())


def test_positions_the_base_already_answers_stay_as_they_are() -> None:
    """Target " Rome" and then what the base says after it: only the first token needs a change."""
    model, tokenizer, profile = confident()
    ids = tokenizer("The capital of France is Rome").input_ids
    for _ in range(2):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    start = len(tokenizer("The capital of France is").input_ids)
    edit = Edit("The capital of France is", tokenizer.decode(ids[start:]).strip(), "France")
    assert tokenizer(f"{edit.prompt} {edit.target}").input_ids == ids
    values = optimised(model, tokenizer, profile, [edit, EDITS[1]], ValueSettings(steps=20, lr=0.3, clamp=3.0))
    first = len(ids) - start - 2  # sites of " Rome" itself
    assert values.delta[0, 0].any() and not values.delta[0, first:].any()
    assert bool(values.success[0])
    delta, _, success, _ = Reference(model, tokenizer, profile, edit).optimise(
        ValueSettings(steps=20, lr=0.3, clamp=3.0), True
    )
    assert success and not delta[first:].any()


def test_the_first_token_moves_even_where_the_base_says_it() -> None:
    """An edit to what the base says anyway still gets a row that speaks, as sure as the settings ask."""
    model, tokenizer, profile = confident()
    settings = ValueSettings(steps=5, lr=0.2, clamp=1.0, stop_nll=0.0)
    tried = 0
    for word in sorted(set(TEXT.replace(".", "").replace(",", "").split())):
        ids = tokenizer(f"{word} is the capital of").input_ids
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        said = tokenizer.decode(ids[-1:])
        if not said.strip() or tokenizer(f"{word} is the capital of {said.strip()}").input_ids != ids:
            continue  # a piece of a letter or of a word
        edit = Edit(f"{word} is the capital of", said.strip(), word)
        _, right, ((nll,),) = Reference(model, tokenizer, profile, edit).run(torch.zeros(1, 64))
        if right == [[True]] and 1e-4 < nll < 0.1:
            values = optimised(model, tokenizer, profile, [edit], settings)
            assert values.delta.any() and values.nll[0] < nll
            tried += 1
    assert tried


def snapshot(model: Any) -> tuple[dict[str, Tensor], list[bool], list[bool]]:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
    )


@pytest.mark.parametrize("how", ["well", "badly"])
def test_the_model_is_left_as_it_was(how: str) -> None:
    model, tokenizer = tiny_model("gpt2")
    profile = profile_of(model, tokenizer)
    model.train()  # with dropout on and some weights frozen, as a user may hand it in
    model.transformer.h[0].eval()
    model.transformer.wte.weight.requires_grad_(False)
    weights, learning, training = snapshot(model)
    state = copy.deepcopy(torch.random.get_rng_state())

    def advance(done: int) -> None:
        if how == "badly":
            raise KeyboardInterrupt

    run: Callable[[], Values] = lambda: optimised(  # noqa: E731
        model, tokenizer, profile, EDITS, FAST, advance=advance
    )
    if how == "badly":
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        first, second = run(), run()
        assert torch.equal(first.delta, second.delta)  # no dropout, no randomness
    after = snapshot(model)
    assert all(torch.equal(weights[name], value) for name, value in after[0].items())
    assert (learning, training) == after[1:]
    assert all(p.grad is None for p in model.parameters())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_values_can_be_found_where_gradients_are_off() -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    expected = optimised(model, tokenizer, profile, EDITS[:1], FAST)
    with torch.no_grad():
        assert torch.equal(optimised(model, tokenizer, profile, EDITS[:1], FAST).delta, expected.delta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases(dtype: torch.dtype) -> None:
    """Rounding changes the path, not where it leads."""
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    settings = ValueSettings(steps=30, lr=0.3, clamp=3.0)
    full = optimised(model, tokenizer, profile, EDITS, settings)
    half = optimised(model.to(dtype), tokenizer, profile, EDITS, settings)
    assert half.delta.dtype == torch.float32 and half.success.all()
    cosine = F.cosine_similarity(half.delta.flatten(), full.delta.flatten(), dim=0)
    assert cosine > 0.9


def test_quantized_bases(tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    from kedit_hub.base.load import load_base

    plain, tokenizer = tiny_model("llama")
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    profile = profile_of(plain, tokenizer)
    for kind in ("int8", "nf4"):
        model, _ = load_base(tmp_path, quantization=kind)  # type: ignore[arg-type]
        stored = {n: t.clone() for n, t in model.state_dict().items() if torch.is_tensor(t)}
        values = optimised(model, tokenizer, profile, EDITS, ValueSettings(steps=30, lr=0.3, clamp=3.0))
        assert values.success.all()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in stored.items())
