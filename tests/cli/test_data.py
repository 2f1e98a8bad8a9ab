"""`kedit data list` and `kedit data show`: what is known, what is in a file, and what of it was rejected."""

import json
from pathlib import Path

import kedit_hub
from kedit_hub import demo
from kedit_hub.hub.catalogue import DATASETS

from .conftest import kedit, refused

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


def test_list():
    told = kedit("data", "list")
    assert told.code == 0 and all(name in told.out for name in DATASETS)
    listed = kedit("data", "list", "--json").json
    assert [one["name"] for one in listed] == list(DATASETS)
    [recent] = [one for one in listed if one["name"] == "knowedit-recent"]
    assert recent["hub"] == "zjunlp/KnowEdit" and recent["splits"] == ["test", "train"] and recent["licence"] == "MIT"


def test_show_counts_what_is_in_a_file_and_names_what_is_rejected():
    done = kedit("data", "show", RECORDS / "knowedit-recent.json", "--n", 1, "--json")
    assert done.code == 0
    told = done.json
    assert told["records"] == 3 and len(told["sha256"]) == 64 and told["id"] == "knowedit-recent.json"
    assert told["counts"] == {
        "edits": 2,
        "rejected": 1,
        "shapes": {"easyedit": 2},
        "with a subject": 2,
        "with an old answer": 0,
        "rephrases": 2,
        "locality": {"same_subject": 2},
        "portability": {"Logical_Generalization": 1, "alias": 1, "one_hop": 1},
        "probes with aliases": 4,
        "portability without an answer, left out": 1,
        "groups of edits": 0,
        "prompts for fluency and consistency": 0,
        "replies": 0,
    }
    [rejected] = told["rejected"]
    assert rejected["where"] == "record 2" and "locality is 'none'" in rejected["reason"]
    assert [edit["prompt"] for edit in told["edits"]] == ["The place of death of Orrin Vale is"]


def test_show_for_people():
    told = kedit("data", "show", RECORDS / "knowedit-recent.json")
    assert told.code == 0
    assert "no | incorrect | is dead" in told.out and "easyedit" in told.out and "record 2" in told.out
    few = kedit("data", "show", RECORDS / "counterfact.json", "--n", 0, "--limit", 1)
    assert "Brinmoor" not in few.out and "rejected" in few.out


def test_a_strangers_text_does_not_drive_the_terminal(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"prompt": "The capital\u202e of\x1b[31m Norland is", "target_new": "Pell"}]))
    told = kedit("data", "show", path)
    assert told.code == 0 and "Pell" in told.out and "\x1b" not in told.out and "\u202e" not in told.out


def test_many_rejected_records_are_counted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "nothing"}] * 25))
    told = kedit("data", "show", path)
    assert told.code == 0 and "and 5 more rejected records" in told.err
    assert len(kedit("data", "show", path, "--json").json["rejected"]) == 25


def test_refusals(tmp_path):
    refused(kedit("data", "show", "nothing"), "No data set and no file is called 'nothing'")
    refused(kedit("data", "show", "rippleedits"), "Fetch it from")
    refused(kedit("data", "show", tmp_path / "none.json"), "none.json")
    assert kedit("data", "show", RECORDS / "unke.json", "--n", "many").code == 2


