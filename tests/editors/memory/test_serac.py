"""SERAC: the scope and the routing against loops, rows in scope answered by the small model, everything else the base, bit for bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.hyper.state import StateError
from kedit_hub.editors.hyper.trained import FileCheckpoint, Map, TrainedEditor, _laid_out, read_settings
from kedit_hub.editors.memory.serac import bound, editor_name
from kedit_hub.editors.memory.serac_training import scope_loss, train_serac
from kedit_hub.editors.memory.seracnet import Bound, SeracTraining, read_rows
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, KeditError, PatchFormatError, WrongBaseError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch import Facts, Patch
from kedit_hub.runtime.facts import Fact, FactsRouter, Piece
from kedit_hub.runtime.scope import Crossed, Near
from kedit_hub.stack.facts import told
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.stack import PatchStack
from tests.editors.hyper.small import LESSONS
from tests.editors.memory.common import PROMPTS, Base, edit, numbers
from tests.profiles import EDITS, logits, profile_of
from tests.tiny import tiny_model

ENCODER, CROSS = "org/encoder@" + "1" * 40, "org/cross@" + "2" * 40
SMALL = {
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "width": 4,
    "scope_steps": 20,
    "steps": 4,
    "validate_every": 2,
    "batch": 3,
    "validation": 0.3,
}
ASKED = [*PROMPTS[:4], "The capital of France, as everybody knows, is", "Berlin is"]


@pytest.fixture(scope="module")
def base() -> Base:
    model, tokenizer = tiny_model("llama", bos=True)
    model.generation_config.eos_token_id = None
    return model, tokenizer, profile_of(model, tokenizer)


class Killed(FileCheckpoint):
    """A checkpoint in a file whose training is killed when it has been written once."""

    def write(self, tensors: Any) -> None:
        super().write(tensors)
        raise KeyboardInterrupt


def trained(base: Base, seed: int = 0, checkpoint: Any = None) -> Any:
    return train_serac(base[0], base[1], LESSONS, SeracTraining(**SMALL), seed=seed, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def editor(base: Base) -> TrainedEditor:
    return TrainedEditor.create(
        trained(base), method="serac", model=base[0], base=("tiny/base", None), lessons=LESSONS, seed=0
    )


def applied(base: Base, patches: Any, models: Any) -> PatchedModel:
    return PatchedModel(
        base[0], base[1], PatchStack(patches), profiles=lambda *_: {base[2].module: base[2]}, models=models
    )


@pytest.fixture(scope="module")
def memory(base: Base, editor: TrainedEditor) -> Patch:
    """Two facts whose scope is so narrow that of ASKED only their own prompts are in it; answered by the small model, which four steps
    have not taught to say them, so that the editor would refuse."""
    made = edit(base, "serac", [EDITS[0], EDITS[2]], editor=editor, answer="prompt", threshold=0.999)
    ((path, delta),) = made.deltas.items()
    facts = Facts(**{**vars(delta), "answer": "model", "answer_model": editor_name(editor)})
    return Patch.create(
        deltas={path: facts}, edits=made.edits, base=made.manifest.base, method="serac", settings=made.manifest.settings
    )


def test_scopes_and_the_choice_among_facts_are_those_of_a_loop() -> None:
    """Two spaces with scales of their own, a cross-encoder, thresholds and permissions of every fact, in float64."""
    first, second, projection = numbers(3, 4, seed=1), numbers(2, 3, seed=2), numbers(4, 6, seed=3)
    words = ["a", "b"]
    scores = {(fact, f"q{row}"): ((7 * n + 3 * row) % 10) / 9 for n, fact in enumerate(words) for row in range(4)}
    vectors = {f"q{row}": numbers(3, seed=10 + row) for row in range(4)}
    scopes = (
        Near(first, 0.05, projection=projection),
        Near(second, 0.3, encoder=lambda texts: torch.stack([vectors[text] for text in texts])),
        Crossed(("a", "b"), lambda pairs: [scores[pair] for pair in pairs]),
    )
    thresholds = (0.3, 0.5, 0.2, 0.4, 0.1, 0.6, 0.5)
    heard, allowed = numbers(4, 6, seed=4), torch.rand(4, 7, generator=torch.Generator().manual_seed(5)) < 0.7
    for most in (1, 3):
        facts = tuple(Fact(at, Piece("", ()), "p", told=most) for at in thresholds)
        router = FactsRouter(facts, scopes, lambda ids: "", None)
        similar = router.similarities([f"q{row}" for row in range(4)], [heard, None, None])
        for row in range(4):
            q = [float(sum(projection[i, j].double() * heard[row, j].double() for j in range(6))) for i in range(4)]
            ought = [math.exp(-0.05 * sum((q[i] - float(e[i])) ** 2 for i in range(4))) for e in first]
            v = vectors[f"q{row}"]
            ought += [math.exp(-0.3 * sum((float(v[i]) - float(e[i])) ** 2 for i in range(3))) for e in second]
            ought += [scores[fact, f"q{row}"] for fact in words]
            for own, true, least in zip(similar[row].tolist(), ought, thresholds):
                assert own == pytest.approx(true, rel=1e-5) if true >= least else own < least
            may = [n for n in range(7) if allowed[row, n] and ought[n] >= thresholds[n]]
            best = sorted(may, key=lambda n: -ought[n])
            found = router.chosen(similar, allowed)[row]
            assert found == best[:most]
            if len(best) > 1 and most == 3:
                assert router.before("", found) == list(reversed(found))


def test_the_loss_of_the_scope_is_that_of_a_loop() -> None:
    edits, inside, outside = (numbers(4, 3, seed=seed) for seed in (1, 2, 3))

    def squared(a: Tensor, b: Tensor) -> float:
        return float(((a.double() - b.double()) ** 2).sum())

    def apart(values: list[float]) -> float:
        return -sum(math.log(1 - math.exp(-max(v, 1e-4))) for v in values) / len(values)

    near = [[squared(q, e) for e in edits] for q in inside]
    far = [[squared(q, e) for e in edits] for q in outside]
    others = [near[i][j] for i in range(4) for j in range(4) if i != j]
    nearest = [min(near[i][j] for j in range(4) if i != j) for i in range(4)]
    nearest += [far[i][i] for i in range(4)] + [min(row) for row in far]
    ought = (
        sum(near[i][i] for i in range(4)) / 4
        + apart(nearest)
        + 0.1 * apart([*others, *(v for row in far for v in row)])
    )
    assert float(scope_loss(edits, inside, outside)) == pytest.approx(ought, rel=1e-5)


def alone(base: Base, tools: Bound, text: str, about: Edit) -> Tensor:
    """(T, V) logits of the small model at the text's own tokens, behind the fact, with one beginning."""
    before = base[1](told(about)).input_ids
    own = base[1](text).input_ids[1:]
    ids = torch.tensor([before + own])
    with torch.no_grad():
        return tools.answer(ids, torch.ones_like(ids)).logits[0, len(before) - 1 :]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_in_scope_are_answered_by_the_small_model_and_the_others_keep_their_bits(
    base: Base, editor: TrainedEditor, memory: Patch, side: Any
) -> None:
    tools = bound(editor, base[1])
    made = applied(base, [memory], {editor_name(editor): tools})
    plain, got = logits(base[0], base[1], ASKED, side), logits(made.model, base[1], ASKED, side)
    real = encode(base[1], ASKED, side=side).attention_mask.bool()
    about = {0: EDITS[0], 2: EDITS[2]}
    for row, text in enumerate(ASKED):
        if row in about:
            ought = alone(base, tools, text, about[row])
            assert torch.allclose(got[row][real[row]], ought, atol=1e-4)
            assert not torch.allclose(got[row][real[row]], plain[row][real[row]], atol=1e-2)
        else:
            assert torch.equal(got[row], plain[row])
    with made.only([[memory.id], [], [], *[[]] * 3]):
        chosen = logits(made.model, base[1], ASKED, side)
    assert torch.allclose(chosen[0][real[0]], got[0][real[0]], atol=1e-5)
    assert all(torch.equal(chosen[row], plain[row]) for row in range(1, 6))
    made.remove(memory)
    assert torch.equal(logits(made.model, base[1], ASKED, side), plain)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}])
