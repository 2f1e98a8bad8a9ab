"""The page through its front doors: gradio_client and an MCP client against the running app."""

import asyncio
import threading

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from kedit_hub.errors import LimitError
from space import page, programs
from space.programs import NAMES
from space.state import Held
from tests.space.tiny import BASE, PROBED, make_patch, make_samples, make_workshop, sample

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def url(base):
    held = [*make_samples(), sample(make_patch([PROBED], 5), "probed")]
    demo = page.build(make_workshop(base, held))
    _, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, mcp_server=True
    )
    yield url
    demo.close()


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def test_the_endpoints_are_public_and_documented(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {f"/{name}" for name in NAMES}
    assert [p["parameter_name"] for p in endpoints["/ask"]["parameters"]] == [
        "question", "patches", "base", "precision", "conflicts", "max_new_tokens", "mode", "strengths", "placebo_seed",
    ]  # fmt: skip


def test_inspect_and_score(client):
    told = client.predict("probed", api_name="/inspect")
    (module,) = told["modules"].values()
    assert module["kind"] == "lowrank" and len(module["tensors"]["a"]["sha256"]) == 64
    assert told["records"][0]["prompt"] == PROBED.prompt and told["method"] == "random" and told["requires"] == []
    scored = client.predict("probed", api_name="/score")
    assert scored["reproduced"] is None and "it came without scores" in scored["told"]
    assert "reliability" in scored["averages"]["generate"]


def test_strengths_and_placebo(client):
    whole = client.predict(TEXT, ["paris"], api_name="/ask", placebo_seed=1, mode="sum")
    half = client.predict(TEXT, ["paris"], api_name="/ask", strengths=[0.3], mode="sum")
    assert whole["placebo"] is not None and half["placebo"] is None and whole["restored"] is True
    assert whole["kl"] != half["kl"] and "strengths=" in half["code"] and "mode='sum'" in half["code"]
    with pytest.raises(AppError, match="2 strengths for 1 patches"):
        client.predict(TEXT, ["paris"], api_name="/ask", strengths=[1, 1])


def test_patches_of_the_hub_are_bounded_together_as_on_the_page(base, monkeypatch):
    workshop = make_workshop(base, [])
    hub = {f"ada/{at}": Held(make_patch([PROBED], at), f"ada/{at}@{'a' * 40}", "hub") for at in range(3)}
    fetched = []
    monkeypatch.setattr(workshop, "from_hub", lambda name: fetched.append(name) or hub[name])
    one = sum(delta.cost().bytes for delta in hub["ada/0"].patch.deltas.values())
    monkeypatch.setattr("space.state.MAX_HELD_BYTES", one)
    assert programs._collected(workshop, ["ada/0", "ada/0"]) == (hub["ada/0"],) * 2
    with pytest.raises(LimitError, match="would hold 2 patches"):
        programs._collected(workshop, ["ada/0", "ada/1", "ada/2"])
    assert fetched == ["ada/0"] * 3 + ["ada/1"]


def test_a_patch_named_twice_has_no_strength_of_its_own(client):
    with pytest.raises(AppError, match="named twice"):
        client.predict(TEXT, ["paris", "paris"], api_name="/ask", strengths=[0.5, 0.25])


def test_search_tells_what_it_cannot_reach(client, monkeypatch):
    with pytest.raises(AppError, match="limit is 0"):
        client.predict("", "", "", 0, api_name="/search")


def test_an_agent_finds_and_uses_the_same_things(url):
    """Every tool, listed and called by the client of the `mcp` package."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk():
        async with streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                tools = {tool.name: tool for tool in (await session.list_tools()).tools}

                async def call(name, **arguments):
                    found = await session.call_tool(name, arguments)
                    return found.isError, found.content[0].text

                return tools, [
                    await call("patches"),
                    await call("inspect", patch="paris"),
                    await call("ask", question=TEXT, patches=["paris"]),
                    await call("score", patch="probed"),
                    await call("ask", question=TEXT, patches=["../x"]),
                    await call("make", prompt=TEXT, subject="Spain", target="Lyon", paraphrases=[]),
                    await call("search", limit=0),
                ]

    tools, (listed, inspected, asked, scored, *refused) = asyncio.run(talk())
    assert set(tools) == set(NAMES)
    schema = tools["ask"].inputSchema
    assert (
        set(schema["required"]) == {"question", "patches"}
        and "at most 500" in schema["properties"]["question"]["description"]
    )
    assert schema["properties"]["precision"]["enum"] == ["float32", "int8", "nf4"]
    assert not any(failed for failed, _ in (listed, inspected, asked, scored))
    assert "paris" in listed[1] and "lowrank" in inspected[1] and '"kl"' in asked[1].replace("'", '"')
    assert all(failed for failed, _ in refused) and "not the name of a patch" in refused[0][1]
    assert "is not in the prompt" in refused[1][1]


def test_patches_lists_the_samples(client):
    listed = client.predict(api_name="/patches")
    assert [item["name"] for item in listed] == ["paris", "madrid", "lyon", "probed"]
    assert listed[0]["signers"] == [] and listed[0]["signed_for"] is None and listed[0]["rescored"] is None
    assert listed[0]["claims"] == {"verdict": "NoClaims", "n": None, "reason": None, "faults": []}
    assert listed[0]["provenance"]["tool"] == "kedit_hub" and listed[0]["format_version"] == 1
    assert listed[0]["edits"] == [{"prompt": TEXT, "target": "Rome"}] and listed[0]["base"] == BASE


def test_ask_answers_side_by_side(client):
    plain = client.predict(TEXT, [], api_name="/ask")
    patched = client.predict(question=TEXT, patches=["paris"], api_name="/ask")
    assert plain["base"] == plain["patched"] == patched["base"] != patched["patched"]
    assert plain["kl"] == 0 < patched["kl"]
    assert patched["code"].startswith("import kedit_hub\n")
    assert len(patched["next_token"]["patched"]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEXT, ["../x"]), "not the name of a patch"),
        ((TEXT, ["/etc"]), "not the name of a patch"),
        ((TEXT, ["http://127.0.0.1/x"]), "not the name of a patch"),
        ((TEXT, ["paris"] * 51), "at most 50"),
        ((TEXT, ["paris", "lyon"]), "answered in two ways"),
        (("x" * 501, []), "501 characters"),
        ((TEXT, [], "nowhere"), "no base"),
        ((TEXT, [], BASE, "float32", "error", 65), "max_new_tokens"),
    ],
)
def test_a_refusal_is_a_sentence(client, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(*arguments, api_name="/ask")


def test_make_refuses_a_subject_that_the_prompt_does_not_hold(client):
    with pytest.raises(AppError, match="Subject 'Spain' is not in the prompt"):
        client.predict(TEXT, "Spain", "Lyon", [], api_name="/make")


def test_two_clients_at_once_do_not_see_each_others_patches(url):
    alone = Client(url, verbose=False)
    stacks = {name: [name] for name in ("paris", "lyon")} | {"base": []}
    expected = {name: alone.predict(TEXT, stack, api_name="/ask")["patched"] for name, stack in stacks.items()}
    assert len(set(expected.values())) == 3
    seen = {name: [] for name in stacks}

    def visit(name):
        own = Client(url, verbose=False)
        for _ in range(4):
            seen[name].append(own.predict(TEXT, stacks[name], api_name="/ask")["patched"])

    visitors = [threading.Thread(target=visit, args=(name,)) for name in stacks]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert seen == {name: [expected[name]] * 4 for name in stacks}
