"""The report says what the runs say: every number, every warning, every file."""

import json
import os
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_hub.errors import KeditError
from kedit_hub.evaluate.report import write_report
from kedit_hub.evaluate.report.cells import Stat, Survey, summary
from kedit_hub.evaluate.report.drill import asked
from kedit_hub.evaluate.report.notes import left_out, warnings
from kedit_hub.evaluate.report.page import page
from kedit_hub.evaluate.report.tables import Number, best_of, mirage_table, shown, survey_table
from kedit_hub.evaluate.report.write import report
from kedit_hub.evaluate.run import Run
from kedit_hub.evaluate.scores import EDITED_ON_PURPOSE, NOT_KNOWN
from tests.evaluate.report_runs import make_run, many

ALL = ("tf-token", "generate", "nll-pair", "choice")


class Reader(HTMLParser):
    """The tables of a page by caption, its attributes, and whether its elements nest."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.attributes, self.ids, self.stack = [], [], [], []
        self.texts = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "input", "br"):
            self.stack.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append([dict(attributes).get("data-value"), ""])

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self.stack:
            self.tables[-1]["caption"] += data
        elif {"th", "td"} & set(self.stack[-4:]):
            self.tables[-1]["rows"][-1][-1][1] += data


def told(runs):
    return Survey.of([run.to_dict() for run in runs])


def html(runs):
    return page(told(runs), "title")


def test_every_average_of_the_tables_is_the_run_s():
    runs = [make_run(method, 40, suite="single", protocols=ALL) for method in ("rome", "memit")]
    tables = {table["caption"]: table["rows"] for table in Reader(html(runs)).tables}
    for protocol in ALL:
        head, *rows = tables[f"{protocol}, n = 40"]
        names = [text for _, text in head]
        assert [row[0][1] for row in rows] == ["rome", "memit"]
        for run, row in zip(runs, rows):
            sheet = run.scores["protocols"][protocol]
            expected = {role: sheet[role] for role in ("reliability", "generalization")}
            expected |= {
                f"{role} {kind}": value for role in ("locality", "portability") for kind, value in sheet[role].items()
            }
            for name, value in expected.items():
                cell, text = row[names.index(name)]
                assert float(cell) == value and text.startswith(f"{value:.3f}")
            low, high = sheet["interval"]["reliability"]
            assert f"{low:.3f} to {high:.3f}" in row[names.index("reliability")][1]
            assert float(row[names.index("score")][0]) == sheet["score"]


def test_drift_fluency_retention_and_cost_are_the_run_s():
    run = make_run("memit", 10)
    tables = {table["caption"]: table["rows"] for table in Reader(html([run])).tables}
    head, row = tables["Damage beside the facts"]
    values = dict(zip([text for _, text in head], [cell for cell, _ in row]))
    assert float(values["perplexity, edited"]) == run.scores["drift"]["ppl_after"]
    assert float(values["KL per token (nats)"]) == run.scores["drift"]["kl"]
    assert float(values["fluency, edited (bits)"]) == run.scores["fluency"]["after"]
    assert float(values["first 10 retained"]) == run.retention["10"]
    head, row = tables["Cost"]
    values = dict(zip([text for _, text in head], [cell for cell, _ in row]))
    assert float(values["wall time per edit"]) == run.efficiency.edit_wall_s
    assert float(values["artifact"]) == run.efficiency.artifact_bytes


def test_two_protocols_never_share_a_table_of_averages():
    runs = many(methods=("rome", "mend"), protocols=ALL)
    survey = told(runs)
    for comparison in survey.comparisons:
        for protocol in ALL:
            rows = survey.rows(comparison)
            table = survey_table(rows, comparison, protocol)
            for row, (label, entries) in zip(rows, table.rows):
                assert label == row.label
                own = row.cells[0].metrics(protocol)
                assert [e and e.value for e in entries] == [own[n].value if n in own else None for n in table.heads[1:]]


def test_another_base_or_data_set_never_shares_a_table():
    runs = [
        make_run("rome", 10),
        make_run("memit", 10, base={**make_run().base.model_dump(), "revision": "d" * 40}),
        make_run("mend", 10, dataset={"id": "example/twin-cities", "sha256": "e" * 64, "split": "test"}),
    ]
    survey = told(runs)
    assert [[row.label for row in survey.rows(c)] for c in survey.comparisons] == [["rome"], ["memit"], ["mend"]]


def test_seeds_are_averaged_and_ways_are_not():
    runs = [make_run("rome", 30, seed=seed) for seed in range(3)]
    runs += [make_run("rome", 30, mode="sum"), make_run("rome", 30, settings={"layers": "5"}, mode="sum")]
    survey = told(runs)
    (comparison,) = survey.comparisons
    first, *others = survey.rows(comparison)
    values = [run.scores["protocols"]["generate"]["reliability"] for run in runs[:3]]
    found = first.metrics("generate")["reliability"]
    assert found.seeds == 3 and found.mean == pytest.approx(sum(values) / 3)
    assert found.sd == pytest.approx((sum((v - found.mean) ** 2 for v in values) / 2) ** 0.5)
    assert len(others) == 2 and len({row.label for row in [first, *others]}) == 3
    assert "gated" in first.label and "sum" in others[0].label


def test_the_last_of_equal_runs_counts():
    early, late = make_run("rome", 30), make_run("memit", 30).model_copy(update={"method": "rome"})
    survey = told([early, late])
    (row,) = survey.rows(survey.comparisons[0])
    assert row.metrics("generate")["reliability"].mean == late.scores["protocols"]["generate"]["reliability"]
    assert any("last one counts" in warning for warning in warnings(survey))


def test_protocols_asked_apart_come_together():
    survey = told([make_run("rome", 30, protocols=("tf-token",)), make_run("rome", 30, protocols=("generate",))])
    (row,) = survey.rows(survey.comparisons[0])
    assert row.protocols == ["tf-token", "generate"] and len(row.seeds) == 1
    assert mirage_table(survey, survey.comparisons[0].base, survey.comparisons[0].dataset) is not None


def entry(value, low, high, edits=100):
    return Number(value, "share", low, high, edits=edits)


@pytest.mark.parametrize(
    ("column", "best"),
    [
        ([entry(0.9, 0.8, 0.95), entry(0.5, 0.4, 0.6)], [True, False]),
        ([entry(0.9, 0.8, 0.95), entry(0.7, 0.6, 0.8)], [False, False]),  # touching
        (
            [entry(0.9, 0.8, 0.95), entry(0.5, 0.4, 0.6), entry(0.4, 0.0, 0.9)],
            [False] * 3,
        ),  # not the next, but the wide third
        ([entry(0.9, 0.8, 0.95, 10), entry(0.5, 0.4, 0.6)], [False, False]),  # too few edits
        ([entry(0.9, 0.8, 0.95), Number(0.5, "share")], [False, False]),  # no interval
        ([entry(0.9, 0.8, 0.95), None], [False, None]),
        ([], []),
    ],
)
def test_best_only_where_no_interval_overlaps(column, best):
    assert [found and found.best for found in best_of(column)] == best


def test_the_interval_of_several_seeds_is_the_widest():
    found = summary([Stat(0.5, 0.4, 0.6), Stat(0.7, 0.65, 0.75), Stat(None)])
    assert (found.mean, found.seeds) == (0.6, 2) and found.low == 0.4 and found.high == 0.75
    assert summary([Stat(0.5, 0.4, 0.6), Stat(0.5)]).low is None and summary([Stat(None)]) is None


def test_the_mirage():
    run = make_run("grace", 40)
    survey = told([run])
    table = mirage_table(survey, survey.comparisons[0].base, survey.comparisons[0].dataset)
    sheets = run.scores["protocols"]
    label, entries = table.rows[0]
    row = dict(zip(table.heads[1:], entries))
    forced, generated = sheets["tf-token"]["reliability"], sheets["generate"]["reliability"]
    assert (label, row["tf-token"].value, row["generate"].value) == ("grace", forced, generated)
    assert row["generate minus tf-token"].value == generated - forced < -0.5
    assert row["generated answer contains it"].value == sheets["generate"]["contains"]["reliability"]


# --- warnings -----------------------------------------------------------------------------------------------------


def said(runs):
    return "\n".join(warnings(told(runs)))


def test_warnings_only_where_they_apply():
    sure = [make_run("kedit", 60, seed=seed, verified=True) for seed in range(2)]
    assert said(sure) == ""
    assert "One seed only in 1 of 1" in said(sure[:1])
    assert "Few edits: n = 3" in said([make_run("kedit", 3)]) and "Few edits" not in said(sure)
    assert "Never generated" in said([make_run("kedit", 60, protocols=("tf-token",))])
    assert "Claims: 1 of 1" in said([make_run("kedit", 60)])
    assert "Changed source" in said([make_run("kedit", 60, provenance={"commit": "c" * 40, "dirty": True})])
    other = make_run("kedit", 60, seed=1, provenance={"commit": "c" * 40, "versions": {"torch": "2.12.0"}})
    assert "torch 2.12.0 and 2.13.0" in said([sure[0], other])
    assert "Intervals overlap" in said([make_run("rome", 20), make_run("memit", 20)])


def test_a_dead_model_is_named():
    dead = make_run("grace", 60, protocols=("generate", "nll-pair"))
    assert "Perhaps dead: grace" in said([dead])
    assert "Perhaps dead" not in said([make_run("kedit", 60, protocols=("generate", "nll-pair"))])


def test_methods_that_were_given_other_edits_are_named():
    def given(method, digest):
        return make_run(method, 30, dataset={"id": "a/b", "edits_sha256": digest * 64})

    assert "Other edits" in said([given("rome", "1"), given("memit", "2")])
    assert "Other edits" not in said([given("rome", "1"), given("memit", "1")])


def test_edits_that_could_not_be_made_are_named():
    run = make_run("rome", 30)
    failed = run.model_copy(update={"scores": {**run.scores, "making": {"failed": 4}}})
    assert "could not make 4 edits" in said([failed])


def test_what_was_left_out_is_counted():
    run = make_run("rome", 40, protocols=("generate",))
    dropped = {EDITED_ON_PURPOSE: 0, NOT_KNOWN: 0}
    for edit in run.per_edit:
        for question in asked(edit):
            for reason in question["dropped"].values():
                dropped[reason] += 1
    assert dict((reason, n) for _, reason, n in left_out(told([run]))) == dropped and min(dropped.values()) > 0


# --- any runs -----------------------------------------------------------------------------------------------------

POOL = [
    *many(methods=("rome", "grace"), ns=(1, 10), protocols=("tf-token", "generate"), keep=False),
    make_run("rome", 1, suite="single", protocols=("nll-pair",)),
    make_run("memit", 2, suite="stack", protocols=()),
    make_run("memit", 5, suite="stack", protocols=("choice", "tf-token"), per_edit=[]),
    make_run("mend", 4, suite="quantization", mode="-", retention={}, settings={}, provenance={}),
    make_run("ft-m", 3, scores={"protocols": {"generate": {}}, "drift": {}}, per_edit=[]),
    make_run("ft-m", 3, scores={"protocols": {"odd": {"reliability": None, "n": []}}, "drift": {"kl": None}}, per_edit=[]),
]  # fmt: skip
ODD = [{}, {"scores": 3}, {"scores": {"protocols": {"generate": {"locality": 1, "interval": {"reliability": [1]}}}}, "per_edit": [{}, 3]},
       {"per_edit": [{"prompt": 3, "contains": [], "scores": {"a": "b"}, "dropped": 3, "probes": [{"kind": {}}]}], "n": 3,
        "scores": {"protocols": {"a": {"score": 1}}}}]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=8))
def test_any_runs_give_a_report(runs):
    files = report(runs, "title")
    reader = Reader(files["report.html"].decode())
    assert len(reader.ids) == len(set(reader.ids))
    assert files["report.md"].decode().startswith("# title")
    assert [Run.parse(json.dumps(run).encode()) for run in json.loads(files["report.json"])["runs"]] == runs
    assert "nan" not in "".join(
        value or "" for tag, name, value in reader.attributes if tag in ("circle", "line", "rect", "polyline")
    )


@pytest.mark.parametrize("run", ODD)
def test_odd_values_are_passed_over(run):
    Reader(page(Survey.of([run]), "title"))


def test_equal_runs_give_equal_bytes():
    runs = many(methods=("rome", "mend"))
    assert report(runs, "t") == report([Run.parse(run.to_bytes()) for run in runs], "t")


def test_the_markdown_has_the_same_averages():
    run = make_run("rome", 40, suite="single")
    text = report([run], "t")["report.md"].decode()
    reliability = run.scores["protocols"]["generate"]["reliability"]
    row = next(line for line in text.split("#### generate")[1].splitlines() if line.startswith("| rome"))
    assert row.split("|")[2].strip().startswith(f"{reliability:.3f} (")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count(" | ") for line in block.splitlines()}) == 1


def test_a_report_on_many_edits_is_quick_and_small(monkeypatch):
    """The size is bounded whatever the runs hold; what does not fit is said."""
    monkeypatch.setattr("kedit_hub.evaluate.report.drill.MAX_ISLAND_BYTES", 60_000)
    text = html([make_run(method, 300, protocols=("generate",)) for method in ("rome", "memit")])
    data = text.split('id="edits-data">')[1].split("</script>")[0]
    assert len(data.encode()) <= 60_000
    shown_edits = len(json.loads(data)["cells"][0]["edits"])
    assert 0 < shown_edits < 300 and f"the first {shown_edits:,} edits of each run" in text


def test_the_island_holds_every_outcome():
    run = make_run("rome", 20)
    block = json.loads(html([run]).split('id="edits-data">')[1].split("</script>")[0])
    texts, (cell,) = [*block["texts"], None], block["cells"]  # -1 is none
    assert cell["of"] == 20 and cell["protocols"] == ["tf-token", "generate"]
    for record, (identity, questions) in zip(run.per_edit, cell["edits"], strict=True):
        assert texts[identity] == record["id"]
        for question, (at, answer, contains, scores, *reasons) in zip(asked(record), questions, strict=True):
            role, kind, prompt, target, before, _ = block["questions"][at]
            assert [texts[i] for i in (role, prompt, target, before)] == [
                question[name] for name in ("role", "prompt", "target", "answer_before")
            ]
            assert (texts[kind] or "") == question["kind"] and texts[answer] == question["answer_after"]
            assert contains == question["contains"] and scores == [question["scores"][p] for p in cell["protocols"]]
            dropped = [texts[i] for i in reasons[0]] if reasons else [None, None]
            assert dropped == [question["dropped"].get(protocol) for protocol in cell["protocols"]]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5, "share", "0.500"), (1234, "count", "1,234"), (0.0123, "seconds", "12.3 ms"), (0, "seconds", "0 s"),
        (4.86, "seconds", "4.86 s"), (5000, "seconds", "5,000 s"), (0, "bytes", "0 B"), (1536, "bytes", "1.5 KiB"),
        (1010 << 20, "bytes", "1,010 MiB"), (12.345, "number", "12.3"), (12345.6, "number", "12,346"), (1.5e9, "number", "1.50e+09"),
    ],
)  # fmt: skip
def test_how_numbers_are_written(value, unit, text):
    assert shown(value, unit) == text


# --- the folder ---------------------------------------------------------------------------------------------------


def test_the_folder(tmp_path):
    folder = write_report([make_run()], tmp_path / "a" / "b")
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "report.json"}
    write_report([make_run("memit")], folder, title="Again")
    assert "Again" in (folder / "report.md").read_text() and os.listdir(tmp_path / "a") == ["b"]


def test_other_folders_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(KeditError, match="is not the folder of a report"):
        write_report([make_run()], tmp_path)
    with pytest.raises(KeditError, match="is a file or a link"):
        write_report([make_run()], tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(KeditError, match="is a file or a link"):
        write_report([make_run()], tmp_path / "link")
    with pytest.raises(KeditError, match="no runs"):
        write_report([], tmp_path / "new")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(KeditError, match="the folder you are in"):
        write_report([make_run()], ".")
    (tmp_path / "here").rmdir()
    assert sorted(os.listdir(tmp_path)) == ["link", "mine"]


def test_a_failing_disk_leaves_the_old_report(tmp_path, monkeypatch):
    folder = write_report([make_run()], tmp_path / "r")
    before = (folder / "report.json").read_bytes()
    rename, calls = os.rename, []

    def failing(a, b):
        calls.append(a)
        if len(calls) == 2:  # the new report, after the old one was put aside
            raise OSError(28, "No space left on device")
        rename(a, b)

    monkeypatch.setattr("kedit_hub.patch.folder._exchange", lambda a, b: False)  # as on a system that only renames
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeditError, match="No space left"):
        write_report([make_run("memit")], folder)
    assert (folder / "report.json").read_bytes() == before and os.listdir(tmp_path) == ["r"]


# --- beside the protocols -----------------------------------------------------------------------------------------


def test_further_measures_and_the_settings_an_editor_used():
    run = make_run("rome", 30, protocols=("choice",))
    choice = {**run.scores["protocols"]["choice"], "chance": {"reliability": 0.125}}
    sheet = {
        **run.scores,
        "protocols": {"choice": choice},
        "negations": {"negated": {"before": 0.0, "after": 0.75, "n": 30}},
        "consistency": None,
        "making": {"failed": 0, "settings": {"value.steps": 40}},
    }
    tables = {t["caption"]: t["rows"] for t in Reader(html([run.model_copy(update={"scores": sheet})])).tables}
    assert [cell for cell, _ in tables["Further measures"][1][1:]] == ["0.0", "0.75"]
    head, row = tables["choice, n = 30"]
    assert row[[text for _, text in head].index("reliability by chance")][0] == "0.125"
    (used,) = [rows for caption, rows in tables.items() if caption.startswith("settings ")]
    assert ["used: value.steps", "40"] in [[text for _, text in row] for row in used]
