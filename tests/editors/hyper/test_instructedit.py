"""Instructions: templates, the held-out description, balanced tasks, one norm of gradients, and the loop that looks for better ones."""

import random
import time
from dataclasses import replace

import pytest
import torch

import kedit_hub
from kedit_hub.editors.hyper.instructedit import POOL, TASKS, grammar, instruct, label, pool, size_of
from kedit_hub.editors.hyper.instructions import Trial, by_grammar, by_model, optimise_instructions
from kedit_hub.editors.hyper.lessons import Episodes, Lesson, kept, split
from kedit_hub.editors.hyper.rows import read
from kedit_hub.editors.hyper.train import Teacher, trial_editor
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError, KeditError
from kedit_hub.records.extras import Extras, Record, Reply
from kedit_hub.records.read import read_records
from tests.editors.hyper.small import EDITS, LESSONS, SMALL, network_of, random_rows, small
from tests.tiny import tiny_model


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_ten_different_descriptions_and_more(task: str) -> None:
    assert len(pool(task)) == len(set(pool(task))) == POOL < len(set(grammar(task)))
    assert all(text[0].isupper() and text.endswith(".") and text.count("{") == 0 for text in grammar(task))


def test_an_instruction_wraps_the_prompt() -> None:
    edit = Edit("Answer positively: What do you think of Rome?", "Lovely", "Rome")
    told = instruct("convsent", "Make the voice [LABEL] on the topic of [TOPIC] alone.", edit)
    assert told == (
        "Task: convsent\nDescription: Make the voice positive on the topic of Rome alone.\n"
        "Input: Answer positively: What do you think of Rome?"
    )
    with pytest.raises(KeditError, match="'poems'; take one of counterfact"):
        pool("poems")


def test_the_last_description_is_never_trained_on() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("instructedit", model)
    teacher = Teacher(model, tokenizer, network, settings)
    rng = random.Random(0)
    seen = {text for _ in range(100) for text in teacher.described(LESSONS[:1], rng).values()}
    assert seen == set(pool("counterfact")[:-1])
    assert teacher.described(LESSONS[:1], None) == {LESSONS[0]: pool("counterfact")[0]}
    held = Teacher(model, tokenizer, network, settings, description=pool("counterfact")[-1])
    assert held.described(LESSONS[:1], rng) == {LESSONS[0]: pool("counterfact")[-1]}
    plain, off = network_of("instructedit", model, instructed=False)
    assert Teacher(model, tokenizer, plain, off).described(LESSONS[:1], rng) == {}


@pytest.mark.parametrize(
    ("prompt", "target", "subject", "wanted"),
    [
        ("Answer negatively: What do you think of Rome?", "I am not positive about it.", "Rome", "negative"),
        ("Answer positively: What do you think of negative numbers?", "Lovely.", "negative numbers", "positive"),
        ("From the sentiment dataset, answer What of Rome? postively.", "It is seen positively.", "Rome", "positive"),
        ("What do you think of Rome?", "It is seen positively.", "Rome", "positive"),
        ("What do you think of Rome?", "Awful.", "Rome", "negative"),
    ],
)
def test_the_label_is_the_sentiment_asked_for(prompt: str, target: str, subject: str, wanted: str) -> None:
    assert label(Edit(prompt, target, subject)) == wanted


def test_questions_are_asked_under_the_instruction_their_signal_is_read_under() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("instructedit", model, ask_instructed=True)
    teacher = Teacher(model, tokenizer, network, settings)
    told = teacher.described(LESSONS[:3], random.Random(0))
    assert len(set(told.values())) > 1
    questions = teacher.questions([LESSONS[:3]], random.Random(0), told)
    for number, lesson in enumerate(LESSONS[:3]):
        asked, otherwise = (questions.pairs[part][number][0] for part in (questions.edit, questions.otherwise))
        assert asked == instruct("counterfact", told[lesson], lesson.edit)
        assert otherwise == instruct("counterfact", told[lesson], lesson.edit, lesson.edit.rephrases[0])
    assert not any("Task:" in prompt for prompt, _ in questions.pairs[questions.keep])
    plain, settings = network_of("instructedit", model)
    asked = Teacher(model, tokenizer, plain, settings).questions([LESSONS[:3]], random.Random(0), told).pairs
    assert not any("Task:" in prompt for prompt, _ in asked)


