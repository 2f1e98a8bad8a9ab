"""Runs of strangers: whatever they write is text, in the page, in its data block and in the Markdown; and the page asks nobody."""

import base64
import hashlib
import json
import re

import pytest

from kedit_hub.evaluate.report import write_report
from kedit_hub.evaluate.report.cells import Survey
from kedit_hub.evaluate.report.page import page
from kedit_hub.evaluate.report.text import escape, island, visible
from kedit_hub.evaluate.report.write import report
from kedit_hub.evaluate.scores import EditOutcome, Outcome
from tests.evaluate.report_runs import make_run
from tests.evaluate.test_report import Reader

HOSTILE = (
    (
        "<script>alert('script')</script><img src=x onerror=alert(1)>\"'><!-- </noscript></style></textarea> & &lt; ]]> "
        "[x](javascript:alert(1)) ![y](http://evil.example/p.png) | `a` \u202egnihtyna\u2066 \x00\x1b[31m \ud83d\ude00 ${1} {{2}}"
    )
    .encode("utf-16", "surrogatepass")
    .decode("utf-16")
)


def hostile_runs():
    plain = {"generate": 1.0, HOSTILE: 0.5}
    questions = [
        Outcome(role, HOSTILE if role == "locality" else "", HOSTILE, HOSTILE, HOSTILE, HOSTILE, True, plain, plain,
                {"generate": HOSTILE} if role == "locality" else {})
        for role in ("reliability", "generalization", "locality")
    ]  # fmt: skip
    run = make_run("rome", 2, per_edit=[EditOutcome(HOSTILE, HOSTILE, questions)], protocols=("generate", HOSTILE))
    sheet = {
        **run.scores,
        "environment": {HOSTILE: HOSTILE},
        "specificity": {HOSTILE: {HOSTILE: 0.5}},
        "drift": {"kl": 0.1, "texts_sha256": HOSTILE, "tokens": HOSTILE},
    }
    return [run.model_copy(update={"scores": sheet, "settings": {"note": HOSTILE}})]


@pytest.fixture(scope="module")
def files():
    return {name: data.decode() for name, data in report(hostile_runs(), HOSTILE).items()}


def harmless(html):
    """Only the elements and attributes that the report writes itself."""
    reader = Reader(html)
    tags = {tag for tag, _, _ in reader.attributes}
    assert not tags & {"img", "iframe", "link", "object", "embed", "base", "form", "image", "use", "foreignobject"}
    for tag, name, value in reader.attributes:
        assert not name.startswith("on") and name not in ("src", "style", "xlink:href", "action", "srcset"), (tag, name)
        assert name != "href" or re.fullmatch(r"#[a-z]+", value)
    assert html.lower().count("<script") == 2 and html.lower().count("<style") == 1
    return reader


def test_no_text_becomes_markup(files):
    html = files["report.html"]
    harmless(html)
    assert "<img" not in html and "<script>alert" not in html and "\u202e" not in html and "\x1b" not in html
    assert "&lt;script&gt;alert(&#x27;script&#x27;)" in html and "U+202E" in html


def test_every_place_of_a_run_is_inert():
    """The same for values that no strict run may hold: the page reads what it is given."""
    (run,) = hostile_runs()
    value = run.to_dict()
    value |= {"method": HOSTILE, "mode": HOSTILE, "suite": HOSTILE, "seed": HOSTILE, "order_seed": HOSTILE}
    value |= {"base": dict.fromkeys(("id", "revision", "dtype", "quantization", "fingerprint"), HOSTILE)}
    value |= {"dataset": dict.fromkeys(("id", "revision", "split", "sha256", "edits_sha256"), HOSTILE)}
    value |= {"retention": {HOSTILE: 0.5}, "efficiency": {HOSTILE: 1, "edit_cpu_s": 1.0}}
    value |= {"provenance": {"commit": HOSTILE, "versions": {HOSTILE: HOSTILE}}}
    others = [{**value, "method": HOSTILE + "2", "n": 3}, {**value, "n": 30}]
    harmless(page(Survey.of([value, *others]), HOSTILE))


def test_the_data_block_is_json_and_ends_where_it_should(files):
    data = files["report.html"].split('id="edits-data">')[1].split("</script>")[0]
    assert not set("<>&") & set(data)
    block = json.loads(data)
    assert visible(HOSTILE) in block["texts"] and block["cells"][0]["protocols"] == ["generate", visible(HOSTILE)]


def test_the_page_may_load_nothing(files):
    html = files["report.html"]
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'" and "unsafe" not in policy
    for kind in ("style", "script"):
        (inner,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert parts[f"{kind}-src"] == f"'sha256-{digest}'"
        assert "url(" not in inner and "@import" not in inner and "http" not in inner and "fetch" not in inner


def test_no_text_becomes_markdown(files):
    text = files["report.md"]
    assert not set(text) & set("<>\u202e\x1b\x00") and "](" not in text and "`" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_escape_and_island():
    assert escape('<a b="c">\u202e\n&\'') == "&lt;a b=&quot;c&quot;&gt;U+202E &amp;&#x27;"
    assert escape("x" * 400) == "x" * 300 + "…" and escape(3) == "3"
    text = "</script><!--\u2028&"
    assert json.loads(island([text])) == [text] and not set("<>&") & set(island([text]))


def test_written_as_utf_8(tmp_path):
    folder = write_report(hostile_runs(), tmp_path / "r", title="Prüfung 評価")
    assert "Prüfung 評価" in (folder / "report.html").read_bytes().decode("utf-8")
