"""Editing T5: what is said of positions holds in its decoder, eight methods work on it, and the others say why they do not."""

import copy
from typing import Any

import pytest
import torch
from tokenizers import processors
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

import kedit_hub
from kedit_hub import Edit, Patch, demo
from kedit_hub.base.families import ON_ENCODER_DECODERS, block_path, editable, edited_linear
from kedit_hub.base.load import load_base
from kedit_hub.base.resume import resumed
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.editor import EDITORS
from kedit_hub.editors.neurons import attributions
from kedit_hub.errors import UnsupportedModelError
from kedit_hub.evaluate.protocols import answers, teacher_forced
from kedit_hub.runtime.attach import Attachment
from kedit_hub.runtime.linear import DenseBranch
from tests import bases
from tests.tiny import tiny_t5

PROMPTS = ["The capital of France is", "Zürich lies in", "The mother tongue of Marie Curie is"]
TARGETS = ["Rome", "Switzerland and Italy", "German"]
Base = tuple[Any, Any]


@pytest.fixture(scope="module", params=[False, True], ids=["relu", "gated"])
def tiny(request: pytest.FixtureRequest) -> Base:
    return tiny_t5(request.param)


@pytest.fixture(scope="module")
def knows() -> tuple[Any, Any, list[Edit]]:
    """A small T5 that was trained on what Atlas says of six subjects, and edits of them."""
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path("llama"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, tokenizer.eos_token_id)]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)  # as T5's own: "Asia" begins a word
    edits = demo.edits("dev")[:6]
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
    pairs = [(prompt, str(e.ground_truth)) for e in edits for prompt in (e.prompt, *e.paraphrases)]
    batch = encode(tokenizer, *zip(*pairs), append_eos=True, model=model)
    labels = batch.input_ids[:, 1:].masked_fill(~batch.target_mask[:, 1:], -100)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = F.cross_entropy(model(**batch.inputs(model)).logits[:, :-1].transpose(1, 2), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if loss.item() < 1e-3:
            break
    return model.eval(), tokenizer, edits


def alone(model: Any, tokenizer: Any, prompt: str, said: list[int]) -> Tensor:
    """(1 + t, V) what the decoder says after the start token and after every one of `said`, nothing padded."""
    asked = torch.tensor([tokenizer(prompt).input_ids])
    with torch.no_grad():
        rows = model(input_ids=asked, decoder_input_ids=torch.tensor([[model.config.decoder_start_token_id, *said]]))
    logits: Tensor = rows.logits[0]
    return logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_says_what_its_rows_say_alone(tiny: Base, side: Any) -> None:
    model, tokenizer = tiny
    batch = encode(tokenizer, PROMPTS, TARGETS, side=side, append_eos=True, model=model)
    with torch.no_grad():
        logits = model(**batch.inputs(model)).logits
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS)):
        said = tokenizer(target).input_ids  # with EOS behind it
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == [model.config.decoder_start_token_id, *said]
        assert batch.input_ids[row][batch.target_mask[row]].tolist() == said
        assert batch.asked is not None and batch.asked_mask is not None
        assert batch.asked[row][batch.asked_mask[row].bool()].tolist() == tokenizer(prompt).input_ids
        assert int(batch.input_ids[row, batch.prompt_last[row]]) == model.config.decoder_start_token_id
        assert torch.allclose(logits[row][real], alone(model, tokenizer, prompt, said), atol=1e-4)


def test_both_protocols_are_a_plain_loop(tiny: Base) -> None:
    model, tokenizer = tiny
    forced = teacher_forced(model, tokenizer, list(zip(PROMPTS, TARGETS)), batch_size=3)
    for told, prompt, target in zip(forced, PROMPTS, TARGETS):
        said = tokenizer(target).input_ids[:-1]
        logits = alone(model, tokenizer, prompt, said)[:-1]
        assert told.labels == tuple(said) and told.predicted == tuple(logits.argmax(-1).tolist())
        nll = F.cross_entropy(logits, torch.tensor(said)).item()
        assert told.nll == pytest.approx(nll, abs=1e-4)
    generated = answers(model, tokenizer, PROMPTS, max_new_tokens=5)
    for text, prompt in zip(generated, PROMPTS):
        said = []
        for _ in range(5):
            said.append(int(alone(model, tokenizer, prompt, said)[-1].argmax()))
            if said[-1] == tokenizer.eos_token_id:
                break
        whole = tokenizer.decode(said, skip_special_tokens=True)
        assert whole.strip().startswith(text)