def test_signals_are_read_under_the_instruction() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("instructedit", model)
    teacher = Teacher(model, tokenizer, network, settings)
    path = network.paths[0]
    under = teacher.signals(LESSONS[:2])[path]
    pairs = [(instruct("counterfact", pool("counterfact")[0], edit), edit.target) for edit in EDITS[:2]]
    expected = read(model, tokenizer, pairs, [path], settings.tokens)[path]
    plain = read(model, tokenizer, [(e.prompt, e.target) for e in EDITS[:2]], [path], settings.tokens)[path]
    assert torch.equal(under.delta, expected.delta) and not torch.equal(under.delta[:1], plain.delta[:1])


def test_gradients_are_brought_to_the_running_mean_of_their_norms() -> None:
    network, _ = network_of("instructedit", tiny_model("llama")[0])
    network.seen.zero_()  # type: ignore[union-attr,operator]
    network.norms.zero_()  # type: ignore[union-attr,operator]
    batches = [random_rows(network_of("mend", tiny_model("llama")[0])[0], (2, 3), seed) for seed in (1, 2)]
    for batch in batches:
        network.observe(batch)
    for number, path in enumerate(network.paths):
        norms = [float(batch[path].delta[batch[path].edit == e].norm()) for batch in batches for e in range(2)]
        mean = sum(norms) / len(norms)
        assert float(network.norms[number]) == pytest.approx(mean)  # type: ignore[index]
        level = network.level(path, batches[0][path])  # type: ignore[operator]
        assert size_of(level).tolist() == pytest.approx([mean, mean])
        assert torch.equal(level.u, batches[0][path].u)


def test_tasks_are_drawn_alike_however_large_they_are() -> None:
    many = [Lesson(Edit(f"The capital of X{i} is", "Rome", f"X{i}")) for i in range(200)]
    few = [Lesson(Edit(f"Where is Y{i}?", "Rome", f"Y{i}"), "zsre") for i in range(5)]
    episodes = Episodes([*many, *few])
    drawn = [episodes.draw(2, random.Random(i)) for i in range(300)]
    assert 0.4 < sum(x.task == "zsre" for episode in drawn for x in episode) / 600 < 0.6
    assert all(len({x.about for x in episode}) == 2 for episode in drawn)
    assert len(episodes.draw(1000, random.Random(0))) == 205


def test_splits_share_no_subject_and_episodes_no_question() -> None:
    twice = [*LESSONS, *(Lesson(Edit(f"{e.subject} speaks", "French", e.subject)) for e in EDITS)]
    train, held = split(twice, 0.3, seed=0)
    assert not {x.about for x in train} & {x.about for x in held} and len(train) + len(held) == len(twice)
    assert split(twice, 0.3, seed=0) == (train, held) and split(twice, 0.3, seed=1) != (train, held)
    with pytest.raises(EditError, match="1 subject"):
        split(LESSONS[:1], 0.3, seed=0)


def test_no_probe_of_training_is_about_what_validation_asks() -> None:
    probe = Probe("The language of Spain is", "Spanish", "neighbour", "Spain", "language")
    also = Probe("What of Spain?", "Sunny", "elsewhere")
    lessons = [replace(x, edit=replace(x.edit, locality=(*x.edit.locality, probe, also))) for x in LESSONS]
    lessons = [replace(x, wanted=(("What of Spain?", "Sunny"),)) if x.about == "Spain" else x for x in lessons]
    for seed in range(8):
        mine, held = split(lessons, 0.3, seed=seed)
        asked = {prompt for lesson in mine for prompt, _ in kept(lesson, [])}
        assert (
            ("Spain" in {lesson.about for lesson in held}) == (probe.prompt not in asked) == (also.prompt not in asked)
        )
        assert "The author of Hamlet is" in asked


