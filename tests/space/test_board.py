"""The leaderboard of the page: the library's ranking, strangers' text as text, and refusals that say what to do."""

from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from kedit_hub import KeditError
from kedit_hub.errors import HubError
from kedit_hub.hub.leaderboard import mark_verified, submit, tables
from kedit_hub.hub.leaderboard import rank as ranked
from kedit_hub.hub.leaderboard.board import Verified, ranking
from kedit_hub.hub.leaderboard.contents import Skipped
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.patch.trust import TrustPolicy
from space import board_tab, demo_board, html, page
from space.board_tab import Found, View, how_to_submit, rank, show
from tests.hub.boards import ADA, BOB, EVE, contents, run, submitted
from tests.space.test_html import HOSTILE, TAGS, Tags
from tests.space.tiny import handler, make_workshop

BOARD = "ada/board"
ODD = "${alert('template')} {{x}} &lt;b&gt; [x](y).jsonl"  # a name that a hub takes
RUNS = (run(0.5), run(0.7, "memit"), run(0.6, suite="single"), run(0.4, base={"id": "org/other"}))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "kedit"))
    monkeypatch.delenv("KEDIT_TRUST", raising=False)
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def online(base, hub):
    """A workshop beside a hub with a board of ADA's."""
    submit(RUNS, BOARD, key=ADA, token=hub.create_user("ada"), endpoint=hub.endpoint)
    return make_workshop(base, endpoint=hub.endpoint)


def on_look(workshop, repo=BOARD, base="", dataset="", suite="", protocol="generate", metric="score"):
    return handler(page.build(workshop), "on_board")(repo, base, dataset, suite, protocol, metric)


def test_it_is_the_ranking_of_the_library(online, hub):
    found = rank(online, View(BOARD))
    assert found.board == ranked(BOARD, endpoint=hub.endpoint, token=False)
    shown = show(found)
    for title, _, rows in tables(found.board):
        assert html.text(title) in shown and all(f"<td>{html.text(cell)}</td>" in shown for row in rows for cell in row)
    assert shown.index("0.700") < shown.index("0.500")


def test_filters_are_those_of_the_board(online):
    found = rank(online, View(BOARD))
    assert (found.bases, found.datasets) == (("org/model", "org/other"), ("example/twin-cities",))
    assert {"score", "reliability"} <= set(found.metrics)
    assert len(rank(online, View(BOARD, base="org/other")).board.rows) == 1
    assert len(rank(online, View(BOARD, suite="single")).board.rows) == 1
    other = rank(online, View(BOARD, protocol="tf-token", metric="reliability", dataset="example/twin-cities"))
    assert {row.contest.protocol for row in other.board.rows} == {"tf-token"} and len(other.board.rows) == 4
    nothing = rank(online, View(BOARD, base="org/other", suite="single"))
    assert "No run here matches" in show(nothing) and nothing.bases == found.bases


def test_a_choice_that_another_board_does_not_have_is_taken_back(online, hub):
    shown, base, dataset, metric, _ = on_look(online, base="org/gone", metric="locality gone")
    assert "0.700" in shown and base.value == "" and metric.value == "score" and dataset.value == ""
    shown, base, *_ = on_look(online, base="org/other")
    assert "0.700" not in shown and "0.400" in shown and base.value == "org/other"


def test_who_measured_again_is_marked(online, hub, tmp_path, monkeypatch):
    token = hub.create_user("bob")
    done = mark_verified(BOARD, RUNS[:1], key=BOB, create_pr=True, token=token, endpoint=hub.endpoint)
    HfApi(endpoint=hub.endpoint, token=hub.create_user("ada")).merge_pull_request(
        BOARD, int(done.pr_url.rpartition("/")[2]), repo_type="dataset"
    )
    shown = show(rank(online, View(BOARD)))
    assert shown.count("<td>✓ attested by") == 1
    TrustPolicy(keys={"bob-lab": done.verifier}, rules=[]).save(tmp_path / "kedit.trust")
    monkeypatch.setenv("KEDIT_TRUST", str(tmp_path / "kedit.trust"))
    assert f"<td>✓✓ {html.text('verified by bob-lab')}</td>" in show(rank(online, View(BOARD)))
    monkeypatch.setenv("KEDIT_TRUST", str(tmp_path / "away" / "kedit.trust"))
    shown = on_look(online)[0]
    assert 'class="note error"' in shown and "away" not in shown


def test_what_does_not_count_is_named_with_the_reason(online, hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.create_user("ada"))
    api.upload_file(path_or_fileobj=b"{}", path_in_repo=f"submissions/{ODD}", repo_id=BOARD, repo_type="dataset")
    shown = show(rank(online, View(BOARD)))
    assert "1 file left out" in unescape(shown) and html.text(f"submissions/{ODD}") in shown and "0.700" in shown


@pytest.mark.parametrize("name", ["", "  "])
def test_without_a_board_it_says_how_to_begin_one(base, name):
    shown, *_, code = on_look(make_workshop(base), name)
    assert "Name a leaderboard" in unescape(shown)
    assert "kedit leaderboard submit results/runs.jsonl user/board --key" in code.value


