"""The Measure tab: suites of the library, step by step, stopped when it is wished; and plots that stand alone."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from kedit_hub import KeditError
from kedit_hub.errors import LimitError
from kedit_hub.evaluate.report.alone import standing_alone
from kedit_hub.evaluate.report.plots import Point, Series, lines
from space import measure_tab, page
from space.asking import Question, ask
from space.live import each
from space.measure_tab import SUITES, Taken, measured, show
from space.stack_builder import Tuned
from space.state import Stop, Workshop, embedded_bases, sample_patches
from tests.space.test_html import HOSTILE
from tests.space.tiny import PROBED, handler, make_patch, sample

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two():
    return [sample(make_patch([PROBED], seed), f"p{seed}") for seed in (5, 6)]


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_grows_and_ends(shared, two, suite):
    steps = list(each(lambda: measured(shared, suite, two, "auto", Stop()), Stop()))
    assert [step.done for step in steps] == [0.5, 1.0] and len(steps[-1].rows) == 2
    ((title, svg),) = steps[-1].plots
    assert ElementTree.fromstring(svg).tag.endswith("svg") and title in svg
    assert "p5" in show(steps[-1]) and "%" in show(steps[0]) and "measured …" not in show(steps[-1])
    assert steps[-1].data["suite"] == suite
    views = [view.model for view in shared._installed.values()]
    assert views and not any(view._forward_pre_hooks for view in views)  # what stays warm is bound to nobody's time


@pytest.fixture(scope="module")
def capitals():
    held = {one.name: one for one in sample_patches(ROOT / "patches")}
    both = [held["capital-of-france-nantes"], held["capital-of-france-marseille"]]
    return Workshop(embedded_bases(), both), both


def test_the_stack_is_measured_as_it_is_asked(capitals):
    """Pinned, the first patch answers here as on the first tab; at a strength that is too weak, it does not take."""
    workshop, (nantes, marseille) = capitals
    (edit,), base = nantes.patch.edits, nantes.patch.manifest.base.id

    def reliability(taken):
        found = list(measured(workshop, "before and after", (nantes, marseille), "auto", Stop(), taken))[-1]
        return [float(row[2]) for row in found.rows], found

    pins = (nantes.patch.id, "0" * 64)  # the other one is not among these patches
    share, found = reliability(Taken(policy="pin", pinned=pins))
    asked = ask(workshop, Question(edit.prompt, (nantes, marseille), base, conflicts="pin", pinned=pins[:1]))
    assert edit.target in asked.patched.text and share == [1.0, 0.0]
    assert "where they disagree, answered by capital-of-france-nantes." in found.how
    assert found.data["how"] == {
        "mode": "auto", "precision": "float32", "conflicts": "pin", "pinned": [nantes.patch.id], "strengths": {},
    }  # fmt: skip
    share, found = reliability(Taken())
    assert share == [0.0, 1.0] and "the last one answers" in found.how and "full strength" in found.how
    weak = ((marseille.patch.id, 0.05),)
    share, found = reliability(Taken(strengths=weak))
    assert share[1] == 0.0 and "capital-of-france-marseille 0.05" in show(found)
    *_, grown = measured(
        workshop, "retention", (marseille, nantes), "auto", Stop(), Taken("float32", "pin", pins, weak)
    )
    assert [step["first"] for step in grown.data["steps"]] == [0.0, 0.0]  # what is pinned is not yet on after the first


def test_it_is_measured_at_the_precision_of_the_first_tab(shared, two):
    pytest.importorskip("bitsandbytes")
    found = list(measured(shared, "before and after", two[:1], "auto", Stop(), Taken("int8")))[-1]
    assert "Measured at precision int8" in found.how


def test_what_is_switched_off_is_not_taken_from_the_stack(shared):
    built = page.build(shared)
    taken = [fn for fn in built.fns.values() if fn.name == "on_mine"]
    assert len(taken) == 2
    for fn in taken:
        assert fn.fn(["a", "b"], {"a": Tuned(on=False)}).value == ["b"]


def test_it_is_bounded_and_stopped(shared, two, monkeypatch):
    with pytest.raises(KeditError, match="no suite 'x'"):
        next(measured(shared, "x", two, "auto", Stop()))
    with pytest.raises(KeditError, match="No patch is chosen"):
        next(measured(shared, "drift", [], "auto", Stop()))
    with pytest.raises(KeditError, match="Stopped"):
        list(measured(shared, "retention", two, "auto", Stop(own=True)))
    monkeypatch.setattr(measure_tab, "MAX_EDITS", 1)
    with pytest.raises(LimitError, match="2 edits"):
        next(measured(shared, "drift", two, "auto", Stop()))


def test_the_tab_tells_in_the_end_and_offers_the_numbers(shared):
    on_measure = handler(page.build(shared), "on_measure")
    keys = [shared.samples[0].patch.id]
    as_on_try = ({keys[0]: Tuned(0.5)}, "float32", "error", [])
    *_, (shown, download) = on_measure("before and after", keys, (), "auto", Stop(), *as_on_try)
    assert "at strengths other than 1&#58; paris 0.5" in shown and download.visible and download.value
    ((shown, download),) = list(on_measure("drift", [], (), "auto", Stop(), *as_on_try))
    assert "note error" in shown and download.visible is False


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_plot_with_a_hostile_name_is_well_formed(hostile):
    svg = standing_alone(lines(hostile, [Series(hostile, 0, (Point(1, 0.5), Point(2, 0.7)))]), hostile)
    parsed = list(ElementTree.fromstring(svg).iter())
    tags = {element.tag.rpartition("}")[2] for element in parsed}
    assert tags <= {
        "svg",
        "style",
        "rect",
        "text",
        "title",
        "desc",
        "line",
        "polyline",
        "path",
        "polygon",
        "circle",
        "g",
    }
    assert not {name for element in parsed for name in element.attrib if "href" in name or name.startswith("on")}


def test_what_contradicts_is_seen_to_be_forgotten():
    """A, then B that says otherwise: A's edits are kept after the first step and lost after the second."""
    held = {one.name: one for one in sample_patches(ROOT / "patches")}
    two = [held["capital-of-france-nantes"], held["capital-of-france-marseille"]]
    steps = list(measured(Workshop(embedded_bases(), two), "retention", two, "gated", Stop()))[-1].data["steps"]
    assert [(step["reliability"], step["first"], step["before"]) for step in steps] == [
        (1.0, 1.0, 0.0),
        (0.5, 0.0, 0.0),
    ]