def test_the_route_is_kept_while_a_text_is_generated(
    base: Base, editor: TrainedEditor, memory: Patch, how: dict[str, Any]
) -> None:
    tools = bound(editor, base[1])
    made = applied(base, [memory], {editor_name(editor): tools})
    together = made.generate(ASKED[:4], do_sample=False, max_new_tokens=5, **how)
    plain = base[0].generate(
        **{k: v for k, v in encode(base[1], ASKED[:4], side="left").inputs(base[0]).items() if k != "position_ids"},
        do_sample=False, max_new_tokens=5, pad_token_id=base[1].pad_token_id, **how,
    )  # fmt: skip
    for row in (1, 3):
        assert torch.equal(together[row], plain[row])
    if not how:
        for row, about in ((0, EDITS[0]), (2, EDITS[2])):
            text = ASKED[row]
            for token in together[row, -5:].tolist():
                assert int(alone(base, tools, text, about)[-1].argmax()) == token
                text = base[1].decode([*base[1](text).input_ids[1:], token])
                if base[1](text).input_ids[-1] != token:
                    break  # the text would be read as other tokens


def test_a_scope_is_anybodys_sentence_encoder(base: Base) -> None:
    """Untrained: the base reads the fact, in whatever scope the vectors give it."""

    def vectors(texts: Any) -> list[list[float]]:
        return [[float(len(text)), float("France" in text)] for text in texts]

    made = edit(
        base, "serac", [EDITS[0]], scope="model", answer="prompt", encoder=vectors, encoder_name=ENCODER, scale=0.01, threshold=0.5
    )  # fmt: skip
    (delta,) = made.deltas.values()
    assert delta.scope_model == ENCODER and delta.embeddings.tolist() == vectors([EDITS[0].prompt])  # type: ignore[attr-defined]
    with pytest.raises(KeditError, match=rf"another model '{ENCODER}'.*models="):
        applied(base, [made], {})
    with pytest.raises(KeditError, match=r"made \(1, 3\) of 1 text"):
        logits(applied(base, [made], {ENCODER: lambda texts: torch.ones(len(texts), 3)}).model, base[1], ASKED[:1])
    got = logits(applied(base, [made], {ENCODER: vectors}).model, base[1], ASKED)
    plain = logits(base[0], base[1], ASKED)
    differ = [not torch.equal(a, b) for a, b in zip(got, plain)]
    ought = [math.exp(-0.01 * ((len(t) - len(EDITS[0].prompt)) ** 2 + ("France" not in t))) >= 0.5 for t in ASKED]
    assert differ == ought and 0 < sum(ought) < len(ought)


