"""DAFSet from triples: who is in which group, counted by hand, and records that the readers of the published form take."""

import json
import time

import pytest

from kedit_hub.errors import EditError
from kedit_hub.records import dafset
from kedit_hub.records.dafset import GROUPS, SENTIMENT, Table, Triple, distributions, read_triples
from kedit_hub.records.read import read_records

CAPITALS = {"Ada": "Pell", "Bor": "Quin", "Cym": "Rost", "Dun": "Sarn", "Eld": "Tove", "Fen": "Ulm"}
TRIPLES = [
    *(Triple(s, "capital", o, f"2024-01-{10 + i}", 10 * (i + 1)) for i, (s, o) in enumerate(CAPITALS.items())),
    Triple("Ada", "currency", "mark", "2023-05-01", 10),
    Triple("Bor", "currency", "crown", None, 20),
    Triple("Pell", "country", "Ada", None, 3),
    Triple("Quin", "country", "Bor", None, 4),
]
PHRASINGS = {"capital": ("The capital of {} is", "{} has its capital in")}


def test_measures_are_counts_of_the_table() -> None:
    table = Table(TRIPLES)
    ada, pell = table.measures[0], table.measures[8]
    assert (ada.frequency, ada.out_degree, ada.in_degree) == (10, 2, 1)
    assert (pell.frequency, pell.out_degree, pell.in_degree) == (3, 1, 1)
    bare = Table([Triple(t.subject, t.relation, t.object) for t in TRIPLES])
    assert bare.measures[0].frequency == 3 and bare.measures[0].likelihood is None


def test_groups_are_the_ends_of_the_distributions() -> None:
    asked: list[tuple[str, str]] = []

    def likelihood(pairs: list[tuple[str, str]]) -> list[float]:
        asked.extend(pairs)
        return [0.01 if target == "crown" else 0.9 for _, target in pairs]

    table = Table(TRIPLES, PHRASINGS, likelihood)
    assert asked[0] == ("The capital of Ada is", "Pell") and asked[6] == ("The currency of Ada is", "mark")
    groups = table.groups(0.2)
    assert tuple(groups) == GROUPS
    assert [TRIPLES[i].subject for i in groups["recent"]] == ["Fen", "Eld"]  # the latest dates; no date is never new
    # out + in degree 1, least told first: Cym, Dun; least told: Pell, Quin; least likely: Bor's currency, then the first of the others
    assert {TRIPLES[i].key for i in groups["long_tail"]} == {
        ("Ada", "capital"), ("Cym", "capital"), ("Dun", "capital"), ("Pell", "country"), ("Quin", "country"), ("Bor", "currency"),
    }  # fmt: skip
    # Bor stands above 6, 6 and 8 of 10 (frequency 20; out degree 2; in degree 1), Ada above 4, 6, 4
    assert TRIPLES[groups["popular"][0]].subject == "Bor"
    assert len(groups["robust"]) == 2 and groups["robust"] != table.groups(0.2, seed=1)["robust"]


def test_without_dates_nothing_is_recent_and_two_forms_of_dates_are_refused() -> None:
    assert Table([Triple(s, "capital", o) for s, o in CAPITALS.items()]).groups()["recent"] == []
    with pytest.raises(EditError, match="one form"):
        Table([*TRIPLES, Triple("Gor", "capital", "Vann", 3)]).groups()


@pytest.mark.parametrize("counterfactual", [True, False])
def test_records_are_read_in_the_published_form(counterfactual: bool, tmp_path) -> None:
    table = Table(TRIPLES, PHRASINGS)
    known = {t.key: t.object for t in TRIPLES}
    for group, numbers in table.groups(0.2).items():
        records = table.records(group, numbers, counterfactual=counterfactual)
        assert records == table.records(group, numbers, counterfactual=counterfactual)
        edited = {TRIPLES[i].key for i in numbers}
        for i, record in zip(numbers, records, strict=True):
            triple = TRIPLES[i]
            assert (record["target_new"] == triple.object) is not counterfactual
            assert record["target_new"] in {t.object for t in TRIPLES if t.relation == triple.relation}
            assert (
                triple.subject in record["prompt"] and triple.subject in record["rephrase_prompt"] != record["prompt"]
            )
            kept = [t for t in TRIPLES if record["locality_prompt"] in {table.ask(t, 0)}]
            assert kept and kept[0].key not in edited and known[kept[0].key] == record["locality_ground_truth"]
            assert ("prefix" in record) is (group == "robust")
        file = tmp_path / f"{group}-{counterfactual}.json"
        file.write_text(json.dumps(records))
        shape = "dafset-robust" if group == "robust" else "counterfact"
        assert [one.shape for one in read_records(file)] == [shape] * len(numbers)
    [length, context, mood] = records[0]["prefix"]
    assert length.count(".") == 4 and context.count(".") == 1 and mood in SENTIMENT


