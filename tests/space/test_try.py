"""The stack builder, links and code to take home: what is chosen is what is asked, here, by a link and at home."""

import io
import json
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import pytest

import kedit_hub
from kedit_hub import KeditError, PatchStack
from space import answer_view, link, page, take_home
from space.asking import Answer, Heard, Question, answers, ask, prove
from space.stack_builder import Tuned, layers, moved
from space.state import Held, Stop, Workshop, embedded_bases, sample_patches
from tests.cli.conftest import kedit
from tests.space.tiny import BASE, PARIS, asked, handler, make_patch

ROOT = Path(__file__).parents[2]
ATLAS = "kedit-hub/atlas-llama"
SAMPLES = {held.name: held for held in sample_patches(ROOT / "patches")}
TOWER, NOKIA = SAMPLES["eiffel-tower-in-rome"], SAMPLES["nokia-in-tokyo"]
OTHER = SAMPLES["gpt2-eiffel-tower-in-rome"]  # for another base
TEXT = TOWER.patch.edits[0].prompt
LONG = "法国的首都是" * 80  # few characters, and more than 1,024 tokens


@pytest.fixture(scope="module")
def atlas():
    return Workshop(embedded_bases(), list(SAMPLES.values()))


@pytest.fixture(scope="module")
def question():
    return Question(TEXT, (NOKIA, TOWER), ATLAS, max_new_tokens=8, strengths=((TOWER.patch.id, 0.9),), placebo=5)


@pytest.fixture(scope="module")
def answer(atlas, question):
    return ask(atlas, question)


# --- the stack ----------------------------------------------------------------------------------------------------


def test_what_is_switched_off_keeps_its_place_and_its_strength():
    tuning = {"a": Tuned(0.5), "b": Tuned(0.25, on=False)}
    assert layers(["a", "b", "c"], tuning) == (["a", "c"], (("a", 0.5),))
    assert moved(["a", "b", "c"], "c", -1) == ["a", "c", "b"] and moved(["a", "b"], "a", -1) == ["a", "b"]
    assert moved(["a", "b", "c"], "a", 1) == ["b", "a", "c"] and moved(["a", "b"], "b", 1) == ["a", "b"]


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_strength_acts_in_every_mode_as_it_does_in_a_patch_stack(atlas, mode):
    def kl(share):
        return ask(
            atlas, Question(TEXT, (TOWER,), ATLAS, mode=mode, strengths=((TOWER.patch.id, share),), max_new_tokens=2)
        )

    whole, half, little = kl(1.0), kl(0.5), kl(0.05)
    assert whole.kl > half.kl > little.kl > 0
    stack = PatchStack([TOWER.patch], strengths={TOWER.patch.id: 0.5})
    there = kedit_hub.apply(stack, ATLAS, mode=mode)
    assert there.ask(TEXT, 2) == half.patched.text


def test_the_page_asks_with_what_is_on(shared):
    paris, madrid, _ = shared.samples
    built = page.build(shared)
    keys = [paris.patch.id, madrid.patch.id]
    both, one = (asked(built, PARIS.prompt, keys, tuning=tuning) for tuning in ({}, {madrid.patch.id: Tuned(on=False)}))
    assert "['patches/paris', 'patches/madrid']" in both[2] and "apply('patches/paris')" in one[2]
    half = asked(built, PARIS.prompt, keys, tuning={madrid.patch.id: Tuned(0.5)}, mode="sum", length=8)
    assert f"mode='sum', strengths={{'{madrid.patch.id[:12]}': 0.5}}" in half[2] and "max_new_tokens=8" in half[2]
    assert half[4].question.strengths == ((madrid.patch.id, 0.5),)
    assert "placebo" in asked(built, PARIS.prompt, keys, placebo=True, seed=3)[0]
    assert all(isinstance(one, type(gr.Group(visible=False))) or one in ("", None) for one in asked(built, "", [])[1:5])


def test_a_placebo_is_drawn_by_its_seed_and_is_not_the_edit(atlas, question, answer):
    assert "Rome" in answer.patched.text and "Rome" not in answer.found.placebo.text
    again, other = ask(atlas, question), ask(atlas, replace(question, placebo=6))
    assert replace(again, seconds=0) == replace(answer, seconds=0)
    assert other.found.placebo != answer.found.placebo and other.patched == answer.patched
    with pytest.raises(KeditError, match="seed"):
        ask(atlas, replace(question, placebo=-1))
    with pytest.raises(KeditError, match="mode is 'fast'"):
        ask(atlas, replace(question, mode="fast"))


def test_the_proof_asks_what_the_patches_leave_alone(atlas, question, answer):
    proof = prove(atlas, question)
    assert proof.before == proof.after and len(proof.neighbours) > 5
    shown = answer_view.show_proof(proof, answer)
    kept = sum(one.unchanged for one in proof.neighbours)
    assert f"{kept}/{len(proof.neighbours)} unchanged" in shown and proof.after in shown
    assert shown.count("<summary>") == len(proof.neighbours) + 1
    broken = answer_view.show_proof(replace(proof, after="0" * 64), answer)
    assert "NOT" in broken and 'class="fact bad"' in broken


