"""A trust policy holds for every way of giving a patch to `apply`, and before anything touches a model."""

from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import CommitOperationAdd, HfApi, constants

import kedit_hub
from kedit_hub.api import Fetched, admit, fetch
from kedit_hub.errors import HubError, TrustError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import push
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import sign
from kedit_hub.patch.trust import VARIABLE, Rule, TrustPolicy
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, logits, make_patch, profile_of
from tests.tiny import tiny_model

ALICE, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
SIGNED = TrustPolicy(keys={"alice": public_key(ALICE)}, rules=[Rule(base="*", signers=["alice"])])
OURS = TrustPolicy(rules=[Rule(base="*", authors=["our-lab"])])
NOBODY = TrustPolicy(rules=[])
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
PROMPTS = [edit.prompt for edit in EDITS]


class Touched(Exception):
    """Something looked at the model."""


class Untouchable:
    def __getattr__(self, name: str) -> Any:
        raise Touched(name)


@pytest.fixture(scope="module")
def tiny() -> Any:
    """(model, tokenizer, profile), and two patches for it that do not contradict each other."""
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    return (model, tokenizer, profile), [make_patch(model, tokenizer, profile, [edit]) for edit in EDITS[:2]]


@pytest.fixture
def patch(tiny: Any) -> Any:
    return tiny[1][0]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "kedit-home"))
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that refs name without an endpoint; users our-lab and mallory."""
    with LocalHub(tmp_path / "hub") as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
        yield served


def make(patch: Any, number: int) -> Any:
    """The patch with other scores: another commit of the same repo."""
    return patch.replace_evals({"number": number})


def given(patch: Any, form: str, tmp_path: Any) -> Any:
    """The patch in one of the forms that `apply` takes."""
    folder = tmp_path / "given"
    if form in ("path", "text", "list"):
        patch.save(folder)
    forms = {
        "patch": lambda: patch,
        "stack": lambda: PatchStack([patch]),
        "path": lambda: folder,
        "text": lambda: str(folder),
        "list": lambda: [folder],
        "tuple": lambda: (patch,),
        "fetched": lambda: Fetched(patch),
    }
    return forms[form]()


FORMS = pytest.mark.parametrize("form", ["patch", "stack", "path", "text", "list", "tuple", "fetched"])


@FORMS
@pytest.mark.parametrize("policy", [SIGNED, OURS, NOBODY], ids=["signed", "ours", "nobody"])
def test_what_is_not_trusted_touches_no_model(patch, form, policy, tmp_path):
    with pytest.raises(TrustError, match=rf"refuses patch {patch.id[:12]} without an author; not trusted"):
        kedit_hub.apply(given(patch, form, tmp_path), Untouchable(), trust=policy)


@FORMS
def test_what_is_trusted_reaches_the_model(patch, form, tmp_path):
    with pytest.raises(Touched):
        kedit_hub.apply(given(sign(patch, ALICE), form, tmp_path), Untouchable(), trust=SIGNED)


def test_what_is_not_trusted_loads_no_model(patch, monkeypatch):
    def load(*_: Any, **__: Any) -> Any:
        raise Touched

    monkeypatch.setattr("kedit_hub.api.load_model", load)
    for base in (None, "org/base"):
        with pytest.raises(TrustError):
            kedit_hub.apply(patch, base, trust=SIGNED)


def test_a_signature_by_another_key_is_none(patch):
    with pytest.raises(TrustError, match=f"signed by {public_key(EVE)}"):
        kedit_hub.apply(sign(patch, EVE), Untouchable(), trust=SIGNED)
    with pytest.raises(Touched):
        kedit_hub.apply(sign(sign(patch, EVE), ALICE), Untouchable(), trust=SIGNED)


@pytest.mark.parametrize("wrap", [list, PatchStack])
def test_one_patch_of_several_that_is_not_trusted_is_enough(tiny, wrap):
    good, bad = sign(tiny[1][0], ALICE), tiny[1][1]
    for order in ([good, bad], [bad, good]):
        with pytest.raises(TrustError, match=bad.id[:12]):
            kedit_hub.apply(wrap(order), Untouchable(), trust=SIGNED)


def test_a_trusted_stack_answers_as_without_a_policy(tiny):
    (model, tokenizer, profile), patches = tiny
    signed = [sign(patch, ALICE) for patch in patches]
    free = kedit_hub.apply(patches, model, tokenizer=tokenizer, profile=profile)
    held = kedit_hub.apply(signed, model, tokenizer=tokenizer, profile=profile, trust=SIGNED)
    assert held.stack.ids == free.stack.ids
    assert torch.equal(logits(held.model, tokenizer, PROMPTS), logits(free.model, tokenizer, PROMPTS))


# --- hub refs -----------------------------------------------------------------------------------------------------


def test_authors_are_the_namespaces_of_refs(hub, patch):
    ours = push(patch, "our-lab/tower", version="1.0.0", token=hub.create_user("our-lab"))
    push(patch, "mallory/tower", token=hub.create_user("mallory"))
    for ref in ("our-lab/tower", "our-lab/tower@v1.0.0", f"hf://our-lab/tower@{ours.commit}"):
        with pytest.raises(Touched):
            kedit_hub.apply(ref, Untouchable(), trust=OURS)
    with pytest.raises(
        TrustError, match=r"from a repo of 'mallory'; .*\n  rule 1: wants a branch or tag of a Hub repo of our-lab"
    ):
        kedit_hub.apply("mallory/tower", Untouchable(), trust=OURS)
    with pytest.raises(TrustError, match="'mallory'"):
        kedit_hub.apply(["our-lab/tower", "mallory/tower"], Untouchable(), trust=OURS)


def test_a_pull_request_is_not_its_repos(hub, patch):
    """Anybody can open one, and its commits can be asked for by their digits like the repo's own."""
    token = hub.create_user("our-lab")
    push(make(patch, 1), "our-lab/tower", token=token)
    ours = push(make(patch, 2), "our-lab/tower", token=token)
    opened = push(patch, "our-lab/tower", create_pr=True, token=hub.create_user("mallory"))
    for ref in ("our-lab/tower@refs/pr/1", f"our-lab/tower@{opened.commit}"):
        assert fetch(ref).patch == patch and fetch(ref).author is None
        with pytest.raises(
            TrustError, match="wants a branch or tag of a Hub repo of our-lab, the patch came from none"
        ):
            kedit_hub.apply(ref, Untouchable(), trust=OURS)
    for ref in ("our-lab/tower", f"our-lab/tower@{ours.commit}"):
        with pytest.raises(Touched):
            kedit_hub.apply(ref, Untouchable(), trust=OURS)


