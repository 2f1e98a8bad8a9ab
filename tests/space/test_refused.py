"""What cannot be believed is never a loaded model: the stack stays as it was, and the page says why."""

import shutil

import pytest
from huggingface_hub import HfApi, constants

import app
import kedit_hub
from kedit_hub import KeditError, Patch
from kedit_hub.errors import HubError, SignatureError, TrustError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.patch.trust import Rule, TrustPolicy
from space import about_tab, html, page, state
from space.asking import Question, ask
from space.making import Wish, make
from space.state import policy, sample_patches
from tests.space.tiny import BASE, PARIS, handler, make_patch, make_workshop, sample, signed

KEY = "ab" * 31 + "cd"  # nobody's


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "kedit"))


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def ada(hub):
    """What publishes in ada's name."""
    token = hub.create_user("ada")

    def publish(name, patch, **how):
        return kedit_hub.push(patch, f"ada/{name}", token=token, endpoint=hub.endpoint, **how)

    publish.api = HfApi(endpoint=hub.endpoint, token=token)
    return publish


@pytest.fixture
def online(base, hub):
    return make_workshop(base, endpoint=hub.endpoint)


@pytest.fixture
def trust(tmp_path, monkeypatch):
    """Put a policy in force; its file."""

    def put(**parts):
        file = tmp_path / "secret" / "of" / "kedit.trust"
        shutil.rmtree(file.parent, ignore_errors=True)
        file.parent.mkdir(parents=True)
        TrustPolicy(**parts).save(file)
        monkeypatch.setenv("KEDIT_TRUST", str(file))
        return file

    return put


def add(workshop, text, own=()):
    """What the button does: (own patches afterwards, what the page says)."""
    after, _, shown, _ = handler(page.build(workshop), "on_add")(text, own, [], BASE, {})
    return after, shown


def refused(workshop, text, *words):
    """The stack is unchanged, and the page says these words."""
    mine = (sample(make_patch([PARIS], 99), "mine"),)
    after, shown = add(workshop, text, mine)
    assert after is mine and 'class="note error"' in shown
    for word in words:
        assert html.text(word) in shown


# --- files and signatures -----------------------------------------------------------------------------------------


def test_a_signed_patch_is_added_with_its_signers(ada, online, tmp_path):
    patch = signed(make_patch([PARIS]), tmp_path, repo_id="ada/paris", version="1.0.0")
    ada("paris", patch, version="1.0.0")
    (held,), shown = add(online, "ada/paris@v1.0.0")
    assert held.patch.signers == patch.signers and 'class="note good"' in shown


@pytest.mark.parametrize("file", ["README.md", "evals.json", "config.json", "patch.safetensors"])
def test_a_repo_that_was_changed_after_signing_is_refused(ada, online, tmp_path, file):
    patch = signed(make_patch([PARIS]).replace_evals({"protocols": {}}), tmp_path)
    ada("paris", patch)
    data = patch.files()[file]
    changed = data.replace(b"e", b"a", 1)
    assert changed != data
    ada.api.upload_file(path_or_fileobj=changed, path_in_repo=file, repo_id="ada/paris")
    refused(online, "ada/paris", file, "is not what was signed")
    with pytest.raises(SignatureError):
        online.find("ada/paris")


def test_an_unsigned_repo_with_damaged_tensors_is_refused(ada, online):
    patch = make_patch([PARIS])
    ada("paris", patch)
    data = bytearray(patch.files()["patch.safetensors"])
    data[-1] ^= 1
    ada.api.upload_file(path_or_fileobj=bytes(data), path_in_repo="patch.safetensors", repo_id="ada/paris")
    refused(online, "ada/paris", "is not what the manifest")


def test_a_copy_in_another_repo_and_a_moved_version_are_refused(ada, online, tmp_path):
    ada("paris", signed(make_patch([PARIS]), tmp_path, repo_id="ada/paris", version="1.0.0"))
    files = signed(make_patch([PARIS]), tmp_path, repo_id="bob/paris").files()
    ada.api.create_repo("ada/copy")
    for name, data in files.items():
        ada.api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="ada/copy")
    refused(online, "ada/copy", "signed for 'bob/paris'")
    ada.api.create_tag("ada/paris", tag="v2.0.0")
    refused(online, "ada/paris@v2.0.0", "signed as version 1.0.0")


def test_a_repo_that_lost_its_signature_is_refused(ada, online, tmp_path):
    patch = signed(make_patch([PARIS]), tmp_path)
    ada("paris", patch)
    assert add(online, "ada/paris")[0]
    ada("paris", make_patch([PARIS], 2))
    refused(online, "ada/paris", "what it holds now is not signed")
    with pytest.raises(HubError):
        online.from_hub("ada/paris")


@pytest.mark.parametrize("file", ["README.md", "config.json", "patch.safetensors", "extra.txt"])
def test_a_tampered_folder_is_no_sample(tmp_path, caplog, file):
    patch = signed(make_patch([PARIS]), tmp_path)
    patch.save(tmp_path / "patches" / "good")
    patch.save(tmp_path / "patches" / "bad")
    with (tmp_path / "patches" / "bad" / file).open("ab") as out:
        out.write(b" ")
    assert [held.name for held in sample_patches(tmp_path / "patches")] == ["good"]
    assert "bad is left out" in caplog.text


# --- the policy ---------------------------------------------------------------------------------------------------