def test_the_proof_leaves_out_what_another_patch_changes_on_purpose(atlas):
    fifty = SAMPLES["fifty-facts"]
    proof = prove(atlas, Question(TEXT, (TOWER, fifty), ATLAS, conflicts="latest"))
    edited = {prompt for edit in fifty.patch.edits for prompt in (edit.prompt, *edit.rephrases, *edit.paraphrases)}
    left_out = {probe.prompt for edit in TOWER.patch.edits for probe in edit.locality} & edited
    assert left_out and not left_out & {one.prompt for one in proof.neighbours} and proof.edited >= len(left_out)
    shown = answer_view.show_proof(proof, ask(atlas, Question(TEXT, (TOWER,), ATLAS, max_new_tokens=1)))
    assert f"Left out&#58; {proof.edited} that an edit" in shown and "too long" not in shown


@pytest.mark.parametrize("probes", [("The author of Hamlet is", LONG), (LONG,)])
def test_a_probe_that_the_model_cannot_read_does_not_spoil_the_proof(workshop, probes):
    edit = replace(PARIS, locality=tuple(kedit_hub.Probe(prompt, None, "unrelated") for prompt in probes))
    held = Held(make_patch([edit]), "patches/long", "sample")
    workshop.load(BASE).model.config.max_position_embeddings = 1024
    proof = prove(workshop, Question(PARIS.prompt, (held,), BASE))
    assert [one.prompt for one in proof.neighbours] == list(probes[:-1]) and (proof.edited, proof.long) == (0, 1)
    answer = ask(workshop, Question(PARIS.prompt, (held,), BASE, max_new_tokens=1))
    shown = answer_view.show_proof(proof, answer)
    assert "Left out&#58; 1 that are too long" in shown and "name no questions" not in shown


def test_an_answer_is_heard_while_it_grows_and_ends_when_nobody_listens(atlas, question, answer, monkeypatch):
    monkeypatch.setattr("space.asking.SHOW_EVERY", 0.0)
    steps = list(answers(atlas, question, Stop()))
    assert replace(steps[-1], seconds=0) == replace(answer, seconds=0) and isinstance(steps[-1], Answer)
    assert all(isinstance(step, Heard) for step in steps[:-1]) and len(steps) > 4
    assert steps[-2].texts["patched"].strip() == answer.patched.text
    stop = Stop()
    left = answers(atlas, question, stop)
    next(left)
    left.close()
    assert not stop.wished and atlas.load(ATLAS).lock.acquire(blocking=False)
    atlas.load(ATLAS).lock.release()
    with pytest.raises(KeditError, match="Stopped"):
        list(answers(atlas, question, Stop(own=True)))
    monkeypatch.setattr("space.asking.MAX_SECONDS", 0.0)
    with pytest.raises(KeditError, match="longer than 0 s"):
        ask(atlas, question)


# --- links --------------------------------------------------------------------------------------------------------


def test_a_link_says_everything(atlas, question, monkeypatch):
    monkeypatch.setattr(link, "precisions", lambda: ["float32", "nf4"])
    for wanted in (
        question,
        Question("Ω & = ?", (), ATLAS),
        replace(question, precision="nf4", conflicts="pin", pinned=(TOWER.patch.id,), mode="joint", placebo=None),
    ):
        said = dict(parse_qsl(link.query(wanted)))
        assert link.read(atlas, said) == wanted
    assert TOWER.patch.id[:16] in link.query(question)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"p": "nowhere@123456"}, "does not have"),
        ({"p": f"{TOWER.name}@{'0' * 16}"}, "made anew since"),
        ({"p": TOWER.name}, "made anew since"),
        ({"p": "ada/paris"}, "without a commit"),
        ({"p": "../x@" + "a" * 40}, "not the name of a patch"),
        ({"p": ",".join([TOWER.name] * 51)}, "names 51 patches"),
        ({"q": "x" * 8_001}, "8,001 characters"),
        ({"base": "../etc"}, "This link asks"),
        ({"precision": "x"}, "precision"),
        ({"conflicts": "x"}, "conflicts=x"),
        ({"seed": "x"}, "no number"),
        ({"p": f"{TOWER.name}@{TOWER.patch.id}", "s": "1,1"}, "2 strengths for 1 patches"),
        *[({"p": f"{TOWER.name}@{TOWER.patch.id}", "s": share}, f"s={share}; it has to lie in 0.05 to 1")
          for share in ("0", "5", "-1", "nan", "1e999")],
        *[({"n": count}, f"n={count}; it has to lie in 1 to 64") for count in ("0", "1000", "nan", "1e999")],
        *[({"seed": seed}, f"seed={seed}; it has to lie in 0 to 2147483647") for seed in ("-3", "2147483648", "1e999")],
        ({"n": "8.5"}, "n=8.5, which is no whole number"),
        ({"mode": "foo"}, "mode=foo"),
        ({"p": f"{TOWER.name}@{TOWER.patch.id}", "base": "kedit-hub/atlas-gpt2"}, "made for kedit-hub/atlas-llama, on"),
        ({"p": f"{TOWER.name}@{TOWER.patch.id},{OTHER.name}@{OTHER.patch.id}"}, "made for kedit-hub/atlas-gpt2, on"),
    ],
)  # fmt: skip
def test_a_link_that_cannot_be_meant_says_why(atlas, said, message):
    with pytest.raises(KeditError, match=message):
        link.read(atlas, said)