def test_commits_and_branches_are_looked_up(hub, patch):
    token = hub.create_user("our-lab")
    api = HfApi(endpoint=hub.endpoint, token=token)
    first = push(make(patch, 1), "our-lab/tower", token=token)
    push(make(patch, 2), "our-lab/tower", token=token)
    api.create_branch("our-lab/tower", branch="side")
    side = api.create_commit(
        "our-lab/tower",
        [CommitOperationAdd(name, data) for name, data in patch.files().items()],
        commit_message="on a branch",
        revision="side",
    )
    for ref in (first.commit, side.oid, "side", "main"):
        assert admit(f"our-lab/tower@{ref}", OURS).author == "our-lab"
    for ref in (first.commit, "side"):
        assert fetch(f"our-lab/tower@{ref}").author is None  # nobody has asked


def test_a_hub_that_cannot_be_asked(tmp_path, monkeypatch, patch):
    """Whether a commit is the repo's own is not guessed. A version tag, and a signature, need no question."""
    signed = sign(patch, ALICE)
    with LocalHub(tmp_path / "hub") as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
        done = push(signed, "our-lab/tower", version="1.0.0", token=served.create_user("our-lab"))
        admit("our-lab/tower@v1.0.0", OURS)
    commit = f"our-lab/tower@{done.commit}"
    assert admit("our-lab/tower@v1.0.0", OURS).author == "our-lab"
    with pytest.raises(
        TrustError, match=rf"'{commit}'.* cannot be asked of the hub: .* Name a version tag, or trust a signer"
    ):
        admit(commit, OURS)
    assert admit(commit, SIGNED).patch == patch
    either = TrustPolicy(keys=SIGNED.keys, rules=[*OURS.rules, *SIGNED.rules])
    assert admit(commit, either).patch == patch
    with pytest.raises(TrustError, match="in one of 'our-lab'"):
        admit(commit, TrustPolicy(rules=[Rule(base="*", authors=["them"])]))  # it makes no difference here


def test_a_folder_named_like_a_repo_has_no_author(hub, patch, tmp_path, monkeypatch):
    push(patch, "our-lab/tower", token=hub.create_user("our-lab"))
    monkeypatch.chdir(tmp_path)
    patch.save(tmp_path / "our-lab" / "tower")
    with pytest.raises(TrustError, match="without an author"):
        kedit_hub.apply("our-lab/tower", Untouchable(), trust=OURS)
    with pytest.raises(Touched):
        kedit_hub.apply("hf://our-lab/tower", Untouchable(), trust=OURS)