def test_a_patch_that_the_policy_refuses_is_not_added_and_the_reasons_are_shown(ada, online, trust, tmp_path):
    ada("paris", make_patch([PARIS]))
    file = trust(keys={"bob": KEY}, rules=[Rule(base="*", signers=["bob"]), Rule(base="*", authors=["bobs-lab"])])
    refused(
        online, "ada/paris", "the trust policy 'kedit.trust' refuses", "wants a signature by bob, the patch is not signed",
        "a Hub repo of bobs-lab, the patch is in one of 'ada'",
    )  # fmt: skip
    _, shown = add(online, "ada/paris")
    assert "secret" not in shown and html.text(str(file.parent)) not in shown
    with pytest.raises(TrustError) as refusal:
        online.find("ada/paris")
    assert "secret" not in str(refusal.value)


def test_a_trusted_signer_is_let_in_and_called_by_name(ada, online, trust, tmp_path):
    patch = signed(make_patch([PARIS], 11), tmp_path)
    ada("paris", patch)
    trust(keys={"ada-work": patch.signers[0]}, rules=[Rule(base="*", signers=["ada-work"])])
    (held,), _ = add(online, "ada/paris")
    assert ask(online, Question(PARIS.prompt, (held,), BASE)).kl > 0
    shown = handler(page.build(online), "on_card")(held.patch.id, (held,), {})[0]
    assert "ada-work" in shown or html.text("ada-work") in shown
    assert html.text("Let in by the trust policy of this page, kedit.trust.") in shown


def test_a_trusted_author_is_let_in_and_stays_so_when_asked(ada, online, trust):
    ada("paris", make_patch([PARIS], 12))
    trust(rules=[Rule(base="*", authors=["ada"])])
    (held,), _ = add(online, "ada/paris")
    assert ask(online, Question(PARIS.prompt, (held,), BASE)).kl > 0


def test_a_warm_view_is_judged_again_when_the_policy_changes(workshop, trust):
    question = Question(PARIS.prompt, workshop.samples[:1], BASE)
    assert ask(workshop, question).kl > 0
    trust(keys={"bob": KEY}, rules=[Rule(base="*", signers=["bob"])])
    with pytest.raises(TrustError, match=r"'kedit\.trust' refuses"):
        ask(workshop, question)
    assert ask(workshop, Question(PARIS.prompt, (), BASE)).kl == 0


def test_samples_are_judged_too(tmp_path, trust, caplog):
    good = signed(make_patch([PARIS]), tmp_path)
    good.save(tmp_path / "patches" / "good")
    make_patch([PARIS], 2).save(tmp_path / "patches" / "unsigned")
    trust(keys={"ada": good.signers[0]}, rules=[Rule(base="*", signers=["ada"])])
    assert [held.name for held in sample_patches(tmp_path / "patches")] == ["good"]
    assert "unsigned is left out" in caplog.text


@pytest.mark.parametrize("value", ["", "/nowhere/of/mine/kedit.trust"])
def test_a_policy_that_cannot_be_read_is_never_no_policy(workshop, tmp_path, monkeypatch, value):
    make_patch([PARIS]).save(tmp_path / "patches" / "good")
    monkeypatch.setenv("KEDIT_TRUST", value)
    with pytest.raises(TrustError):
        sample_patches(tmp_path / "patches")
    with pytest.raises(TrustError):
        app.main()  # it does not even start
    with pytest.raises(TrustError) as refusal:
        ask(workshop, Question(PARIS.prompt, workshop.samples[:1], BASE))
    assert "/nowhere" not in str(refusal.value)
    shown = about_tab.in_force()
    assert 'class="note error"' in shown and "No patch is taken here" in shown and "nowhere" not in shown


def test_nothing_is_made_under_a_policy(workshop, trust, monkeypatch):
    trust(rules=[Rule(base="*", authors=["ada"])])
    monkeypatch.setattr("space.making.can_edit", lambda base: True)
    monkeypatch.setattr(kedit_hub, "edit", lambda *_, **__: pytest.fail("it was made"))
    with pytest.raises(TrustError, match=r"kedit\.trust, takes no patch that nobody has signed"):
        make(workshop, Wish(PARIS.prompt, "France", "Rome", BASE))


def test_about_names_the_file_and_what_it_wants_in_one_line(trust):
    assert policy() is None and "No trust policy is in force" in about_tab.in_force()
    keys = {"ada": KEY, "release": "cd" * 31 + "ab"}
    rules = [Rule(base="org/model", signers=["ada", "release"]), Rule(base="*", signers=["ada"], authors=["our-lab"])]
    trust(keys=keys, rules=rules)
    shown = about_tab.in_force()
    assert (
        html.text(
            "Trust policy in force here: kedit.trust. It takes patches for org/model, signed by ada or release; or patches "
            "for any base, signed by ada and from a Hub repo of our-lab."
        )
        in shown
    )
    assert "secret" not in shown
    trust(rules=[])
    assert html.text("It takes nobody's patches.") in about_tab.in_force()
    trust(rules=[Rule(base="*", authors=[f"lab{i}"]) for i in range(9)])
    assert "or 4 more rules" in about_tab.in_force()


def test_the_load_of_a_refused_patch_is_not_tried(ada, online, trust, monkeypatch):
    ada("paris", make_patch([PARIS]))
    trust(rules=[Rule(base="*", authors=["bob"])])
    monkeypatch.setattr(state, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    refused(online, "ada/paris", "refuses")
    with pytest.raises(KeditError):
        online.find("ada/paris")
    assert isinstance(online.samples[0].patch, Patch)
