"""22 · Fake scores: numbers nobody measured, of another patch, or better than the answers behind them.

Scores are claims. They are bound to their patch, held against the recorded answers without a model, and asked again on
demand; a difference is a fault, and exit 1.
"""

import copy
import hashlib
import json

import pytest

from kedit_hub import strictjson
from kedit_hub.errors import PatchFormatError
from kedit_hub.evaluate.claims import Consistent, Inconsistent, NoClaims, NotComparable, check_claims
from kedit_hub.patch import Patch
from tests.attacks.tools import EVALS_FILE, Case, Files, good, put, refuse, text
from tests.cli.conftest import kedit
from tests.evaluate.test_claims import PATCH, SHEET
from tests.patch.build import EVALS, make_patch


def sealed(change):
    """Scores changed by somebody who knows how they are sealed."""

    def attack(files: Files) -> Files:
        scores = json.loads(files[EVALS_FILE])
        del scores["sha256"]
        change(scores)
        digest = hashlib.sha256(strictjson.canonical(scores)).hexdigest()
        return files | {EVALS_FILE: strictjson.pretty({**scores, "sha256": digest})}

    return attack


CASES = {
    "of another patch": Case(text(EVALS_FILE, '"patch_id": "', '"patch_id": "0'), PatchFormatError, "is of patch"),
    "of another patch, sealed": Case(
        sealed(lambda scores: scores.update(patch_id="0" * 64)), PatchFormatError, "is of patch"
    ),
    "of the same edits by another method": Case(
        lambda files: files | {EVALS_FILE: make_patch(method="rome").replace_evals(EVALS).files()[EVALS_FILE]},
        PatchFormatError,
        "is of patch",
    ),
    "of nobody": Case(sealed(lambda scores: scores.pop("patch_id")), PatchFormatError, "is of patch 'None'"),
    "of a list of patches": Case(
        sealed(lambda scores: scores.update(patch_id=[scores["patch_id"]])), PatchFormatError, "is of patch"
    ),
    "better": Case(text(EVALS_FILE, "0.75", "1.0"), PatchFormatError, "changed by hand"),
    "better in the last digit": Case(text(EVALS_FILE, "0.75", "0.751"), PatchFormatError, "changed by hand"),
    "more of them": Case(
        text(EVALS_FILE, '"kl": 0.001', '"kl": 0.001,\n    "ppl": 1.0'), PatchFormatError, "changed by hand"
    ),
    "in another form": Case(text(EVALS_FILE, "0.75", "0.750"), PatchFormatError, "changed by hand"),
    "without a digest": Case(
        put(EVALS_FILE, strictjson.pretty({**EVALS, "patch_id": make_patch().id})), PatchFormatError, "changed by hand"
    ),
    "with a digest of something else": Case(
        put(EVALS_FILE, strictjson.pretty({**EVALS, "patch_id": make_patch().id, "sha256": "0" * 64})),
        PatchFormatError,
        "changed by hand",
    ),
    "not finite": Case(text(EVALS_FILE, "0.75", "Infinity"), PatchFormatError, "literal Infinity"),
    "twice": Case(text(EVALS_FILE, '"drift"', '"drift": 1, "drift"'), PatchFormatError, "'drift' twice"),
    "as a list": Case(put(EVALS_FILE, b"[]"), PatchFormatError, "is of patch"),
    "as null": Case(put(EVALS_FILE, b"null"), PatchFormatError, "is of patch"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


def test_invented_scores_are_a_valid_file():
    """The limit of a seal: whoever can count a digest can write any number. That is why answers are held against them."""
    patch = Patch.from_files(sealed(lambda scores: scores["protocols"]["generate"].update(reliability=1.0))(good()))
    assert patch.evals["protocols"]["generate"]["reliability"] == 1.0
    assert isinstance(check_claims(patch), NotComparable)  # averages without answers are not believed


def first(evals):
    return evals["per_edit"][0]


LIES = {
    "a better average": lambda e: e["protocols"]["generate"].update(reliability=1.0, score=1.0),
    "a better locality": lambda e: e["protocols"]["generate"]["locality"].update(neighbour=1.0),
    "an average of what was not asked": lambda e: e["protocols"]["generate"]["portability"].update(chain=1.0),
    "a score its answer does not give": lambda e: first(e)["scores"].update(generate=0.0),
    "a question left out": lambda e: first(e)["probes"].pop(),
    "a question asked of nobody": lambda e: first(e)["probes"].append({**first(e)["probes"][0], "prompt": "Easy is"}),
    "an easier target": lambda e: first(e)["probes"][0].update(target="Paris"),
    "another prompt": lambda e: first(e).update(prompt="France, famous for Lyon, is ruled from"),
    "an edit left out": lambda e: e["per_edit"].pop(),
    "an edit twice": lambda e: e["per_edit"].append(copy.deepcopy(first(e))),
    "a bad answer struck out": lambda e: first(e)["probes"][3].update(dropped={"generate": "not known"}, scores={}),
    "two answers to one question": lambda e: first(e)["probes"][5].update(answer_after="Toledo."),
    "a score above one": lambda e: first(e)["scores"].update({"tf-token": 2.0}),
    "a score below zero": lambda e: first(e)["scores"].update({"tf-token": -1.0}),
    "a score of text": lambda e: first(e)["scores"].update({"tf-token": "1.0"}),
    "a score of true": lambda e: first(e)["scores"].update({"tf-token": True}),
    "an interval beside the average": lambda e: e["protocols"]["generate"]["interval"].update(reliability=[0.0, 0.1]),
    "a drift below zero": lambda e: e["drift"].update(kl=-1.0),
    "a drift of text": lambda e: e["drift"].update(kl="none"),
    "no record where one should be": lambda e: e.update(per_edit={}),
    "a mode that is none": lambda e: e.update(stack={"patches": [PATCH.id], "mode": "os.system"}),
}


def test_the_honest_sheet_is_consistent():
    assert isinstance(check_claims(PATCH.replace_evals(SHEET)), Consistent)
    assert check_claims(PATCH) == NoClaims()


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found_without_a_model(name):
    evals = copy.deepcopy(SHEET)
    LIES[name](evals)
    verdict = check_claims(PATCH.replace_evals(evals))
    assert isinstance(verdict, Inconsistent) and verdict.faults, verdict


@pytest.mark.parametrize("name", ["a better average", "a question left out", "a score above one"])
def test_a_lie_is_exit_1(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    evals = copy.deepcopy(SHEET)
    LIES[name](evals)
    folder = PATCH.replace_evals(evals).save(tmp_path / "p")
    for arguments in (["verify", folder, "--no-base"], ["verify", folder, "--no-base", "--json"]):
        done = kedit(*arguments)
        assert done.code == 1 and "Error: The scores do not follow from the recorded answers" in done.err