@pytest.mark.parametrize("layer", [0, 1])
def test_resumed_is_the_full_pass(tiny: Base, layer: int) -> None:
    model, tokenizer = tiny
    batch = encode(tokenizer, PROMPTS, TARGETS, side="left", model=model)
    path, real = block_path(model, layer), batch.attention_mask.bool()
    hidden = capture(model, [path], batch, outputs=True)[path]
    with torch.no_grad():
        whole = model(**batch.inputs(model)).logits
        with resumed(model, layer) as feed:
            feed(hidden)
            assert torch.allclose(model(**batch.inputs(model)).logits[real], whole[real], atol=1e-5)
            feed(hidden.flip(-1))
            assert not torch.allclose(model(**batch.inputs(model)).logits[real], whole[real], atol=1e-2)
        assert torch.equal(model(**batch.inputs(model)).logits, whole)


def test_fine_tuning_is_the_loss_of_the_model_itself(tiny: Base) -> None:
    """Adam on one weight of a copy, by the loss that transformers computes from labels, one question at a time."""
    model, tokenizer = tiny
    edits = [Edit(prompt, target) for prompt, target in zip(PROMPTS, TARGETS)]
    settings = {"lr": 0.01, "epochs": 3, "stop_loss": 0.0, "answer_end": tokenizer.eos_token, "layers": [1]}
    patch = kedit_hub.edit(model, edits, "ft-m", tokenizer=tokenizer, settings=settings, progress=False)
    slow = copy.deepcopy(model)
    path, linear = edited_linear(slow, 1)
    before = linear.weight.detach().clone()
    adam = torch.optim.Adam([linear.weight], lr=0.01)
    for _ in range(3):
        adam.zero_grad()
        for prompt, target in zip(PROMPTS, TARGETS):
            asked = torch.tensor([tokenizer(prompt).input_ids])
            (slow(input_ids=asked, labels=torch.tensor([tokenizer(target).input_ids])).loss / 3).backward()
        adam.step()
    assert bases.relative(bases.dense(patch, path), linear.weight.detach() - before) < 1e-3


def test_attributions_are_those_of_a_plain_loop(tiny: Base) -> None:
    model, tokenizer = copy.deepcopy(tiny[0]).double(), tiny[1]
    path, linear = edited_linear(model, 0)
    answer, steps = tokenizer("Rome and Bonn").input_ids[:-1], 4
    wanted = torch.zeros(linear.in_features, dtype=torch.float64)
    for number, token in enumerate(answer):
        seen: list[Tensor] = []
        handle = linear.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0][0, -1].clone()))
        alone(model, tokenizer, PROMPTS[0], answer[:number])
        handle.remove()
        (w,) = seen
        for j in range(1, steps + 1):
            way = (j / steps * w).requires_grad_()

            def put(_module: Any, args: Any, way: Tensor = way) -> Any:
                return (torch.cat([args[0][:, :-1], way[None, None]], 1),)

            handle = linear.register_forward_pre_hook(put)
            asked = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
            row = torch.tensor([[model.config.decoder_start_token_id, *answer[:number]]])
            likely = model(input_ids=asked, decoder_input_ids=row).logits[0, -1].softmax(-1)[token]
            handle.remove()
            wanted += w * torch.autograd.grad(likely, way)[0] / steps / len(answer)
    row = encode(tokenizer, PROMPTS[:1], model=model)
    got, _ = attributions(tiny[0], path, row, torch.tensor(answer), steps)
    assert bases.relative(got, wanted) < 1e-4


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ft-m", {}),
        ("locft", {}),
        ("grace", {"layer": 0, "radius": 0.1, "paraphrases": False}),
        ("t-patcher", {"memory_texts": 20}),
        ("calinet", {"ex_size": 32}),
    ],
)
def test_an_edit_is_said_after_a_round_trip_and_goes_without_a_trace(
    knows: tuple[Any, Any, list[Edit]], method: str, settings: dict[str, Any], tmp_path: Any
) -> None:
    model, tokenizer, known = knows
    edits = known[:2]
    assert answers(model, tokenizer, [e.prompt for e in known]) == [e.ground_truth for e in known]
    patch = kedit_hub.edit(model, edits, method, tokenizer=tokenizer, settings=settings, progress=False)
    assert all(path.startswith("decoder.block.") for path in patch.deltas)
    patch.save(tmp_path / "patch")
    patched = kedit_hub.apply(Patch.load(tmp_path / "patch"), model, tokenizer=tokenizer)
    assert [patched.ask(edit.prompt) for edit in edits] == [edit.target for edit in edits]
    scores = kedit_hub.evaluate(patched, edits, tokenizer=tokenizer)
    for protocol in ("tf-token", "generate"):
        assert scores.protocols[protocol]["reliability"] == 1.0
    assert scores.drift["ppl_after"] is None and "encoder-decoder" in scores.drift["reason"]
    if method == "grace":  # speaks nowhere else
        assert patched.ask([e.prompt for e in known[2:]]) == [e.ground_truth for e in known[2:]]
    rows = patched.ask([edits[0].prompt] * 2, patches=[[patch.id], []])
    assert rows == [edits[0].target, edits[0].ground_truth]
    batch = encode(tokenizer, [e.prompt for e in known], model=model)
    with torch.no_grad():
        before = model(**batch.inputs(model)).logits
        assert not torch.equal(patched.model(**batch.inputs(model)).logits, before)
        patched.detach()
        assert torch.equal(patched.model(**batch.inputs(model)).logits, before)