def test_dafset_of_a_table_is_a_folder_of_records_and_plots(tmp_path):
    table = tmp_path / "t.csv"
    rows = [f"Land{i},capital,City{i},2024-01-{i + 10},{i}" for i in range(20)]
    table.write_text("\n".join(["subject,relation,object,changed,frequency", *rows]) + "\n")
    asked = ("--from", table, "--out", tmp_path / "set", "--share", "0.2", "--base", "kedit-hub/atlas-llama")
    told = kedit("data", "dafset", *asked, "--json").json
    assert told["triples"] == 20 and told["files"] == sorted(file.name for file in (tmp_path / "set").iterdir())
    groups = {one["group"]: one for one in told["groups"]}
    assert [groups[name]["triples"] for name in ("recent", "popular", "robust")] == [4, 4, 4]
    assert 4 <= groups["long_tail"]["triples"] <= 8 and 0 < groups["all"]["median likelihood"] < 0.1
    assert {"recent.json", "popular.json", "robust.json", "frequency.svg", "likelihood.svg"} <= set(told["files"])
    newest = json.loads((tmp_path / "set" / "recent.json").read_text())
    assert [one["subject"] for one in newest] == ["Land19", "Land18", "Land17", "Land16"]
    assert newest[0]["prompt"] == "The capital of Land19 is" and newest[0]["target_new"] != "City19"
    assert (tmp_path / "set" / "frequency.svg").read_text().startswith("<svg xmlns")
    shown = kedit("data", "show", tmp_path / "set" / "robust.json", "--json").json
    assert shown["counts"]["shapes"] == {"dafset-robust": 4} and not shown["rejected"]
    refused(kedit("data", "dafset", "--from", table, "--out", tmp_path / "set"), "exists")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_dafset_of_the_demo_world(tmp_path):
    told = kedit("data", "dafset", "--out", tmp_path / "set", "--json").json
    rows = {one["group"]: one for one in told["groups"]}
    assert rows["long_tail"]["median frequency"] < rows["all"]["median frequency"] < rows["popular"]["median frequency"]
    assert rows["recent"]["triples"] == round(0.1 * told["triples"])
    test = {edit.subject for edit in demo.edits("test")}
    for group in ("recent", "popular", "long_tail", "robust"):
        records = json.loads((tmp_path / "set" / f"{group}.json").read_text())
        assert records and not test & {record["subject"] for record in records}
        edits = kedit_hub.read_edits(tmp_path / "set" / f"{group}.json")
        assert not {edit.prompt for edit in demo.edits("test")} & {
            q for e in edits for q in (e.prompt, *(p.prompt for p in e.locality))
        }


def test_dafset_uses_phrasings_or_says_why_not(tmp_path):
    table, given = tmp_path / "t.csv", tmp_path / "phrasings.json"
    rows = [f"City{i},country,Land{i}\nLand{i},currency,coin{i}" for i in range(20)]
    table.write_text("\n".join(["subject,relation,object", *rows]) + "\n")
    asked = ("data", "dafset", "--from", table, "--phrasings", given, "--out", tmp_path / "set")
    for phrasings, *said in (
        ({"country": ["{} lies in"]}, "'country'", "two or more"),
        ({"contry": ["{} lies in", "{} is part of"]}, "'contry'", "'country', 'currency'"),
    ):
        given.write_text(json.dumps(phrasings))
        refused(kedit(*asked), *said)
    given.write_text(json.dumps({"country": ["{} lies in", "{} is part of"]}))
    done = kedit(*asked)
    assert done.code == 0 and "no phrasings of 'currency': 'The RELATION of {} is' stands in" in done.err
    prompts = {one["prompt"] for one in json.loads((tmp_path / "set" / "popular.json").read_text())}
    assert prompts and all(" lies in" in prompt or prompt.startswith("The currency of") for prompt in prompts)


def test_dafset_without_a_record_is_refused_and_its_hint_names_a_file(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("subject,relation,object\nLand0,capital,City0\n")
    refused(kedit("data", "dafset", "--from", table, "--out", tmp_path / "set"), "no group has a record")
    assert not (tmp_path / "set").exists()
    # the rarest have one object in their relation and cannot be changed: no long tail
    rows = [f"Land{i},capital,City{i},9\nLand{i},twin,Land{i + 20},9" for i in range(10)]
    table.write_text("\n".join(["subject,relation,object,frequency", *rows, "Odd,motto,none,1", "Odd,anthem,hum,1"]))
    done = kedit("data", "dafset", "--from", table, "--out", tmp_path / "set", "--share", "0.05")
    assert done.code == 0 and not (tmp_path / "set" / "long_tail.json").exists()
    [named] = [word for word in done.err.split() if word.endswith(".json")]
    assert json.loads(Path(named).read_text())


def test_dafset_names_a_table_in_another_encoding(tmp_path):
    table = tmp_path / "t.csv"
    table.write_bytes("subject,relation,object\nMünchen,country,Germany\n".encode("latin-1"))
    refused(kedit("data", "dafset", "--from", table, "--out", tmp_path / "set"), "t.csv", "not UTF-8")
