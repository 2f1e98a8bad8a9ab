"""Leaderboard: what was measured, ranked as the library ranks it (kedit_hub.hub.leaderboard). Law: whatever is in a board is a stranger's,
and is shown as text; what does not count is named with the reason; a visitor sees what anybody sees.

    found = rank(workshop, View("lab/board", suite="batch"))
    show(found)
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, assert_never

import gradio as gr

from kedit_hub import KeditError
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.run import SUITES
from kedit_hub.hub.client import printable
from kedit_hub.hub.leaderboard import Board, read, tables
from kedit_hub.hub.leaderboard.board import METRIC, PROTOCOL, Attested, Claimed, Mark, Unchecked, Verified, ranking
from kedit_hub.hub.leaderboard.bounds import Bounds
from kedit_hub.hub.leaderboard.verification import stats
from space import html
from space.sentences import Language, counted, language_of, told
from space.state import Workshop, named_alone, policy, shortened
from space.words import say

BOUNDS = Bounds(max_files=2_000, max_total_bytes=1 << 23)  # of a board that any visitor may name: seconds, not minutes
MAX_NAME = 200  # characters of a board's name
SHOWN_CONTESTS = 20
SHOWN_ROWS = 100  # of one contest
SHOWN_SKIPPED = 50
MAX_CHOICES = 200  # of one filter
EVERY = ""  # a filter that lets everything through


@dataclass(frozen=True)
class View:
    """Which part of a board is looked at. base, dataset, suite: EVERY or one of those that are there."""

    repo: str
    base: str = EVERY
    dataset: str = EVERY
    suite: str = EVERY
    protocol: str = PROTOCOL
    metric: str = METRIC


@dataclass(frozen=True)
class Found:
    """bases, datasets, metrics: what there is to choose from, whatever was chosen."""

    board: Board
    bases: tuple[str, ...]
    datasets: tuple[str, ...]
    metrics: tuple[str, ...]


def rank(workshop: Workshop, view: View) -> Found:
    """The board as it is now, or as it was last seen where the hub is not reached. HubError, TrustError, KeditError for an average
    that no run has."""
    with named_alone():
        trusted = policy()
    contents = read(view.repo.strip()[:MAX_NAME], token=False, endpoint=workshop.endpoint, bounds=BOUNDS)
    runs = [run for entry in contents.entries for _, run in entry.submission.lines]
    metrics = {name for run in runs for name in stats(run).get(view.protocol, {})}
    board = ranking(
        contents,
        base=view.base or None,
        suite=view.suite or None,
        dataset=view.dataset or None,
        protocol=view.protocol,
        metric=view.metric if view.metric in metrics else METRIC,
        policy=None if trusted is None else trusted[1],
    )
    bases, datasets = {run.base.id for run in runs}, {run.dataset.id for run in runs}
    return Found(board, _sorted(bases), _sorted(datasets), _sorted(metrics))


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))[:MAX_CHOICES]


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(found: Found, language: Language = "en") -> str:
    """One table for each contest, in the library's order, then what does not count."""
    board = found.board
    rows_told = counted(language, "rows", len(board.rows))
    where = told(language, "board_at", repo=board.repo_id, commit=board.commit[:12], rows=rows_told)
    parts = [f'<p class="subtle">{html.text(where)}</p>']
    if not board.rows:
        parts.append(html.note("info", told(language, "board_no_match" if found.bases else "board_empty")))
    for (title, columns, cells), rows in list(zip(tables(board), board.contests.values(), strict=True))[
        :SHOWN_CONTESTS
    ]:
        marked = [
            (*line[:-1], f"{_sign(row.mark)}{line[-1]}") for line, row in zip(cells[:SHOWN_ROWS], rows, strict=False)
        ]
        more = html.more(language, len(rows) - SHOWN_ROWS, "more_rows")
        parts.append(f"<h3>{html.text(title)}</h3>{html.table(columns, marked, classes='digits', label=title)}{more}")
    if len(board.contests) > SHOWN_CONTESTS:
        left = len(board.contests) - SHOWN_CONTESTS
        parts.append(html.note("info", told(language, "more_rankings", count=left)))
    if board.without:
        parts.append(html.note("info", told(language, "board_without", count=board.without)))
    if board.skipped:
        parts.append(_left_out(language, board))
    return "".join(parts)


def _sign(mark: Mark) -> str:
    """Before the words of a mark, which say the same."""
    match mark:
        case Verified():
            return "✓✓ "
        case Attested():
            return "✓ "
        case Claimed() | Unchecked():
            return ""
        case _:
            assert_never(mark)


def _left_out(language: Language, board: Board) -> str:
    rows = [(one.path or told(language, "the_rest"), one.reason) for one in board.skipped[:SHOWN_SKIPPED]]
    rest = html.more(language, len(board.skipped) - len(rows))
    count = counted(language, "left_out", len(board.skipped))
    head = (told(language, "file"), told(language, "why_left_out"))
    table = html.table(head, rows, label=told(language, "left_out_label"))
    return f"<details open><summary>{html.text(count)}</summary>{table}{rest}</details>"


