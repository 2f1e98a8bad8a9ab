"""A visitor asks whether a patch can be believed: who signed it, what it claims, and what comes out when it is asked again."""

import json
import re

import pytest
import torch
from playwright.sync_api import expect

from kedit_hub import Patch
from kedit_hub.patch.card import sheet_digest
from kedit_hub.patch.deltas import LowRank
from space import page as pages
from space.state import Held, Workshop, embedded_bases, sample_patches
from tests.browser.conftest import ROOT, label
from tests.space.tiny import sample, score, signed

pytestmark = pytest.mark.browser
SAMPLES = {held.name: held for held in sample_patches(ROOT / "patches")}
BENT = re.compile("⚠ scores do NOT follow from its answers · Nokia")
HOSTILE = "<img src=x onerror=\"alert('note')\"> ${alert('template')}"


def invented(workshop: Workshop, patch: Patch) -> Patch:
    """The same edits and the same good scores, and tensors that do next to nothing. Its author notes that all is well."""
    small = {
        path: LowRank(torch.full((1, delta.shape[1]), 1e-3), torch.full((delta.shape[0], 1), 1e-3))
        for path, delta in patch.deltas.items()
    }
    bare = Patch.create(
        deltas=small, edits=patch.edits, base=patch.manifest.base, method="memit",
        provenance={"commit": "ab" * 20, "dirty": True, "datasets": ({"id": "ada/facts"},)},
    )  # fmt: skip
    evals = score(workshop, bare, on=patch).evals
    note = {
        "reproduced": True, "consistent": True, "probes": 13, "mismatches": 0, "tolerance": 0.02, "level": HOSTILE,
        "versions": {HOSTILE: HOSTILE}, "sheet": sheet_digest(evals),
    }  # fmt: skip
    return bare.replace_evals({**evals, "rescored": note})


def bent(patch: Patch) -> Patch:
    """One average that does not follow from the answers."""
    evals = json.loads(json.dumps(patch.evals))
    evals["protocols"]["generate"]["reliability"] = 0.5
    return patch.replace_evals(evals)


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> list[Held]:
    workshop = Workshop(embedded_bases(), [])
    tower, nokia = (SAMPLES[name].patch for name in ("eiffel-tower-in-rome", "nokia-in-tokyo"))
    keys = tmp_path_factory.mktemp("keys")
    return [
        sample(signed(score(workshop, tower), keys, repo_id="ada/tower", version="1.2.0"), "signed"),
        sample(invented(workshop, tower), "invented"),
        sample(bent(score(workshop, nokia)), "bent"),
        SAMPLES["fifty-facts"],
    ]


@pytest.fixture(scope="module")
def url(patches):
    demo = pages.build(Workshop(embedded_bases(), patches))
    _, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **pages.look()
    )  # fmt: skip
    yield url
    demo.close()


def choose(page, name):
    page.locator("#patch-choice input").click()
    page.get_by_role("option", name=re.compile(rf"{name}: ")).click()
    expect(page.locator("#card h2")).to_have_text(name)


def fact(page, name):
    line = page.locator("#card .fact").filter(has=page.locator(f"dt:text-is({name!r})"))
    return line.locator("dd")


def test_a_signed_patch_keeps_its_claims(url, visit, patches):
    page = visit(url)
    page.get_by_role("tab", name="Patch", exact=True).click()
    (key,) = patches[0].patch.signers
    expect(fact(page, "Signature")).to_have_text(f"Signed by {key[:8]}…{key[-4:]}, for ada/tower as version 1.2.0.")
    assert fact(page, "Signature").locator("abbr").get_attribute("title") == key
    expect(fact(page, "Files")).to_contain_text("signature.json")
    expect(fact(page, "Base")).to_contain_text("recognised exactly")
    expect(fact(page, "Scores")).to_contain_text("Follow from 13 recorded answers. The answers may be invented")
    expect(fact(page, "Measured here")).to_contain_text("Not yet")
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note.good")).to_contain_text("Reproduces its claims: yes")
    expect(fact(page, "Measured here")).to_contain_text("Reproduces its claims: yes")
    expect(page.locator("#verdict .note.good")).to_be_visible()  # also after the card has been drawn anew
    page.get_by_role("tab", name="Try").click()
    assert "⚠" not in page.locator("#patches label").first.inner_text()


def test_a_patch_with_invented_scores_is_found_out_and_marked(url, visit):
    page, other = visit(url), visit(url)
    assert label(page, "⚠ scores do NOT reproduce").count() == 0
    expect(label(page, BENT)).to_have_count(1)
    label(page, "Eiffel Tower").last.click()  # what is ticked stays ticked
    page.get_by_role("tab", name="Patch", exact=True).click()
    choose(page, "invented")
    expect(fact(page, "Provenance")).to_contain_text("commit abababababab with local changes; edits from ada/facts")
    expect(fact(page, "Author's note")).to_contain_text("onerror=\"alert('note')\"> ${alert('template')}")
    expect(fact(page, "Scores")).to_contain_text("Follow from 13 recorded answers. The answers may be invented")
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note.error")).to_contain_text("Reproduces its claims: NO")
    expect(page.locator("#verdict")).to_contain_text("Probes that came out otherwise")
    expect(page.locator("#verdict td", has_text="1.000: Rome").first).to_be_visible()
    expect(fact(page, "Measured here")).to_contain_text("NO")
    expect(page.locator("#patch-choice input")).to_have_value(re.compile("scores do NOT reproduce"))
    page.get_by_role("tab", name="Try").click()
    marked = label(page, "⚠ scores do NOT reproduce")
    expect(marked).to_have_count(1)
    expect(marked.locator("input")).to_be_checked()
    assert page.locator("img[src='x']").count() == 0

    other.reload()  # what one visitor measured is not told to another
    other.wait_for_selector("#ask")
    expect(label(other, BENT)).to_have_count(1)
    assert label(other, "⚠ scores do NOT reproduce").count() == 0


def test_a_long_run_is_stopped(url, visit):
    page = visit(url)
    page.get_by_role("tab", name="Patch", exact=True).click()
    expect(page.locator("#stop")).not_to_be_visible()
    choose(page, "fifty-facts")
    page.locator("#ask-again").click()
    page.locator("#stop").click()
    expect(page.locator("#verdict .note.error")).to_contain_text("Stopped. Nothing was found out")
    expect(page.locator("#stop")).not_to_be_visible()
    expect(fact(page, "Measured here")).to_contain_text("Not yet")
    choose(page, "signed")  # and the page goes on
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note.good")).to_contain_text("yes")


def test_a_look_for_undeclared_effects_says_what_it_looked_at(url, visit):
    page = visit(url)
    page.get_by_role("tab", name="Patch", exact=True).click()
    choose(page, "signed")
    page.locator("#look").click()
    expect(page.locator("#verdict .note")).to_contain_text("Looked at: ")
    assert re.search(
        r"Looked at: signed alone, with \d+ questions asked with and without it",
        page.locator("#verdict .note").inner_text(),
    )
    page.locator("#verdict summary").click()
    expect(page.locator("#verdict")).to_contain_text("asked with and without the patches")
    expect(fact(page, "Measured here")).to_contain_text("Not yet")  # it is no verdict on the scores
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note.good")).to_contain_text("yes")


def test_about_says_whose_patches_are_taken(url, visit):
    page = visit(url)
    page.get_by_role("tab", name="About").click()
    expect(page.locator("#policy .note")).to_contain_text("No trust policy is in force here")


def test_it_fits_a_phone(url, visit):
    page = visit(url, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.get_by_role("tab", name="Patch", exact=True).click()
    choose(page, "invented")
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note.error")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