def test_admit_and_fetch(hub, patch, tmp_path):
    push(patch, "Our-Lab/tower", token=hub.create_user("Our-Lab"))
    assert fetch("Our-Lab/tower") == admit("Our-Lab/tower", OURS) == Fetched(patch, "Our-Lab")
    assert fetch(patch) == fetch(patch.save(tmp_path / "p")) == Fetched(patch, None)
    with pytest.raises(TrustError):
        admit(patch, OURS)
    assert admit(patch).patch is patch  # no policy
    found = fetch("Our-Lab/tower")
    assert admit(found, OURS) == found
    with pytest.raises(HubError):
        fetch("./nowhere")


# --- which policy -------------------------------------------------------------------------------------------------


def test_the_policy_of_the_environment(patch, tmp_path, monkeypatch):
    SIGNED.save(tmp_path / "kedit.trust")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kedit.trust"))
    with pytest.raises(TrustError, match=r"kedit\.trust' refuses patch"):
        kedit_hub.apply(patch, Untouchable())
    with pytest.raises(TrustError):
        admit(patch)
    with pytest.raises(Touched):
        kedit_hub.apply(sign(patch, ALICE), Untouchable())
    with pytest.raises(TrustError, match="the policy has no rules"):  # the caller's own comes first
        kedit_hub.apply(sign(patch, ALICE), Untouchable(), trust=NOBODY)


@pytest.mark.parametrize("content", [None, "", "{}", '{"kedit_trust": 1}'])
def test_a_policy_that_cannot_be_read_is_not_no_policy(patch, tmp_path, monkeypatch, content):
    file = tmp_path / "kedit.trust"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TrustError, match=r"kedit\.trust"):
        kedit_hub.apply(patch, Untouchable(), trust=file)
    monkeypatch.setenv(VARIABLE, str(file))
    for patches in (patch, PatchStack([patch]), []):
        with pytest.raises(TrustError, match=r"kedit\.trust"):
            kedit_hub.apply(patches, Untouchable())


def test_export_obeys_the_environment(tiny, tmp_path, monkeypatch):
    (model, tokenizer, profile), (patch, _) = tiny
    SIGNED.save(tmp_path / "kedit.trust")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kedit.trust"))
    for form in (patch, PatchStack([patch]), patch.save(tmp_path / "p")):
        with pytest.raises(TrustError):
            kedit_hub.export(form, tmp_path / "out", model=model, tokenizer=tokenizer, profile=profile)
    assert not (tmp_path / "out").exists()
    signed = sign(patch, ALICE)
    kedit_hub.export(signed, tmp_path / "out", model=model, tokenizer=tokenizer, profile=profile)
    assert (tmp_path / "out" / "adapter_config.json").is_file()


# --- adding later -------------------------------------------------------------------------------------------------


def test_what_is_added_later_is_judged_too(tiny, tmp_path):
    (model, tokenizer, profile), (first, second) = tiny
    held = kedit_hub.apply(sign(first, ALICE), model, tokenizer=tokenizer, profile=profile, trust=SIGNED)
    before = logits(held.model, tokenizer, PROMPTS)
    with pytest.raises(TrustError, match=second.id[:12]):
        held.add(second.save(tmp_path / "plain"))
    assert held.stack.ids == (first.id,)
    assert torch.equal(logits(held.model, tokenizer, PROMPTS), before)
    held.add(sign(second, ALICE).save(tmp_path / "signed"))
    assert held.stack.ids == (first.id, second.id)


def test_a_policy_stays_with_its_model(tiny, tmp_path, monkeypatch):
    (model, tokenizer, profile), (first, second) = tiny
    SIGNED.save(tmp_path / "kedit.trust")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kedit.trust"))
    held = kedit_hub.apply(sign(first, ALICE), model, tokenizer=tokenizer, profile=profile)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(TrustError):
        held.add(second.save(tmp_path / "plain"))


def test_a_patch_in_memory_that_is_added_later_is_judged_too(tiny):
    (model, tokenizer, profile), (first, second) = tiny
    held = kedit_hub.apply(sign(first, ALICE), model, tokenizer=tokenizer, profile=profile, trust=SIGNED)
    with pytest.raises(TrustError):
        held.add(second)