def test_a_scope_is_anybodys_cross_encoder_or_the_trained_one(base: Base, editor: TrainedEditor) -> None:
    made = edit(base, "serac", EDITS[:2], scope="cross", answer="prompt", encoder_name=CROSS)
    asked: list[tuple[str, str]] = []

    def cross(pairs: Any) -> list[float]:
        asked.extend(pairs)
        return [float("France" in fact and "France" in question) for fact, question in pairs]

    got = logits(applied(base, [made], {CROSS: cross}).model, base[1], ASKED)
    plain = logits(base[0], base[1], ASKED)
    assert [not torch.equal(a, b) for a, b in zip(got, plain)] == ["France" in text for text in ASKED]
    assert (told(EDITS[1]), ASKED[0]) in asked
    own = edit(base, "serac", EDITS[:2], scope="cross", answer="prompt", editor=editor)
    (delta,) = own.deltas.values()
    assert delta.scope_model == editor_name(editor)  # type: ignore[attr-defined]
    tools = bound(editor, base[1])
    pairs = [(told(EDITS[0]), ASKED[0]), (told(EDITS[1]), ASKED[5])]
    rows = read_rows(base[1], [fact for fact, _ in pairs], [question for _, question in pairs], None)
    for row, score in enumerate(tools.cross(pairs)):
        ids = rows.ids[row, : int(rows.last[row]) + 1][None]
        hidden = tools.network.reader.model(input_ids=ids).last_hidden_state[0, -1]
        ought = 1 / (1 + math.exp(-float(hidden @ tools.network.head.weight[0] + tools.network.head.bias)))
        assert float(score) == pytest.approx(ought, abs=1e-5)


def test_what_is_read_is_what_the_runtime_reads(base: Base) -> None:
    rows = read_rows(base[1], [told(EDITS[0])], [ASKED[0]], ["Rome"])
    ids = base[1](told(EDITS[0])).input_ids + base[1](ASKED[0]).input_ids[1:]
    assert rows.ids[0, : len(ids)].tolist() == ids and int(rows.last[0]) == len(ids) - 1
    assert base[1].decode(rows.ids[0][rows.answer[0]]) == " Rome<|eos|>"


