"""Every network against a slow reference: its equations written as loops over rows and edits, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.editors.hyper.dafnet import Past, decay
from kedit_hub.editors.hyper.malmen import ridge_dual
from kedit_hub.editors.hyper.rows import Rows
from kedit_hub.editors.hyper.train import build
from tests.editors.hyper.small import network_of, random_rows, small, standardised
from tests.tiny import tiny_model

FAMILIES = ["llama", "gpt2"]


def matrices(network: Any, signals: Any, text: Any = None) -> dict[str, Tensor]:
    """dW_io (in, out) of the network. It computes in float64 but for what the normaliser rounds."""
    network.normalisers.requires_grad_(False)
    with torch.no_grad():
        return {
            path: (a.double().T @ b.double())
            for path, (a, b) in network.factors(as_float64(network, signals), text).items()
        }


def as_float64(network: Any, signals: Any) -> Any:
    for normaliser in network.normalisers:
        normaliser.register_forward_hook(lambda _m, _a, output: output.double())
    return signals


def block(net: Any, h: Tensor, k: int) -> Tensor:
    inner = net.up @ (net.down @ h) + net.bias
    if net.outside:
        return h + net.scale[k] * torch.maximum(inner, torch.zeros_like(inner)) + net.shift[k]
    inner = net.scale[k] * inner + net.shift[k]
    return h + torch.maximum(inner, torch.zeros_like(inner))


def transformed(network: Any, path: str, z: Tensor) -> tuple[Tensor, Tensor]:
    group, k = network.place[path]
    for net in network.nets[group]:
        z = block(net, z, k)
    into = network.shapes[path][1]
    return z[:into], z[into:]


@pytest.mark.parametrize("family", FAMILIES)
def test_mend(family: str) -> None:
    network, _ = network_of("mend", tiny_model(family)[0])
    signals = random_rows(network)
    found = matrices(network, signals)
    for number, path in enumerate(network.paths):
        expected = torch.zeros_like(found[path])
        for z in standardised(network, path, signals[path]):
            u, delta = transformed(network, path, z)
            expected -= network.steps[number].detach() * torch.outer(u, delta).detach()
        assert torch.allclose(found[path], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_malmen(family: str) -> None:
    """In the primal, in x in; the network solves the dual."""
    network, _ = network_of("malmen", tiny_model(family)[0])
    signals = random_rows(network)
    found = matrices(network, signals)
    for number, path in enumerate(network.paths):
        keys = signals[path].u
        wanted = []
        for key, z in zip(keys, standardised(network, path, signals[path])):
            u, delta = transformed(network, path, z)
            wanted.append(-network.steps[number] * (key @ u) * delta)  # type: ignore[operator]
        ridge = network.ridges[number].exp() * torch.eye(keys.shape[1], dtype=torch.float64)  # type: ignore[index,operator]
        expected = torch.linalg.inv(keys.T @ keys + ridge) @ keys.T @ torch.stack(wanted)
        assert torch.allclose(
            found[path], expected.detach(), rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max())
        )


def test_the_dual_is_the_primal_and_so_are_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    wanted = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    ridge = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    dual = keys.T @ ridge_dual(keys, wanted, ridge).double()
    primal = torch.linalg.inv(keys.T @ keys + ridge.exp() * torch.eye(9, dtype=torch.float64)) @ keys.T @ wanted
    assert torch.allclose(dual, primal, atol=1e-6)
    upstream = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((x * upstream).sum(), [wanted, ridge]) for x in (dual, primal))):
        assert torch.allclose(one, other, atol=1e-6)
    solved = torch.linalg.solve(keys.T @ keys + ridge.exp() * torch.eye(9, dtype=torch.float64), upstream)
    again = torch.linalg.inv(keys.T @ keys + ridge.exp() * torch.eye(9, dtype=torch.float64)) @ keys.T @ wanted
    (by_hand,) = torch.autograd.grad((again * upstream).sum(), [wanted])
    assert torch.allclose(by_hand, keys @ solved)  # the paper's dL/dD = K (K^T K + e^l I)^-1 M


def layer(
    net: Any, xs: list[list[Tensor]], past: list[Tensor], k: int
) -> tuple[list[list[Tensor]], list[Tensor], list[Tensor]]:
    """DAFNet's layer, edit by edit; xs: rows of each edit, past: earlier representations."""
    memory, omegas, out = list(past), [], []
    for rows in xs:
        lifted = [net.lift(x) for x in rows]
        scores = [net.weigh(a)[0] for a in lifted]
        raised = [torch.exp(score - max(scores)) for score in scores]
        weighed = [w / sum(raised) * a for w, a in zip(raised, lifted)]
        r = sum(weighed)
        memory.append(r)
        rows = [net.norms[0](x + a) for x, a in zip(rows, weighed)]
        parts, own = [], []
        for head in range(net.attend.heads):
            for attention, mixing in ((net.attend, True), (net.score, False)):
                size = attention.size
                here = slice(head * size, (head + 1) * size)
                query = attention.query(r)[here]
                raw = torch.stack([query @ attention.key(m)[here] / size**0.5 for m in memory])
                share = (raw - raw.max()).exp() / (raw - raw.max()).exp().sum()
                if mixing:
                    parts.append(sum(s * attention.value(m)[here] for s, m in zip(share, memory)))
                else:
                    own.append(share[-1])
        h = net.attend.out(torch.cat(parts))
        omegas.append(sum(own) / len(own))
        rows = [net.norms[1](x + h) for x in rows]
        rows = [net.norms[2](x + net.ffn(x)) for x in rows]
        out.append([x + torch.relu(net.scale[k] * x + net.shift[k]) for x in rows])
    return out, omegas, memory