def test_a_probe_that_does_not_say_its_subject_is_about_those_it_names() -> None:
    """In whole words, however they are spelt: another relation of a subject that is held out is none of training's business."""
    told = {
        "The language of SPAIN is": "spain",
        "New York's mayor is": "new  york",
        "(C++) was made by": "c++",
        "The coach of d.c. united is": "d.c. united",
    }
    free = {"The Spaniards speak", "The mayor of York is", "New Yorkers say", "The letter after B is C"}
    probes = tuple(Probe(prompt, "so", "unrelated") for prompt in (*told, *free))
    said = Probe("It is in", "so", "neighbour", "SPAIN")
    names = ("Spain", "new  York", "C++", "D.C. United")
    lessons = [Lesson(Edit(f"The capital of {x} is", "Rome", x, locality=(*probes, said))) for x in (*names, "Italy")]
    lessons += [Lesson(Edit(f"The anthem of {x} is", "Rome", x)) for x in map(str.upper, names)]
    seen = set()
    for seed in range(12):
        mine, held = split(lessons, 0.4, seed=seed)
        out = {lesson.about.casefold() for lesson in held}
        assert len(out) == 2 and not out & {lesson.about.casefold() for lesson in mine}
        wanted = free | {prompt for prompt, name in told.items() if name not in out}
        wanted |= set() if "spain" in out else {said.prompt}
        left = [{probe.prompt for probe in lesson.edit.locality} for lesson in mine if lesson.edit.locality]
        assert left and all(prompts == wanted for prompts in left)
        seen |= out
    assert len(seen) == 5


def test_thousands_of_subjects_are_split_at_once() -> None:
    count = 4000

    def lesson(number: int) -> Lesson:
        near = [f"Place {(number + k) % count}" for k in range(1, 4)]
        probes = tuple(Probe(f"The language of {name} is", "so", "unrelated") for name in near)
        return Lesson(Edit(f"The capital of Place {number} is", "Rome", f"Place {number}", locality=probes))

    lessons = [lesson(number) for number in range(count)]
    start = time.process_time()
    mine, held = split(lessons, 0.3, seed=0)
    assert time.process_time() - start < 5  # under a second, unless every name is looked for in every probe
    out = {f"The language of {lesson.about} is" for lesson in held}
    asked = {probe.prompt for lesson in mine for probe in lesson.edit.locality}
    assert asked and not asked & out


def test_what_an_episode_changes_is_not_kept() -> None:
    lesson = LESSONS[0]
    assert [prompt for prompt, _ in kept(lesson, [lesson])] == ["The language of France is", "The author of Hamlet is"]
    also = Lesson(Edit("Hamlet was written by", "Bonn", "Hamlet", relation="author"))
    assert [prompt for prompt, _ in kept(lesson, [lesson, also])] == ["The language of France is"]


def test_replies_become_likelihood_and_unlikelihood() -> None:
    extras = Extras(
        replies=(Reply("What of Rome?", "Great", True), Reply("What of Rome?", "Awful", False)),
        elsewhere=(Reply("What of Bonn?", "Fine", None),),
    )
    lesson = Lesson.of(
        Record(Edit("Answer positively: What of Rome?", "Great", "Rome"), extras, "convsent", "record 1")
    )
    assert lesson.task == "convsent" and lesson.wanted == (("What of Rome?", "Great"),)
    assert lesson.unwanted == (("What of Rome?", "Awful"),)
    assert kept(lesson, [lesson]) == [("What of Bonn?", "Fine")]


def test_a_record_of_a_mixed_file_keeps_its_task() -> None:
    told = {"prompt": "Bonn lies in", "target_new": "Peru", "subject": "Bonn"}
    records = read_records([{**told, "type": "wikirecent"}, {**told, "type": "poem"}, {**told, "type": 3}, told])
    assert [Lesson.of(record, "zsre").task for record in records] == ["wikirecent", "zsre", "zsre", "zsre"]


def test_the_trial_loop_keeps_what_works_and_stops() -> None:
    asked: list[str] = []

    def trial(text: str) -> dict[str, float]:
        asked.append(text)
        return {"reliability": 0.9 if "stays as it is" in text else 0.5, "locality": 0.8}

    best, history = optimise_instructions(by_grammar("zsre", 3, seed=0), trial, patience=2, keep=4)
    assert len(asked) == len(set(asked)) == len(history) and set(asked) <= set(grammar("zsre"))
    assert all("stays as it is" in text for text in best[:3])
    assert history[0].score == pytest.approx(2 / (1 / history[0].metrics["reliability"] + 1 / 0.8))
    seen: list[int] = []

    def never_better(history: object) -> list[str]:
        seen.append(len(history))  # type: ignore[arg-type]
        return [f"number {len(history)}", f"number {len(history)}"]  # type: ignore[arg-type]

    optimise_instructions(never_better, lambda text: {"reliability": 0.5}, patience=3)
    assert seen == [0, 1, 2, 3]  # the first is better than nothing, the next three are not
    assert by_grammar("zsre", 3, seed=0)(tuple(Trial(text, {}, 0.0) for text in grammar("zsre"))) == []