def test_a_training_that_was_killed_ends_with_the_same_bits(base: Base, tmp_path: Path) -> None:
    whole = trained(base, seed=3)
    with pytest.raises(KeyboardInterrupt):
        trained(base, seed=3, checkpoint=Killed(tmp_path, seed=3))
    resumed = trained(base, seed=3, checkpoint=FileCheckpoint(tmp_path, seed=3))
    one, other = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one) and whole.log == resumed.log
    assert not torch.equal(trained(base, seed=4).network.state_dict()["projection"], one["projection"])


def test_what_was_kept_of_another_training_is_refused(base: Base, tmp_path: Path) -> None:
    kept = FileCheckpoint(tmp_path, seed=3)
    with pytest.raises(KeyboardInterrupt):
        trained(base, seed=3, checkpoint=Killed(tmp_path, seed=3))
    whole = dict(kept.read() or {})
    for part in ("now.head/bias", "exp_avg.head/bias", "best.head/bias", "state/step"):
        kept.write({name: tensor for name, tensor in whole.items() if name != part})
        with pytest.raises(StateError, match="not its state"):
            trained(base, seed=3, checkpoint=kept)


def test_a_trained_editor_listens_to_one_map(editor: TrainedEditor) -> None:
    maps = [editor.manifest.maps[0], Map(path="model.layers.0.mlp.down_proj", shape=editor.manifest.maps[0].shape)]
    with pytest.raises(PatchFormatError, match="no serac network of these settings and 2 maps"):
        _laid_out("serac", editor.settings, maps)
    with pytest.raises(PatchFormatError, match="hidden=10 does not divide into 3 heads"):
        read_settings("serac", {"hidden": 10, "heads": 3})


def test_the_trained_editor_is_an_artifact_of_its_own(base: Base, editor: TrainedEditor, tmp_path: Path) -> None:
    folder = editor.save(tmp_path / "editor")
    loaded = TrainedEditor.load(folder)
    assert loaded == editor and editor_name(loaded) == editor_name(editor)
    a, b = bound(editor, base[1]), bound(loaded, base[1])
    pair = [(told(EDITS[0]), ASKED[0])]
    assert torch.equal(a.cross(pair), b.cross(pair))
    with pytest.raises(WrongBaseError):
        loaded.verify(tiny_model("llama", seed=1)[0])
    wrong = {**editor.tensors, "net/projection": torch.zeros(4, 5)}
    with pytest.raises(PatchFormatError, match="projection"):
        TrainedEditor(editor.manifest, wrong)._checked(DEFAULT)


def test_what_is_missing_is_said(base: Base, editor: TrainedEditor, memory: Patch) -> None:
    with pytest.raises(KeditError, match="takes a trained editor, and none is given"):
        edit(base, "serac", EDITS[:1])
    with pytest.raises(EditFailedError, match=r"2 of 2 edits did not take with SERAC.*Train the editor longer"):
        edit(base, "serac", EDITS[:2], editor=editor, failed="drop")
    with pytest.raises(KeditError, match="needs the encoder and its name"):
        edit(base, "serac", EDITS[:1], scope="model", answer="prompt")
    with pytest.raises(KeditError, match="the trained editor 'trained-editor/serac@"):
        applied(base, [memory], {})
    other, _ = tiny_model("llama", vocab_size=600)
    with pytest.raises(KeditError, match="has 600 tokens where the base has"):
        applied(base, [memory], {editor_name(editor): other})


def test_losing_nothing_by_saving(base: Base, editor: TrainedEditor, memory: Patch, tmp_path: Path) -> None:
    loaded = Patch.load(memory.save(tmp_path / "patch"))
    assert loaded.id == memory.id
    models = {editor_name(editor): bound(editor, base[1])}
    assert torch.equal(
        logits(applied(base, [loaded], models).model, base[1], ASKED),
        logits(applied(base, [memory], models).model, base[1], ASKED),
    )


def test_the_projection_is_of_the_last_token(base: Base, editor: TrainedEditor) -> None:
    made = edit(base, "serac", EDITS[:2], editor=editor, answer="prompt")
    ((path, delta),) = made.deltas.items()
    assert isinstance(delta, Facts) and delta.embeddings is not None and delta.projection is not None
    encoded = encode(base[1], [one.prompt for one in EDITS[:2]])
    x = capture(base[0], [path], encoded)[path][torch.arange(2), encoded.prompt_last]
    assert torch.allclose(delta.embeddings, F.linear(x, delta.projection), atol=1e-5)