def how_to_submit(workshop: Workshop, repo: str) -> str:
    """Commands for a terminal. repo: what the visitor wrote; a name of a board that is there already or is to be made."""
    board = shlex.quote(printable(shortened(repo.strip() or "user/board", MAX_NAME)))
    hub = "" if workshop.endpoint is None else f" --endpoint {workshop.endpoint}"
    commands = (
        "kedit bench --suite batch --method memit --edits test --n 10 --out results\n"
        "kedit key new --out me.pem\n"
        f"kedit leaderboard submit results/runs.jsonl {board} --key me.pem{hub}"
    )
    return f"{commands}\n# add --pr for the board of somebody else"


# --- the tab ------------------------------------------------------------------------------------------------------


def build(workshop: Workshop, tab: gr.Tab) -> None:
    """The tab. Nothing is read before somebody looks at it."""
    with gr.Row(equal_height=True):
        repo = gr.Textbox(
            workshop.board or "", label=say("board"), info=say("board_info"), placeholder="user/board",
            max_lines=1, max_length=MAX_NAME, scale=4, elem_id="board-repo",
        )  # fmt: skip
        look = gr.Button(say("show"), variant="primary", elem_id="board-show", scale=1, min_width=200)
    with gr.Row():
        base = gr.Dropdown(
            [(say("every_base"), EVERY)], value=EVERY, label=say("any_base"), min_width=200, elem_id="board-base"
        )
        dataset = gr.Dropdown(
            [(say("every_data_set"), EVERY)], value=EVERY, label=say("data_set"), min_width=200, elem_id="board-data"
        )
        suites = [(say("every_suite"), EVERY), *((suite, suite) for suite in SUITES)]
        suite = gr.Dropdown(suites, value=EVERY, label=say("suite"), min_width=200, elem_id="board-suite")
        protocol = gr.Dropdown(
            list(PROTOCOLS), value=PROTOCOL, label=say("protocol"), min_width=200, elem_id="board-protocol"
        )
        metric = gr.Dropdown([METRIC], value=METRIC, label=say("ranked_by"), min_width=200, elem_id="board-metric")
    shown = gr.HTML(elem_id="board")
    with gr.Accordion(say("submit"), open=False):
        gr.HTML(say("board_rules"), elem_id="board-rules")
        commands = gr.Code(
            how_to_submit(workshop, workshop.board or ""), language="shell", label=say("terminal"), interactive=False,
            wrap_lines=True, show_line_numbers=False, elem_id="board-submit",
        )  # fmt: skip

    def on_board(
        repo: str, base: str, dataset: str, suite: str, protocol: str, metric: str, request: gr.Request | None = None
    ) -> tuple[Any, Any, Any, Any, Any]:
        """The board, and the choices that it has; a choice that it does not have is taken back."""
        repo, language = repo or "", language_of(request)
        how = gr.Code(how_to_submit(workshop, repo))
        if not repo.strip():
            return html.note("info", told(language, "board_name_one")), gr.skip(), gr.skip(), gr.skip(), how
        try:
            found = rank(workshop, View(repo, base or EVERY, dataset or EVERY, suite or EVERY, protocol, metric))
            if (base and base not in found.bases) or (dataset and dataset not in found.datasets):
                base, dataset = base if base in found.bases else EVERY, dataset if dataset in found.datasets else EVERY
                found = rank(workshop, View(repo, base, dataset, suite or EVERY, protocol, metric))
        except KeditError as error:
            return html.refusal(error, language), gr.skip(), gr.skip(), gr.skip(), how
        return (
            show(found, language),
            gr.Dropdown(_choices(told(language, "every_base"), found.bases), value=base or EVERY),
            gr.Dropdown(_choices(told(language, "every_data_set"), found.datasets), value=dataset or EVERY),
            gr.Dropdown(list(found.metrics) or [METRIC], value=metric if metric in found.metrics else METRIC),
            how,
        )

    inputs, outputs = [repo, base, dataset, suite, protocol, metric], [shown, base, dataset, metric, commands]
    hub: dict[str, Any] = {"concurrency_id": "board", "concurrency_limit": 2, "api_visibility": "private"}
    filters = [base.input, dataset.input, suite.input, protocol.input, metric.input]
    gr.on([look.click, repo.submit, *filters], on_board, inputs, outputs, show_progress_on=[shown], **hub)
    tab.select(on_board, inputs, outputs, show_progress_on=[shown], **hub)


def _choices(every: str, names: Iterable[str]) -> list[tuple[str, str]]:
    return [(every, EVERY), *((printable(shortened(name, 80)), name) for name in names)]