def test_an_empty_board_says_how_to_fill_it(base, hub):
    HfApi(endpoint=hub.endpoint, token=hub.create_user("ada")).create_repo(BOARD, repo_type="dataset")
    shown, *_, code = on_look(make_workshop(base, endpoint=hub.endpoint))
    assert "Nothing has been submitted yet" in unescape(shown)
    assert f"submit results/runs.jsonl ada/board --key me.pem --endpoint {hub.endpoint}" in code.value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ada/none", "has no repo 'datasets/ada/none'"),
        ("board", "'board' is not the name of a board"),
        ("../../etc", "is not the name of a board"),
        ("/etc/passwd", "is not the name of a board"),
        ("http://127.0.0.1/x", "is not the name of a board"),
        ("<b>x</b>/" + "y" * 300, "is not the name of a board"),
    ],
)
def test_names_that_lead_nowhere_are_refused_in_words(base, hub, name, words):
    shown, *_ = on_look(make_workshop(base, endpoint=hub.endpoint), name)
    assert 'class="note error"' in shown and words in unescape(shown) and "<b>" not in shown


def test_a_hub_that_is_away_is_told_of_and_what_was_seen_stays(online, hub):
    seen = show(rank(online, View(BOARD)))
    hub.__exit__()
    assert show(rank(online, View(BOARD))) == seen
    with pytest.raises(HubError, match="cannot be reached"):
        rank(online, View("ada/other"))


def test_a_private_board_is_not_read_for_a_visitor(base, hub, monkeypatch):
    token = hub.create_user("ada")
    HfApi(endpoint=hub.endpoint, token=token).create_repo("ada/secret", repo_type="dataset", private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(KeditError, match="has no repo"):
        rank(make_workshop(base, endpoint=hub.endpoint), View("ada/secret"))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_board_is_shown_as_text(hostile):
    """The library takes few such names; should it take more one day, the page is not the place that breaks."""
    files = contents(*submitted(run(0.5), authors=(hostile,)), *submitted(run(0.1), key=EVE))
    board = ranking(files)
    other = replace(board.rows[1].contest, base=hostile, dataset=hostile, metric=hostile)
    row = replace(board.rows[1], contest=other, method=hostile, mode=hostile, mark=Verified((hostile,)))
    skipped = (Skipped(hostile, hostile), Skipped.of("", hostile))
    shown = show(Found(replace(board, rows=(board.rows[0], row), skipped=skipped), (hostile,), (hostile,), (hostile,)))
    parsed = Tags()
    parsed.feed(shown)
    assert set(parsed.tags) <= TAGS
    assert {name for name, _ in parsed.attributes} <= {"class", "scope", "role", "aria-label", "tabindex", "open"}
    assert "${" not in shown and "{{" not in shown and "\u202e" not in shown and "\u200b" not in shown
    told = hostile.replace("\u202e", "U+202E").replace("\u200b", "U+200B")
    assert told in " ".join(parsed.data)


def test_long_boards_are_cut_and_say_so(monkeypatch):
    many = [file for i in range(4) for file in submitted(run(0.1 * i, n=10 + i % 2, method=f"m{i}"), key=ADA)]
    monkeypatch.setattr(board_tab, "SHOWN_CONTESTS", 1)
    monkeypatch.setattr(board_tab, "SHOWN_ROWS", 1)
    shown = unescape(show(Found(ranking(contents(*many)), (), (), ())))
    assert "and 1 more rows." in shown and "and 1 more rankings" in shown and shown.count("<table") == 1


def test_a_name_in_a_command_stays_one_word(shared):
    assert "submit results/runs.jsonl 'a b; rm -rf /' --key" in how_to_submit(shared, "a b; rm -rf /")


def test_the_board_of_the_demo_is_measured_once_and_goes_on_after_an_interruption(base, hub, tmp_path, monkeypatch):
    calls = []

    def bench(methods, suites, base, edits, *, n, out, progress):
        calls.append(Path(out).name)
        if calls == ["runs"]:
            raise KeyboardInterrupt
        return [run(0.5, method, base={"id": base}, n=n[0], batch_size=n[0]) for method in methods]

    monkeypatch.setattr(demo_board, "bench", bench)
    tokens = hub.create_user("me"), hub.create_user(demo_board.VERIFIER)
    with pytest.raises(KeyboardInterrupt):
        demo_board.seed(tmp_path / "demo", hub.endpoint, *tokens)
    workshop = make_workshop(base, endpoint=hub.endpoint)
    assert "Nothing has been submitted yet" in show(rank(workshop, View(demo_board.BOARD)))
    assert demo_board.seed(tmp_path / "demo", hub.endpoint, *tokens) is True
    assert demo_board.seed(tmp_path / "demo", hub.endpoint, *tokens) is False
    assert calls == ["runs", "runs", "again"]
    shown = show(rank(workshop, View(demo_board.BOARD)))
    assert shown.count("<td>✓ attested by") == 1 and "memit" in shown
