"""The Space under visitors: time to the first answer of a fresh start, latency with 1, 8 and 32 of them at once, whether any answer is
wrong, memory after many questions, what axe-core says of every tab, and the calls that real clients made.

    python -m benchmarks.space > benchmarks/results/space.md         # about ten minutes on two cores

The page runs in a process of its own (`python app.py`, one thread for torch). Visitors are gradio_client sessions; each question is one of
many (stack, question) pairs, so warm views are made, kept and dropped as they would be. Needs a Chromium for the accessibility part.
"""

import asyncio
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from gradio_client import Client

ROOT = Path(__file__).resolve().parents[1]
VISITORS = (1, 8, 32)
ASKS = 96  # of each level, all visitors together
SESSIONS = 50
EACH = 4  # questions of a session
MANY = 1_000
SAMPLES = (
    "eiffel-tower-in-rome", "nokia-in-tokyo", "danube-flows-into-the-north-sea", "hamlet-is-a-novel",
    "mona-lisa-by-frida-kahlo", "capital-of-france-nantes", "brazil-speaks-french", "fifty-facts",
)  # fmt: skip


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, psutil.Process, float]]:
    """(address, process, seconds until the page was there) of a fresh start, without a network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {
        "PORT": str(port), "KEDIT_HOME": str(folder / "kedit"), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1",
        "GRADIO_TEMP_DIR": str(folder / "gradio"), "GRADIO_ANALYTICS_ENABLED": "False", "HTTP_PROXY": "http://127.0.0.1:1",
        "HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1,localhost", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    started, url = time.perf_counter(), f"http://127.0.0.1:{port}/"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            while True:
                try:
                    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).read()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.05)
            yield url, psutil.Process(process.pid), time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


def questions(client: Client) -> list[tuple[str, list[str]]]:
    """Pairs of a question and a stack: edits, rephrases and neighbours under none, one and two patches."""
    found = []
    listed = {item["name"]: item for item in client.predict(api_name="/patches")}
    names = [name for name in SAMPLES if name in listed]
    for at, name in enumerate(names):
        for edit in client.predict(name, api_name="/inspect")["records"][:2]:
            for stack in ([], [name], [names[at - 1], name], [names[at - 2]]):
                found.append((edit["prompt"], stack))
    return found


def ask(client: Client, question: str, stack: list[str]) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    answer = client.predict(question, stack, api_name="/ask")
    return answer, time.perf_counter() - started


def latencies(url: str, visitors: int, pairs: list[tuple[str, list[str]]]) -> list[float]:
    clients = [Client(url, verbose=False) for _ in range(visitors)]
    each = max(1, ASKS // visitors)

    def visit(number: int) -> list[float]:
        draw = random.Random(number)
        return [ask(clients[number], *draw.choice(pairs))[1] for _ in range(each)]

    with ThreadPoolExecutor(visitors) as pool:
        return [seconds for own in pool.map(visit, range(visitors)) for seconds in own]


def interleaved(url: str, pairs: list[tuple[str, list[str]]]) -> tuple[int, int]:
    """(answers, wrong ones): sessions at once, each answer held against the same question asked alone."""
    draw = random.Random(0)
    sessions = [[draw.choice(pairs) for _ in range(EACH)] for _ in range(SESSIONS)]
    alone = Client(url, verbose=False)
    expected = {repr(pair): ask(alone, *pair)[0] for pair in {repr(p): p for own in sessions for p in own}.values()}

    def visit(own: list[tuple[str, list[str]]]) -> int:
        client = Client(url, verbose=False)
        return sum(ask(client, *pair)[0] != expected[repr(pair)] for pair in own)

    with ThreadPoolExecutor(25) as pool:
        return SESSIONS * EACH, sum(pool.map(visit, sessions))


def memory(url: str, process: psutil.Process, pairs: list[tuple[str, list[str]]]) -> list[tuple[int, float]]:
    """(questions asked, MiB of the process) as it goes."""
    client, draw, seen = Client(url, verbose=False), random.Random(1), []
    for asked in range(MANY + 1):
        if asked % 100 == 0:
            seen.append((asked, process.memory_info().rss / 2**20))
        ask(client, *draw.choice(pairs))
    return seen


def accessibility(url: str) -> list[tuple[str, str, int, str]]:
    """(scheme, tab, violations outside Gradio's footer, which) under axe-core."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            page = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme).new_page()
            page.goto(url)
            page.locator("#patches label", has_text="Eiffel Tower").click()
            page.wait_for_timeout(1000)
            page.locator("#ask").click()
            page.locator("#proof .fact").wait_for()
            for tab in ("Try", "Patch", "Make", "Conflicts", "Measure", "Find", "About"):
                page.get_by_role("tab", name=tab, exact=True).click()
                page.wait_for_timeout(800)
                found = Axe().run(page, context={"exclude": [["footer"]]}).response["violations"]
                rows.append((scheme, tab, len(found), ", ".join(one["id"] for one in found)))
        browser.close()
    return rows


def by_agents(url: str) -> dict[str, str]:
    """Each tool called once by an MCP client: what came of it."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    wanted: dict[str, dict[str, Any]] = {
        "patches": {}, "inspect": {"patch": "nokia-in-tokyo"}, "search": {"query": "tower"},
        "ask": {"question": "Nokia has its headquarters in", "patches": ["nokia-in-tokyo"]},
        "score": {"patch": "nokia-in-tokyo"},
        "make": {"prompt": "The capital of Japan is", "subject": "Japan", "target": "Oslo", "paraphrases": []},
    }  # fmt: skip

    async def talk() -> dict[str, str]:
        async with streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                told = {}
                for name, arguments in wanted.items():
                    found = await session.call_tool(name, arguments)
                    text = getattr(found.content[0], "text", "")
                    told[name] = f"refused: {text[:90]}" if found.isError else f"{len(text):,} characters"
                return told

    return asyncio.run(talk())


def by_client(client: Client) -> dict[str, str]:
    """Each endpoint called once by gradio_client."""
    made = client.predict("The capital of Japan is", "Japan", "Oslo", [], api_name="/make")
    asked = client.predict("Nokia has its headquarters in", ["nokia-in-tokyo"], api_name="/ask", placebo_seed=1)
    try:
        found = f"{len(client.predict('tower', api_name='/search'))} patches"
    except Exception as error:
        found = f"refused: {str(error)[:90]}"
    return {
        "patches": f"{len(client.predict(api_name='/patches'))} samples",
        "inspect": f"{len(client.predict('nokia-in-tokyo', api_name='/inspect')['modules'])} module",
        "ask": f"{asked['base']!r}, {asked['patched']!r}, placebo {asked['placebo']!r}, KL {asked['kl']:.2f}",
        "make": f"{made['before']!r} to {made['after']!r} in {made['seconds']:.1f} s",
        "score": client.predict("nokia-in-tokyo", api_name="/score")["told"],
        "search": found,
    }


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (url, process, start):
        opened = time.perf_counter()
        client = Client(url, verbose=False)
        first, _ = ask(client, "The landmark Eiffel Tower stands in the city of", ["eiffel-tower-in-rome"])
        first_seconds = time.perf_counter() - opened
        _, warm = ask(client, "The landmark Eiffel Tower stands in the city of", ["eiffel-tower-in-rome"])
        pairs = questions(client)
        print(
            "# The Space under visitors\n\nPrinted by `python -m benchmarks.space`. Atlas (Llama architecture) at full precision, one"
        )
        print(
            f"thread for torch, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, Python {platform.python_version()}.\n"
        )
        print(
            f"* From `python app.py` to a page: {start:.1f} s. From there to the first answer, base loaded on the way:"
        )
        print(
            f"  {first_seconds:.1f} s ({first['base']!r} and {first['patched']!r}); the same again: {warm * 1000:.0f} ms."
        )
        print("* Clicks to a first edited answer: 2.\n")
        rows = []
        for visitors in VISITORS:
            began = time.perf_counter()
            seen = latencies(url, visitors, pairs)
            wall = time.perf_counter() - began
            p95 = quantiles(seen, n=20)[18]
            rows.append((visitors, len(seen), f"{median(seen):.2f}", f"{p95:.2f}", f"{len(seen) / wall:.1f}"))
        print("## Latency of ask, waiting in line included (seconds)\n")
        table(("visitors at once", "questions", "p50", "p95", "answers a second"), rows)
        count, wrong = interleaved(url, pairs)
        print(
            f"## No wrong answers\n\n{SESSIONS} sessions of {EACH} questions at once, {count} answers, each held against the same"
        )
        print(f"question asked alone (texts, probabilities, KL: every value of the answer): {wrong} differ.\n")
        print(f"## Memory of the process over {MANY:,} more questions (MiB)\n")
        seen = memory(url, process, pairs)
        table(tuple(str(asked) for asked, _ in seen), [tuple(f"{size:.0f}" for _, size in seen)])
        print("## axe-core, outside Gradio's footer\n")
        rows = accessibility(url)
        table(("scheme", "tab", "violations", "which"), rows)
        print("## Calls by real clients\n")
        told, agents = by_client(client), by_agents(url)
        table(("name", "gradio_client", "mcp"), [(name, told[name], agents[name]) for name in told])
        assert Counter(told) == Counter(agents)


if __name__ == "__main__":
    main()