def test_distributions_leave_out_what_nobody_measured() -> None:
    table = Table(TRIPLES)
    found = distributions(table, {"popular": [1, 7], "recent": []})
    assert set(found) == {"frequency", "out_degree", "in_degree"} and found["frequency"]["popular"] == [20.0, 20.0]
    assert found["out_degree"]["all"] == sorted(float(m.out_degree) for m in table.measures)


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", "subject,relation,object,changed,frequency\nAda,capital,Pell,2024-01-10,10\nBor,capital,Quin,,\n"),
    ("a.jsonl", '{"subject":"Ada","relation":"capital","object":"Pell","changed":"2024-01-10","frequency":10}\n'
                '{"subject":"Bor","relation":"capital","object":"Quin"}\n'),
])  # fmt: skip
def test_tables_are_read(name: str, text: str, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    assert read_triples(tmp_path / name) == [
        Triple("Ada", "capital", "Pell", "2024-01-10", 10), Triple("Bor", "capital", "Quin"),
    ]  # fmt: skip


@pytest.mark.parametrize(("column", "order"), [
    ([str(n) for n in range(1, 21)], [20, 19, 18]),
    (["1e3", "-2", "", "7.5"], [1, 4, 2]),
    (["2024", "2023-05-01", "2024-01-10"], [3, 1, 2]),  # texts, for not all are numbers
])  # fmt: skip
def test_numbers_of_a_csv_are_sorted_as_numbers(column: list[str], order: list[int], tmp_path) -> None:
    rows = [f"Land{n},capital,City{n},{changed}" for n, changed in enumerate(column, start=1)]
    (tmp_path / "a.csv").write_text("\n".join(["subject,relation,object,changed", *rows]))
    newest = Table(read_triples(tmp_path / "a.csv")).groups(0.99)["recent"]
    assert [n + 1 for n in newest][:3] == order


def test_zero_is_a_date_and_a_mark_of_byte_order_is_none(tmp_path) -> None:
    rows = [{"subject": f"Land{n}", "relation": "capital", "object": f"City{n}", "changed": n} for n in (-1, 0, 1)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [triple.changed for triple in read_triples(tmp_path / "a.json")] == [-1, 0, 1]
    (tmp_path / "a.csv").write_bytes("\ufeffsubject,relation,object\r\nAda,capital,Pell\r\n".encode())
    assert read_triples(tmp_path / "a.csv") == [Triple("Ada", "capital", "Pell")]


def test_records_are_drawn_as_from_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The views of a large table give the draws that lists of everything allowed give."""
    table = Table(TRIPLES, PHRASINGS)
    groups = table.groups(0.3)
    known = {group: table.records(group, numbers) for group, numbers in groups.items()}
    monkeypatch.setattr(dafset, "Without", lambda whole, gone: [x for n, x in enumerate(whole) if n not in set(gone)])
    assert known == {group: table.records(group, numbers) for group, numbers in groups.items()}


def test_a_large_table_takes_seconds() -> None:
    many = [Triple(f"Land{n % 9000}", f"relation{n // 9000}", f"City{n}", n) for n in range(36_000)]
    start = time.process_time()
    table = Table(many)
    for group, numbers in table.groups().items():
        table.records(group, numbers)
    assert time.process_time() - start < 15


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.csv", "subject,relation\nAda,capital\n", "row 1: object is 'None'"),
    ("a.json", '{"subject": 1}', "no list of rows"),
    ("a.json", "[3]", "row 1 is '3'"),
    ("a.json", "[" * 100_000, "no table of triples"),
    ("a.json", '[{"subject":"a","relation":"b","object":"c","frequency":"many"}]', "whole number"),
    ("a.json", '[{"subject":"a","relation":"b","object":"c","frequency":3.7}]', "frequency is '3.7'. Give a whole number"),
    ("a.json", '[{"subject":"a","relation":"b","object":"c","frequency":true}]', "whole number"),
    ("a.json", '[{"subject":"a","relation":"b","object":"c","changed":{}}]', "Give a date"),
    ("a.json", '[{"subject":"a","relation":"b","object":"c","changed":NaN}]', "Give a date"),
])  # fmt: skip
def test_what_is_no_table_is_refused(name: str, text: str, said: str, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EditError, match=said):
        read_triples(tmp_path / name)


def test_a_fact_told_twice_and_an_empty_table_are_refused() -> None:
    with pytest.raises(EditError, match="the capital of 'Ada' twice"):
        Table([Triple("Ada", "capital", "Pell"), Triple("Ada", "capital", "Quin")])
    with pytest.raises(EditError, match="no triple"):
        Table([])


def test_a_whole_number_may_be_written_with_a_point(tmp_path) -> None:
    (tmp_path / "a.json").write_text('[{"subject":"a","relation":"b","object":"c","frequency":3.0}]')
    assert read_triples(tmp_path / "a.json") == [Triple("a", "b", "c", None, 3)]


def test_a_table_in_another_encoding_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes("subject,relation,object\nMünchen,country,Germany\n".encode("latin-1"))
    with pytest.raises(EditError, match=r"a\.csv' is not UTF-8 text: .* at byte 25"):
        read_triples(tmp_path / "a.csv")


@pytest.mark.parametrize(("phrasings", "said"), [
    ({"country": ["{} lies in"]}, "phrasings of 'country' are '{} lies in'. Give two or more"),
    ({"country": ["{} lies in", "{} lies in"]}, "two or more that differ"),
    ({"country": ["{} lies in", "it lies in"]}, "each with {}"),
    ({"country": []}, "'country' are none"),
    ({"contry": ["{} lies in", "{} is part of"]}, "no relation 'contry', .* it has 'capital', 'currency', 'country'"),
])  # fmt: skip
def test_phrasings_that_cannot_be_used_are_refused(phrasings: dict[str, list[str]], said: str) -> None:
    with pytest.raises(EditError, match=said):
        Table(TRIPLES, phrasings, lambda pairs: pytest.fail("a model was asked"))


def test_relations_without_phrasings_are_told() -> None:
    assert Table(TRIPLES, PHRASINGS).unphrased == ["currency", "country"]
    assert Table(TRIPLES).unphrased == ["capital", "currency", "country"]


def test_a_table_of_which_no_group_has_a_record_is_refused() -> None:
    with pytest.raises(EditError, match="no group has a record"):
        Table([Triple("Ada", "capital", "Pell")]).groups()
