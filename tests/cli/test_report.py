import pytest

from tests.cli.conftest import kedit, refused
from tests.evaluate.report_runs import make_run


@pytest.fixture
def results(tmp_path):
    files = []
    for name, method in (("a", "rome"), ("b", "mend")):
        file = tmp_path / f"{name}.jsonl"
        file.write_bytes(b"".join(make_run(method, n).to_bytes() + b"\n" for n in (1, 10)))
        files.append(file)
    return files


def test_report(tmp_path, results):
    done = kedit("report", *results, "--out", tmp_path / "r", "--title", "Two editors", "--json")
    assert done.code == 0 and done.err == ""
    assert done.json["runs"] == 4 and done.json["folder"] == str(tmp_path / "r")
    assert done.json["files"] == {path.name: path.stat().st_size for path in (tmp_path / "r").iterdir()}
    text = (tmp_path / "r" / "report.md").read_text()
    assert text.startswith("# Two editors") and "rome" in text and "mend" in text


def test_for_people(tmp_path, results):
    out = kedit("report", *results, "--out", tmp_path / "r").out
    assert "runs" in out and "report.html" in out and "bytes" in out


def test_half_a_run_at_the_end_is_told(tmp_path, results):
    with results[0].open("ab") as file:
        file.write(b'{"kedit_run":1,"sui')
    done = kedit("report", results[0], "--out", tmp_path / "r", "--json")
    assert done.json["runs"] == 2 and "19 bytes" in done.err


def test_refusals(tmp_path, results):
    refused(kedit("report", tmp_path / "none.jsonl", "--out", tmp_path / "r"), "none.jsonl", "kedit bench")
    (tmp_path / "odd.jsonl").write_text("{}\n")
    refused(kedit("report", tmp_path / "odd.jsonl", "--out", tmp_path / "r"), "odd.jsonl", "line 1")
    refused(kedit("report", results[0], "--out", tmp_path), "is not the folder of a report")
    (tmp_path / "empty.jsonl").touch()
    refused(kedit("report", tmp_path / "empty.jsonl", "--out", tmp_path / "r"), "no runs")
    assert not (tmp_path / "r").exists()