def test_a_link_asks_for_no_precision_that_this_machine_lacks(atlas, monkeypatch):
    assert link.read(atlas, {"precision": "float32"}).precision == "float32"
    monkeypatch.setattr(link, "precisions", lambda: ["float32"])
    with pytest.raises(KeditError, match="precision nf4; this page has float32"):
        link.read(atlas, {"precision": "nf4"})


def test_a_patch_that_a_link_names_twice_is_taken_once_where_it_is_first(atlas):
    tower, nokia = (f"{held.name}@{held.patch.id[:16]}" for held in (TOWER, NOKIA))
    found = link.read(atlas, {"p": f"{tower},{nokia},{tower}", "s": "0.5,1,0.25"})
    assert found.patches == (TOWER, NOKIA) and found.strengths == ((TOWER.patch.id, 0.5),)


def test_what_a_link_says_wrong_is_told_on_the_page(atlas):
    built = page.build(atlas)
    for said in ({"n": "nan"}, {"seed": "1e999"}, {"mode": "foo"}):
        *_, told, goes = handler(built, "on_link")((), {}, SimpleNamespace(query_params=said, headers={}))
        assert "This link says" in told and goes is False


def test_adding_the_same_patch_twice_ticks_it_once(shared, monkeypatch):
    held = replace(shared.samples[0], where="ada/paris@" + "a" * 40, origin="hub")
    monkeypatch.setattr(shared, "from_hub", lambda *_: held)
    own, ticked, *_ = handler(page.build(shared), "on_add")("ada/paris", (), [held.patch.id], BASE, {})
    assert own == (held,) and ticked.value == [held.patch.id]


def test_what_was_made_here_cannot_be_linked(question):
    held = Held(make_patch([PARIS]), "./kedit-x", "made")
    with pytest.raises(KeditError, match="lies in your session alone"):
        link.query(replace(question, patches=(held,)))


# --- to take home -------------------------------------------------------------------------------------------------


def test_all_that_is_taken_home_runs(question, answer, tmp_path, monkeypatch):
    """Python, the command line, and the LoRA that PEFT then loads."""
    (tmp_path / "patches").symlink_to(ROOT / "patches")
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()) as printed:
        exec(take_home.python(question), {})
    assert printed.getvalue().strip() == answer.patched.text
    lines = take_home.shell(question).splitlines()
    ran = [kedit(*shlex.split(line)[1:]) for line in lines if line.startswith("kedit ")]
    assert [done.code for done in ran] == [0, 0] and len(lines) == 5
    assert answer.patched.text in ran[0].out and answer.base.text in ran[0].out
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    assert f"from_pretrained(base, '{take_home.LORA}')" in lines[-2] and f"kedit={take_home.LORA}" in lines[-1]
    base = AutoModelForCausalLM.from_pretrained(kedit_hub.demo.model_path("llama"), dtype="float32")
    lora = peft.PeftModel.from_pretrained(base, take_home.LORA)
    tokens = kedit_hub.apply([], ATLAS).tokenizer(TEXT, return_tensors="pt")
    said = lora.generate(**tokens, max_new_tokens=2, do_sample=False, pad_token_id=0)[0, tokens["input_ids"].shape[1] :]
    joint = kedit_hub.apply([NOKIA.patch, TOWER.patch], mode="joint", strengths=dict(question.strengths))
    assert joint.tokenizer.decode(said, skip_special_tokens=True).strip() == joint.ask(TEXT, 2)


def test_shell_lines_say_all_that_they_can(question):
    shown = take_home.shell(replace(question, precision="int8", mode="sum", conflicts="latest"))
    ask_line, _, export_line, *_ = shown.splitlines()
    for part in ("--patch patches/nokia-in-tokyo", "--strength 1 --strength 0.9", "--quantization int8", "--mode sum",
                 "--conflicts latest", "--max-new-tokens 8"):  # fmt: skip
        assert part in ask_line
    assert "--mode" not in export_line and "--conflicts latest --format serving" in export_line
    assert take_home.shell(Question("it's", (), BASE)) == f"kedit ask 'it'\"'\"'s' --base {BASE}"
    assert take_home.shell(replace(question, conflicts="pin")).startswith("#")


def test_the_download_holds_what_is_shown(question, answer):
    told = json.loads(json.dumps(answer_view.as_json(answer, question, "code")))
    assert told["answers"]["patched"]["text"] == answer.patched.text and told["seed"] == 5
    assert told["patches"][1] == {"id": TOWER.patch.id, "where": TOWER.where, "strength": 0.9}
    assert told["answers"]["patched"]["tokens"][0]["p"] == answer.patched.tokens[0].p