@pytest.mark.parametrize(("family", "counted"), [("llama", False), ("gpt2", False), ("llama", True)])
def test_dafnet(family: str, counted: bool) -> None:
    network, _ = network_of("dafnet", tiny_model(family)[0], counted=counted)
    signals = random_rows(network)
    found = matrices(network, signals)
    with torch.no_grad():
        for number, path in enumerate(network.paths):
            rows = signals[path]
            group, k = network.place[path]
            z = standardised(network, path, rows)
            xs = [[x for x, e in zip(z, rows.edit.tolist()) if e == i] for i in range(rows.edits)]
            per_layer = []
            for net in network.nets[group]:  # type: ignore[index,attr-defined]
                xs, omegas, _ = layer(net, xs, [], k)
                per_layer.append(omegas)
            change = torch.zeros_like(found[path])
            into = network.shapes[path][1]
            for i, own in enumerate(xs):  # one edit after another: what was there fades, the new one is added
                omega = sum(omegas[i] for omegas in per_layer) / len(per_layer)
                new = sum(torch.outer(x[:into], x[into:]) for x in own) / len(own)
                change = (1 - omega) * change - omega * network.steps[number] * new  # type: ignore[index,operator]
            change *= rows.edits ** float(network.powers[number]) if counted else 1  # type: ignore[index]
            assert torch.allclose(found[path], change, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_ke(family: str) -> None:
    model, _ = tiny_model(family)
    network, settings = network_of("ke", model)
    signals = random_rows(network)
    text = [
        torch.randn(n, settings.embedding, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        for n in (4, 2, 7)
    ]  # type: ignore[attr-defined]
    found = matrices(network, signals, text)
    with torch.no_grad():
        states = []
        for one in text:
            ends = []
            for direction, order in (("", range(len(one))), ("_reverse", range(len(one) - 1, -1, -1))):
                w = {
                    n: getattr(network.encoder, f"{n}_l0{direction}")
                    for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                h = c = torch.zeros(5, dtype=torch.float64)
                for t in order:
                    i, f, g, o = (w["weight_ih"] @ one[t] + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]).split(5)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                ends.append(h)
            states.append(network.project(torch.cat(ends)).tanh())  # type: ignore[operator]
        for path, conditioner in zip(network.paths, network.conditioners):  # type: ignore[arg-type]
            out, into = network.shapes[path]
            expected = torch.zeros(into, out, dtype=torch.float64)
            for e, h in enumerate(states):
                ca, cb, ra, rb, s = conditioner(h).split([into, into, out, out, 1])
                rows = signals[path]
                gradient = sum(
                    torch.outer(d, u) for u, d, own in zip(rows.u, rows.delta, rows.edit) if own == e
                )  # (out, in)
                mask, shift = torch.outer(ra.softmax(0), ca), torch.outer(rb.softmax(0), cb)
                expected += (network.step * s.sigmoid() * (gradient * mask + shift)).T  # type: ignore[operator]
            assert torch.allclose(found[path], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counted", [False, True])
def test_dafnet_in_one_call_is_dafnet_one_by_one(counted: bool) -> None:
    network, _ = network_of("dafnet", tiny_model("llama")[0], counted=counted)
    signals = as_float64(network, random_rows(network, (2, 3, 1, 2)))
    with torch.no_grad():
        whole = network.after(signals, Past())  # type: ignore[operator]
        past = Past()
        for e in range(4):
            own = {
                path: Rows(r.u[r.edit == e], r.delta[r.edit == e], torch.zeros(int((r.edit == e).sum())).long(), 1)
                for path, r in signals.items()
            }
            past = network.after(own, past)  # type: ignore[operator]
    one_by_one = network.change(past)  # type: ignore[operator]
    for path, (a, b) in network.change(whole).items():  # type: ignore[operator]
        assert torch.allclose(one_by_one[path][0].T @ one_by_one[path][1], a.T @ b, rtol=1e-10, atol=1e-12)
        for one, other in zip(past.representations[path], whole.representations[path]):
            assert torch.allclose(one, other, atol=1e-12)


def test_later_edits_do_not_change_what_an_edit_reads() -> None:
    network, _ = network_of("dafnet", tiny_model("llama")[0])
    signals = as_float64(network, random_rows(network, (2, 3)))
    path = network.paths[0]
    changed = {p: Rows(r.u.clone(), r.delta.clone(), r.edit, 2) for p, r in signals.items()}
    for rows in changed.values():
        rows.u[rows.edit == 1] += 1
    with torch.no_grad():
        one, other = network.factors(signals)[path], network.factors(changed)[path]
    assert torch.equal(one[0][:2], other[0][:2]) and not torch.allclose(one[0][2:], other[0][2:])


def test_decay_keeps_what_is_left_of_one() -> None:
    own, kept = decay(torch.tensor([0.5, 0.25, 0.8]).double())
    assert torch.allclose(own, torch.tensor([0.5 * 0.75 * 0.2, 0.25 * 0.2, 0.8]).double())
    assert float(kept) == pytest.approx(0.5 * 0.75 * 0.2)
    assert float(own.sum() + kept) == pytest.approx(1)


@pytest.mark.parametrize("detached", [False, True])
def test_the_decay_is_trained_unless_it_is_cut(detached: bool) -> None:
    network, _ = network_of("dafnet", tiny_model("llama")[0], detached=detached)
    signals = as_float64(network, random_rows(network))
    sum((a.T @ b).square().sum() for a, b in network.factors(signals).values()).backward()  # type: ignore[union-attr]
    reached = any(
        p.grad is not None and bool(p.grad.abs().sum()) for n, p in network.named_parameters() if ".score." in n
    )
    assert reached is not detached


@pytest.mark.parametrize("method", ["mend", "malmen", "instructedit"])
def test_a_new_network_changes_nothing_but_learns_from_its_first_step(method: str) -> None:
    settings = small(method)
    network = build(method, settings, {"model.layers.2.mlp.down_proj": (64, 128)}, 0)
    z = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    out = z
    for net in network.nets[0]:  # type: ignore[index,union-attr]
        out = net(out, 0)
    assert torch.equal(out, z)
    out.square().sum().backward()
    ups = [p.grad for n, p in network.named_parameters() if n.endswith(".up")]
    assert all(grad is not None and float(grad.abs().sum()) > 0 for grad in ups)


def test_a_new_mend_descends() -> None:
    """With the minus sign the first change is a step along the negative gradient, dimension by dimension scaled."""
    network = build("mend", small("mend"), {"m": (6, 4)}, 0)
    rows = Rows(torch.randn(3, 4), torch.randn(3, 6), torch.zeros(3).long(), 1)
    with torch.no_grad():
        a, b = network.factors({"m": rows})["m"]
    assert torch.allclose(a.T @ b, -1e-4 * rows.u.T @ rows.delta, atol=1e-8)
    assert network.owners({"m": rows})["m"].tolist() == [0, 0, 0]