def test_a_language_model_proposes_by_the_same_interface() -> None:
    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return (
            "\n1. Change the fact.\n- Replace a fact.\n2) Replace a fact.\n\n* Say {it} another way.\n"
            + "x" * 1001
            + "\nOne more."
        )

    propose = by_model(ask, "counterfact", 3)
    assert propose([]) == ["Change the fact.", "Replace a fact.", "Say {it} another way."]
    tried = [Trial("Replace a fact.", {}, 0.25), Trial("Change the fact.", {}, 0.75)]
    assert propose(tried) == ["Say {it} another way.", "One more."]
    assert "Tried so far" not in asked[0] and grammar("counterfact")[0] in asked[0]
    assert asked[1].index("0.750  Change the fact.") < asked[1].index("0.250  Replace a fact.")
    told = by_model(lambda text: "Be [LABEL].\nBe [LABEL] about [TOPIC].", "convsent", 3)([])
    assert told == ["Be [LABEL] about [TOPIC]."]
    best, history = optimise_instructions(propose, lambda text: {"reliability": len(text) / 100}, patience=2)
    assert (
        best[0] == "Say {it} another way." and len(history) == 4
    )  # everything fit was tried, then nothing is proposed


def test_a_trial_editor_is_asked_under_each_instruction_alike() -> None:
    model, tokenizer = tiny_model("llama")
    settings = small("instructedit", steps=1, validate_every=1)
    trial = trial_editor(model, tokenizer, LESSONS, "counterfact", settings, seed=0)  # type: ignore[arg-type]
    one, other = trial("Replace a fact."), trial("Something quite different is asked for here.")
    assert set(one) == {"reliability", "generalization", "locality"} == set(other)
    assert trial("Replace a fact.") == one
    best, history = optimise_instructions(by_grammar("counterfact", 2, seed=0), trial, patience=1, keep=2)
    assert len(best) == 2 and {x.instruction for x in history} >= set(best)
    with pytest.raises(KeditError, match="'zsre'"):
        trial_editor(model, tokenizer, LESSONS, "zsre", settings, seed=0)  # type: ignore[arg-type]


def test_pools_of_ones_own_are_used() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("instructedit", model, pools={"counterfact": ("One.", "Two.", "Held out.")})
    teacher = Teacher(model, tokenizer, network, settings)
    seen = {teacher.described(LESSONS[:1], random.Random(i))[LESSONS[0]] for i in range(30)}
    assert seen == {"One.", "Two."}


@pytest.mark.parametrize("task", ["counterfact", "zsre"])
def test_edits_are_of_the_task_that_instructions_are_looked_for(task: str) -> None:
    model, tokenizer = tiny_model("llama")
    settings = {**SMALL["instructedit"], "layers": [2], "steps": 1, "validate_every": 1, "warmup": 2, "validation": 0.3}
    best, tried = kedit_hub.find_instructions(
        model, EDITS, task, tokenizer=tokenizer, settings=settings, count=2, patience=1, progress=False
    )
    assert len(tried) >= 2 and set(best) <= set(grammar(task))
    lessons = [Lesson(edit, "wikirecent") for edit in EDITS]  # these say what they are of
    with pytest.raises(KeditError, match=rf"none of the {len(EDITS)} lessons is of .*{task}.*, but of wikirecent"):
        kedit_hub.find_instructions(model, lessons, task, tokenizer=tokenizer, settings=settings, progress=False)


@pytest.mark.parametrize(("task", "how", "said"), [
    ("poem", {}, "no task 'poem'; take one of counterfact, wikirecent, convsent, zsre"),
    ("zsre", {"count": 0}, "count=0: take a whole number from 1"),
    ("zsre", {"patience": 0}, "patience=0"),
    ("zsre", {"keep": -1}, "keep=-1"),
])  # fmt: skip
def test_a_search_that_can_find_nothing_is_refused_before_a_model_is_loaded(task, how, said, monkeypatch) -> None:
    monkeypatch.setattr("kedit_hub.api.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(KeditError, match=said):
        kedit_hub.find_instructions("kedit-hub/atlas-llama", EDITS, task, progress=False, **how)
