"""The page through its front door: gradio_client against the running app."""

import threading

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from space import page
from tests.space.tiny import BASE, make_workshop

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def url(base):
    demo = page.build(make_workshop(base))
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield url
    demo.close()


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def test_three_endpoints_are_public_and_documented(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/ask", "/make", "/patches"}
    assert [p["parameter_name"] for p in endpoints["/ask"]["parameters"]] == [
        "question", "patches", "base", "precision", "conflicts", "max_new_tokens",
    ]  # fmt: skip


def test_patches_lists_the_samples(client):
    listed = client.predict(api_name="/patches")
    assert [item["name"] for item in listed] == ["paris", "madrid", "lyon"]
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
