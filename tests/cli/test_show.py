from tests.cli.conftest import kedit
from tests.hub.patches import PATH, make_patch
from tests.patch.build import make_patch as make_large_patch


def test_json_tells_all(tmp_path):
    patch = make_patch()
    patch.save(tmp_path / "p")
    told = kedit("show", tmp_path / "p", "--json").json
    assert told["id"] == patch.id and told["method"] == "memit"
    assert told["base"] == {"id": "org/base", "revision": None, "model_type": "llama"}
    assert told["edits"] == [edit.to_record() for edit in patch.edits]
    assert told["modules"] == [
        {"module": PATH, "kind": "lowrank", "shape": [3, 4], "site": None, "bytes": 28, "rank": 1, "flops": 14}
    ]
    assert told["scores"] == {"protocols": {"generate": {"reliability": 1.0}}}


def test_for_people(tmp_path):
    make_patch().save(tmp_path / "p")
    done = kedit("show", tmp_path / "p")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["generate", "reliability", "1.000"] in lines
    assert [PATH, "lowrank", "3", "x", "4", "-", "28", "1", "14"] in lines
    assert done.err == ""


def test_without_scores_it_says_how_to_get_some(tmp_path):
    make_patch(scores=False).save(tmp_path / "p")
    assert "kedit eval" in kedit("show", tmp_path / "p").err
    assert kedit("show", tmp_path / "p", "--json").json["scores"] == {}


def test_many_edits_are_counted_for_people_and_listed_for_programs(tmp_path):
    from kedit_hub.edits import Edit

    edits = [Edit(f"City {i} lies in", "Rome", f"City {i}") for i in range(50)]
    make_large_patch(edits=edits).save(tmp_path / "p")
    shown = kedit("show", tmp_path / "p").out
    assert "City 19 lies in" in shown and "City 20 lies in" not in shown and "and 30 more" in shown
    assert len(kedit("show", tmp_path / "p", "--json").json["edits"]) == 50


def test_long_lines_are_not_cut_in_a_pipe(tmp_path):
    make_patch("R" * 500).save(tmp_path / "p")
    assert "R" * 500 in kedit("show", tmp_path / "p").out