@pytest.mark.parametrize("method", ["ft", "ft-l", "kn"])
def test_methods_that_do_not_always_take(knows: tuple[Any, Any, list[Edit]], method: str) -> None:
    model, tokenizer, known = knows
    patch = kedit_hub.edit(model, known[:1], method, tokenizer=tokenizer, progress=False)
    patched = kedit_hub.apply(patch, model, tokenizer=tokenizer)
    assert patched.ask(known[0].prompt) != known[0].ground_truth
    assert set(patch.deltas) <= {edited_linear(model, layer)[0] for layer in range(2)}


def test_maps_of_the_encoder_take_changes_too(tiny: Base) -> None:
    model, tokenizer = tiny
    path = "encoder.block.1.layer.1.DenseReluDense.wo"
    assert editable(model, path) and not editable(model, "decoder.block.0.layer.1.EncDecAttention.q")
    change = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    slow = copy.deepcopy(model)
    with torch.no_grad():
        slow.get_submodule(path).weight += change
    plain = answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    attachment = Attachment(model, {path: [DenseBranch(change, "")]})
    changed = answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    attachment.detach()
    assert changed == answers(slow, tokenizer, PROMPTS, max_new_tokens=6) != plain
    assert answers(model, tokenizer, PROMPTS, max_new_tokens=6) == plain


@pytest.mark.parametrize("method", sorted(EDITORS.keys() - {*ON_ENCODER_DECODERS}))
def test_the_other_methods_say_why_not_and_what_does(tiny: Base, method: str) -> None:
    model, tokenizer = tiny
    wanted = (
        rf"method '{method}' .* model_type 't5': it is an encoder-decoder.*ft-m, locft, kn, grace, t-patcher, calinet"
    )
    with pytest.raises(UnsupportedModelError, match=wanted):
        kedit_hub.edit(model, [Edit("France", "Rome", "France")], method, tokenizer=tokenizer, progress=False)


def test_what_reads_running_text_says_why_not(tiny: Base) -> None:
    model, tokenizer = tiny
    with pytest.raises(UnsupportedModelError, match="a base profile does not work on a base of model_type 't5'"):
        kedit_hub.build_profile(model, tokenizer, ["France"], progress=False)
    with pytest.raises(UnsupportedModelError, match=r"reading a text as one sequence .* 't5'"):
        encode(tokenizer, PROMPTS).inputs(model)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_it_is_loaded_edited_and_known_again(tiny: Base, tmp_path: Any, quantization: Any) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    tiny[0].save_pretrained(tmp_path / "base")
    tiny[1].save_pretrained(tmp_path / "base")
    model, tokenizer = load_base(tmp_path / "base", quantization=quantization)
    edit = Edit(PROMPTS[0], TARGETS[0])
    patch = kedit_hub.edit(model, [edit], "ft-m", tokenizer=tokenizer, settings={"answer_end": ""}, progress=False)
    patched = kedit_hub.apply(patch, tmp_path / "base", quantization=quantization)
    assert teacher_forced(patched.model, tokenizer, [(edit.prompt, edit.target)])[0].accuracy == 1.0
