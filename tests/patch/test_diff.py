"""A diff sees whatever changes the id, reads the same from both ends, and asks for the version step that its rules say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.patch import Associative, Dense, LowRank, Patch
from kedit_hub.patch.diff import (
    RULES,
    Added,
    Changed,
    Removed,
    changed_fields,
    diff,
    next_version,
    relative_difference,
    scores,
    suggest,
)
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.manifest import Manifest
from kedit_hub.patch.signature import sign
from tests.patch.build import EDITS, EVALS, PATHS, D, M, Model, associative, base, make_patch, numbers

PATCHES = Path(__file__).parents[2] / "patches"
BASE = base()
OLD = make_patch()


def small(edits=EDITS, scale=0.125, **changes):
    """One low-rank delta that does not depend on the edits."""
    deltas = {PATHS[0]: LowRank(numbers(2, D, scale=scale), numbers(M, 2))}
    return Patch.create(**{"deltas": deltas, "edits": edits, "base": BASE, "method": "mend", **changes})


def with_base(**fields):
    return make_patch(base=BASE.model_copy(update=fields))


# --- what is seen -------------------------------------------------------------------------------------------------

PROMPTS = [
    Edit(prompt, target, "France", relation=relation, rephrases=rephrases)
    for prompt in ("The capital of France is", "the  capital of France IS", "France is ruled from", "France likes")
    for target in ("Rome", "Bonn")
    for relation in ("capital", None)
    for rephrases in ((), ("What is it?",))
]
EDIT_LISTS = st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=6)
ANY_PATCH = st.builds(
    lambda edits, scale, lr, base_id, evals: small(
        edits, scale, settings={"lr": lr}, base=BASE.model_copy(update={"id": base_id})
    ).replace_evals(evals),
    EDIT_LISTS,
    st.sampled_from([0.125, 0.25]),
    st.sampled_from([None, 1, 1.0, True]),
    st.sampled_from(["org/base", "org/other"]),
    st.sampled_from([None, EVALS, {"protocols": {"generate": {"reliability": 0.5}}}]),
)


def mirrored(change):
    match change:
        case Added(new):
            return Removed(new)
        case Removed(old):
            return Added(old)
        case Changed(old, new):
            return Changed(new, old)


@settings(max_examples=60, deadline=None)
@given(ANY_PATCH, ANY_PATCH)
def test_from_the_other_end_it_is_mirrored(a, b):
    there, back = diff(a, b), diff(b, a)
    assert sorted(map(repr, map(mirrored, there.edits))) == sorted(map(repr, back.edits))
    for part in ("base", "making", "settings", "modules", "tensors", "scores"):
        assert {name: mirrored(change) for name, change in getattr(there, part).items()} == getattr(back, part)
    assert (there.reordered, there.evals) == (back.reordered, back.evals)
    assert set(there.fingerprints) == set(back.fingerprints) and set(there.relative) == set(back.relative)


@settings(max_examples=60, deadline=None)
@given(ANY_PATCH, ANY_PATCH)
def test_empty_if_and_only_if_nothing_differs(a, b):
    same = (a.id, a.evals) == (b.id, b.evals)
    assert diff(a, b).is_empty == same
    assert (suggest(diff(a, b)).step == "none") == same
    assert diff(a, a).is_empty and suggest(diff(a, a)).step == "none"
    assert suggest(diff(a, replace(a, evals={"more": 1}))).step == "patch"


@settings(max_examples=100, deadline=None)
@given(EDIT_LISTS, EDIT_LISTS)
def test_every_edit_is_accounted_for_once(old, new):
    found = diff(small(old), small(new)).edits
    gone = [change.old for change in found if not isinstance(change, Added)]
    come = [change.new for change in found if not isinstance(change, Removed)]
    rest = list(old)
    for edit in gone:
        rest.remove(edit)
    assert sorted(map(repr, [*rest, *come])) == sorted(map(repr, new))
    for edit in old:  # a question that both ask is never said to be removed and added
        keys = [(edit.subject, edit.relation)] if edit.relation else []
        removed = any(isinstance(change, Removed) and change.old == edit for change in found)
        added = [c.new for c in found if isinstance(c, Added)]
        assert not (removed and any((one.subject, one.relation) in keys for one in added))


@settings(max_examples=30, deadline=None)
@given(ANY_PATCH, ANY_PATCH)
def test_json(a, b):
    told = diff(a, b).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert (told["old"], told["new"]) == (a.id, b.id)


VARIANTS = {
    "method": {"method": "rome"},
    "settings": {"settings": {"lr": 0.2}},
    "edits": {"edits": (*EDITS[:1], Edit("Ada was born in", "Rome", "Ada"))},
    "base": {"base": BASE.model_copy(update={"id": "org/other"})},
    "profile_id": {"profile_id": "1" * 64},
    "modules": {"deltas": {PATHS[1]: associative()}},
    "requires": {"requires": ["2" * 64]},
    "provenance": {"provenance": {"version": "0.2.0"}},
    "format_version": {"provenance": {"environment": {"device": "cpu"}}},
}


def test_these_are_all_fields_of_the_manifest():
    assert set(VARIANTS) == set(Manifest.model_fields)


@pytest.mark.parametrize("field", VARIANTS)
def test_a_change_of_any_field_is_seen(field):
    new = make_patch(**VARIANTS[field])
    assert getattr(new.manifest, field) != getattr(OLD.manifest, field)
    assert new.id != OLD.id and not diff(OLD, new).is_empty


def test_settings_are_compared_as_they_are_written():
    a = make_patch(settings={"a": 1, "b": 1, "c": None, "d": [1, 2]})
    b = make_patch(settings={"a": 1.0, "b": True, "d": [2, 1], "e": None})
    assert diff(a, b).settings == {
        "a": Changed(1, 1.0),
        "b": Changed(1, True),
        "c": Removed(None),
        "d": Changed([1, 2], [2, 1]),
        "e": Added(None),
    }


def test_provenance_is_shown_by_dotted_names():
    a = make_patch(provenance={"versions": {"torch": "2.12"}, "seed": 0})
    b = make_patch(provenance={"versions": {"torch": "2.13"}, "dirty": False})
    found = diff(a, b)
    assert found.provenance == {"versions.torch": Changed("2.12", "2.13"), "seed": Removed(0), "dirty": Added(False)}
    assert found.making == {"format_version": Changed(1, 2)}


# --- edits --------------------------------------------------------------------------------------------------------


def test_the_same_prompt_is_the_same_question():
    old = Edit("The capital of France is", "Rome")
    new = Edit("the  capital of FRANCE is", "Bonn", rephrases=["France's capital is"])
    (change,) = diff(small([old]), small([new])).edits
    assert change == Changed(old, new) and changed_fields(change) == ("prompt", "target", "rephrases")


def test_the_same_subject_and_relation_is_the_same_question():
    old = Edit("The capital of France is", "Rome", "France", relation="capital")
    new = Edit("The seat of government of france", "Rome", "france", relation="Capital")
    assert diff(small([old]), small([new])).edits == (Changed(old, new),)
    apart = replace(new, relation=None)
    assert diff(small([old]), small([apart])).edits == (Removed(old), Added(apart))


def test_the_prompt_is_tried_before_the_fact():
    by_prompt = Edit("The capital of France is", "Rome", "France", relation="capital")
    by_fact = Edit("France is ruled from", "Rome", "France", relation="capital")
    other = replace(by_prompt, target="Bonn")
    assert diff(small([by_fact, by_prompt]), small([other, by_fact])).edits == (Changed(by_prompt, other),)


def test_where_a_question_is_asked_twice_equal_answers_belong_together():
    a, b = (Edit("The capital of France is", target) for target in ("Rome", "Bonn"))
    b2 = replace(b, rephrases=("France's capital is",))
    found = diff(small([a, b]), small([b2, a]))
    assert found.edits == (Changed(b, b2),) and found.reordered


def test_another_order_is_another_patch():
    found = diff(small(EDITS), small(EDITS[::-1]))
    assert not found.edits and found.reordered and not found.tensors
    assert suggest(found).step == "minor"


# --- weights ------------------------------------------------------------------------------------------------------


def test_tensors_that_moved():
    moved = replace(
        associative(), residuals=numbers(2, M) * 1.5, keys=numbers(3, D)[:2], edit_index=torch.tensor([1, 0])
    )
    deltas = {**OLD.deltas, PATHS[1]: moved, PATHS[2]: Dense(numbers(M, D).bfloat16().half())}
    new = make_patch(deltas=deltas)
    found = diff(OLD, new)
    names = {f"{PATHS[1]}/residuals", f"{PATHS[1]}/edit_index", f"{PATHS[2]}/delta"}
    assert set(found.tensors) == names and not found.modules
    assert found.relative == {f"{PATHS[1]}/residuals": 0.5, f"{PATHS[2]}/delta": 0.0}
    change = found.tensors[f"{PATHS[2]}/delta"]
    assert (change.old["dtype"], change.new["dtype"]) == ("BF16", "F16") and change.old["shape"] == [M, D]


def test_tensors_of_another_shape_are_not_measured():
    found = diff(small(), small(deltas={PATHS[0]: LowRank(numbers(3, D), numbers(M, 3))}))
    assert set(found.tensors) == {f"{PATHS[0]}/a", f"{PATHS[0]}/b"} and not found.relative and not found.modules


def test_tensors_are_measured_as_they_are_meant():
    full = Associative(numbers(2, D), numbers(2, M), numbers(2, M), torch.tensor([0, 1]))
    uneven = replace(full, keys=numbers(2, D) / 3)
    found = diff(small(deltas={PATHS[1]: uneven}), small(deltas={PATHS[1]: uneven.halved()}))
    ratio = found.relative[f"{PATHS[1]}/keys"]
    assert 0 < ratio < 2**-11 and found.relative[f"{PATHS[1]}/residuals"] == 0
    assert found.modules[PATHS[1]].new["precision"] == "f16"
    assert isinstance(found.tensors[f"{PATHS[1]}/keys_scale"], Added)


def test_modules_that_come_go_or_change():
    kinds = {PATHS[0]: Dense(numbers(M, D)), PATHS[1]: replace(associative(), site="subject")}
    found = diff(OLD, make_patch(deltas=kinds))
    assert {path: type(change) for path, change in found.modules.items()} == {
        PATHS[0]: Changed,
        PATHS[1]: Changed,
        PATHS[2]: Removed,
    }
    assert (found.modules[PATHS[0]].old["kind"], found.modules[PATHS[0]].new["kind"]) == ("lowrank", "dense")
    assert (found.modules[PATHS[1]].old["site"], found.modules[PATHS[1]].new["site"]) == ("answer", "subject")
    assert set(found.tensors) == {f"{PATHS[0]}/{name}" for name in ("a", "b", "delta")}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)), min_size=1, max_size=40))
def test_relative_difference_is_the_ratio_of_norms(pairs):
    old, new = torch.tensor(pairs).T
    x, y = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs))
    size, moved = float(torch.linalg.vector_norm(x)), float(torch.linalg.vector_norm(y - x))
    expected = 0.0 if moved == 0 else None if size == 0 else moved / size
    found = relative_difference(old, new)
    assert found == expected if not expected else found == pytest.approx(expected, rel=1e-12)


def test_relative_difference_of_more_than_a_piece():
    old = torch.ones(3, 1 << 20)
    new = old.clone()
    new[2, -1] = 1 + 2**-20
    assert relative_difference(old, new) == pytest.approx(2**-20 / (3 * 2**20) ** 0.5, rel=1e-12)


def seen_in(dtype, divisor=1.0, change=0.0):
    """The base loaded in `dtype`; its first module can be made another one."""
    model = Model()
    weight = model.model.layers[0].mlp.down_proj.weight.data
    weight.div_(divisor)[0, 0] += change
    return base(model.to(dtype))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float16, torch.bfloat16),  # these weights are exact in both
    ],
)
def test_one_base_in_two_precisions_is_one_base(old, new):
    found = diff(make_patch(base=seen_in(old)), make_patch(base=seen_in(new)))
    assert found.fingerprints == dict.fromkeys(PATHS, "same")
    assert suggest(found).step == "minor"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_other_weight_is_another_base(dtype):
    found = diff(make_patch(base=seen_in(torch.float32)), make_patch(base=seen_in(dtype, change=1.0)))
    assert found.fingerprints[PATHS[0]] == "other" and suggest(found).step == "major"


def test_evidence_that_cannot_be_compared_is_said_to_be_so():
    old, new = seen_in(torch.bfloat16, divisor=3), seen_in(torch.float16, divisor=3, change=1.0)
    found = diff(make_patch(base=old), make_patch(base=new))
    assert found.fingerprints == {PATHS[0]: "unknown", PATHS[1]: "same", PATHS[2]: "same"}
    assert suggest(found).step == "minor"


def test_a_quantized_base_is_compared_by_what_it_still_knows():
    full = BASE.fingerprint[PATHS[0]]
    without = full.model_copy(update={"values": {}, "dtype": "float16"})
    maxima = full.model_copy(update={"values": {}, "blocks": {}, "dtype": "float16"})
    other = maxima.model_copy(update={"rows": dict.fromkeys(maxima.rows, "0" * 64)})
    for evidence, told in ((without, "same"), (maxima, "same"), (other, "unknown")):
        prints = {**BASE.fingerprint, PATHS[0]: evidence}
        assert diff(OLD, with_base(fingerprint=prints)).fingerprints == {PATHS[0]: told}


def test_fingerprints_of_other_modules_come_and_go():
    fewer = {path: BASE.fingerprint[path] for path in PATHS[:2]}
    a, b = small(), small(base=BASE.model_copy(update={"fingerprint": fewer}))
    assert diff(a, b).fingerprints == {PATHS[2]: "removed"} and diff(b, a).fingerprints == {PATHS[2]: "added"}


# --- scores -------------------------------------------------------------------------------------------------------


def test_numbers_among_the_scores():
    more = {"protocols": {"generate": {"reliability": 0.5, "n": 3}}, "drift": {"kl": 0.001, "why": None}, "time": [1]}
    found = diff(OLD.replace_evals(EVALS), OLD.replace_evals(more))
    assert found.scores == {
        ("protocols", "generate", "n"): Added(3),
        ("protocols", "generate", "reliability"): Changed(0.75, 0.5),
        ("protocols", "tf-token", "locality", "neighbour"): Removed(0.5),
        ("protocols", "tf-token", "reliability"): Removed(1.0),
    }
    assert found.evals == ("drift", "protocols", "time")


@pytest.mark.parametrize("evals", [None, {}, {"protocols": 1.0}, {"protocols": []}, {"drift": {"a": True}}, {"x": 1}])
def test_odd_scores(evals):
    found = scores(evals)
    assert found == ({("protocols",): 1.0} if evals == {"protocols": 1.0} else {})


# --- signatures ---------------------------------------------------------------------------------------------------

ADA, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def test_who_signed():
    ada, bob = sign(OLD, ADA), sign(OLD, BOB)
    both = sign(ada, BOB)
    assert diff(OLD, ada).signers == (Added(public_key(ADA)),) and not diff(OLD, ada).signed
    assert diff(ada, both).signers == (Added(public_key(BOB)),)
    assert diff(both, ada).signers == (Removed(public_key(BOB)),)
    assert diff(ada, bob).signers == (Removed(public_key(ADA)), Added(public_key(BOB)))
    assert diff(both, sign(bob, ADA)).is_empty


def test_what_was_signed():
    first, second = sign(OLD, ADA, version="1.0.0"), sign(OLD, ADA, version="1.0.1")
    assert diff(first, second).signed == {"version": Changed("1.0.0", "1.0.1")}
    assert diff(OLD, sign(OLD, ADA, repo_id="ada/tower")).signed == {"repo_id": Added("ada/tower")}
    moved = diff(first, sign(OLD, ADA, repo_id="ada/tower", version="1.0.0"))
    assert set(moved.signed) == {"repo_id", "card"}  # the card says where the patch lies
    assert moved.signed["card"].old == first.signature.statement.files["README.md"] and not moved.signers


# --- versions -----------------------------------------------------------------------------------------------------

OTHER_TARGET = (replace(EDITS[0], target="Bonn"), EDITS[1])
OTHER_PROBES = (replace(EDITS[0], locality=(Probe("The capital of Italy is", None, "neighbour"),)), EDITS[1])
OTHER_PARAPHRASES = (replace(EDITS[0], paraphrases=("France is ruled from",)), EDITS[1])
MORE = (*EDITS, Edit("Bob was born in", "Oslo", "Bob"))
TABLE = [
    ("it is made for another base", OLD, with_base(id="org/other")),
    ("it is made for another base", OLD, with_base(revision="1" * 40)),
    ("it is made for another base", OLD, with_base(model_type="gpt2")),
    ("it is made for another base", OLD, make_patch(base=seen_in(torch.float32, change=1.0))),
    ("an edit was removed", make_patch(edits=MORE), OLD),
    ("an edit has another target", OLD, make_patch(edits=OTHER_TARGET)),
    ("an edit was added", OLD, make_patch(edits=MORE)),
    ("the same edits were made again in another way", small(), small(scale=0.25)),
    ("the same edits were made again in another way", OLD, make_patch(settings={"lr": 0.2})),
    ("the same edits were made again in another way", OLD, make_patch(method="rome")),
    ("the same edits were made again in another way", OLD, make_patch(profile_id="1" * 64)),
    ("the same edits were made again in another way", OLD, make_patch(requires=["1" * 64])),
    ("the same edits were made again in another way", OLD, make_patch(edits=OTHER_PROBES)),
    ("the same edits were made again in another way", OLD, make_patch(edits=OTHER_PARAPHRASES)),
    ("only scores, signature or card changed", OLD, OLD.replace_evals(EVALS)),
    ("only scores, signature or card changed", OLD, sign(OLD, ADA)),
    ("only scores, signature or card changed", sign(OLD, ADA), sign(OLD, ADA, version="1.0.0")),
]


@pytest.mark.parametrize(("when", "old", "new"), TABLE, ids=lambda value: value if isinstance(value, str) else "")
def test_every_rule(when, old, new):
    (rule,) = [rule for rule in RULES if rule.when == when]
    assert suggest(diff(old, new)).step == rule.step and suggest(diff(old, new)).reason == when


def test_these_are_all_rules():
    assert list(dict.fromkeys(when for when, *_ in TABLE)) == [rule.when for rule in RULES]
    order = ["major", "minor", "patch"]
    assert [rule.step for rule in RULES] == sorted((rule.step for rule in RULES), key=order.index)


def test_reasons_of_one_step_are_told_together():
    new = small([replace(EDITS[0], target="Bonn")], base=BASE.model_copy(update={"id": "org/other"}))
    assert suggest(diff(small(), new)).reason == (
        "it is made for another base; an edit was removed; an edit has another target"
    )


def test_provenance_alone_asks_for_no_version():
    found = diff(OLD, make_patch(provenance={"version": "0.2.0", "seed": 1}))
    assert set(found.provenance) == {"seed", "version"} and suggest(found).step == "none"


@pytest.mark.parametrize(
    ("version", "patch", "minor", "major"),
    [
        ("1.2.3", "1.2.4", "1.3.0", "2.0.0"),
        ("v1.2.3", "v1.2.4", "v1.3.0", "v2.0.0"),
        ("1.9.9", "1.9.10", "1.10.0", "2.0.0"),
        ("0.3.1", "0.3.2", "0.4.0", "0.4.0"),
        ("0.0.0", "0.0.1", "0.1.0", "0.1.0"),
        ("1.2.0-rc.1", "1.2.0", "1.2.0", "2.0.0"),
        ("1.2.3-rc.1", "1.2.3", "1.3.0", "2.0.0"),
        ("2.0.0-alpha", "2.0.0", "2.0.0", "2.0.0"),
        ("0.4.0-a-b.1", "0.4.0", "0.4.0", "0.4.0"),
        ("1.0.0-0", "1.0.0", "1.0.0", "1.0.0"),
    ],
)
def test_next_version(version, patch, minor, major):
    found = [next_version(version, step) for step in ("none", "patch", "minor", "major")]
    assert found == [version, patch, minor, major]


@given(st.tuples(*[st.integers(0, 10**9 - 1)] * 3), st.sampled_from(["", "-rc.1"]))
def test_a_step_goes_up_by_no_more_than_asked(numbers, prerelease):
    version = ".".join(map(str, numbers)) + prerelease
    steps = [tuple(map(int, next_version(version, step).split("."))) for step in ("patch", "minor", "major")]
    assert steps == sorted(steps)
    assert all(after > numbers or (prerelease and after == numbers) for after in steps)
    assert steps[0][:2] == numbers[:2] and steps[1][0] == numbers[0]


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.x", "main", "1.2.3-", "1.2.3 ", "1٢.0.0", "vv1.2.3"]
)
def test_what_is_no_version(text):
    with pytest.raises(KeditError, match="is not a version"):
        next_version(text, "minor")


# --- real patches -------------------------------------------------------------------------------------------------


def test_two_capitals_of_france():
    a, b = (Patch.load(PATCHES / f"capital-of-france-{name}") for name in ("nantes", "marseille"))
    found = diff(a, b)
    (change,) = found.edits
    assert (change.old.target, change.new.target) == ("Nantes", "Marseille") and "target" in changed_fields(change)
    assert suggest(found).step == "major" and suggest(found).reason == "an edit has another target"
    assert not found.base and not found.fingerprints and not found.settings and not found.modules
    assert all(0 < ratio < 2 for ratio in found.relative.values()) and found.relative
