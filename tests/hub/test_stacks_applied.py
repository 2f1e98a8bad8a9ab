"""`apply` takes a stack for the patches it names: from a repo, a folder or a kedit.lock, and judges each of them alone."""

import pytest
import torch
from huggingface_hub import constants

import kedit_hub
from kedit_hub.api import FetchedStack, fetch, fetch_any
from kedit_hub.errors import KeditError, ProfileError, TrustError, WrongBaseError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import push
from kedit_hub.hub.stacks import push_stack
from kedit_hub.patch.trust import VARIABLE, Rule, TrustPolicy
from kedit_hub.stack.lock import InFolder, InRepo, Solved, lock
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, logits, make_patch, profile_of
from tests.tiny import tiny_model

OURS = TrustPolicy(rules=[Rule(base="*", authors=["our-lab"])])
THEIRS = TrustPolicy(rules=[Rule(base="*", authors=["mallory"])])
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
PROMPTS = [edit.prompt for edit in EDITS]


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    return (model, tokenizer, profile), [make_patch(model, tokenizer, profile, [edit]) for edit in EDITS[:3]]


@pytest.fixture
def use(tiny):
    model, tokenizer, profile = tiny[0]

    def use(patches, **how):
        return kedit_hub.apply(patches, model, tokenizer=tokenizer, profile=profile, **how)

    return use


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that refs name without an endpoint; users our-lab and mallory."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with LocalHub(tmp_path / "hub") as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
        yield served


@pytest.fixture
def served(hub, tiny):
    """our-lab/all: the first patch in a repo of mallory, the second packed; joint, with a weight and a pin."""
    ours, theirs = hub.create_user("our-lab"), hub.create_user("mallory")
    a, b, _ = tiny[1]
    done = push(a, "mallory/a", token=theirs)
    stack = PatchStack([b, a], weights={a.id: 3.0}, pinned=[b])
    sources = {a.id: InRepo(repo="mallory/a", commit=done.commit), b.id: InFolder(folder="b")}
    push_stack(
        lock(stack, sources, StackSettings(mode="joint", budget=1e4)), stack, "our-lab/all", version="1.0.0", token=ours
    )
    return stack


@pytest.mark.parametrize("ref", ["our-lab/all", "our-lab/all@v1.0.0", "hf://our-lab/all"])
def test_a_stack_repo_is_applied_as_it_was_locked(tiny, served, use, ref):
    m = use(ref)
    assert m.stack.ids == served.ids and dict(m.stack.weights) == dict(served.weights)
    assert m.stack.pinned == served.pinned and m.report["mode"] == "joint"
    by_hand = use(served, mode="joint", budget=1e4)
    _, tokenizer, _ = tiny[0]
    assert torch.equal(logits(m.model, tokenizer, PROMPTS), logits(by_hand.model, tokenizer, PROMPTS))
    assert use(ref, mode="gated").report["mode"] == "gated"  # said by the caller


def test_a_list_may_mix_stacks_and_patches(tiny, served, use):
    extra = tiny[1][2]
    m = use([extra, "our-lab/all"])
    assert m.stack.ids == (extra.id, *served.ids) and m.report["mode"] == "joint"
    assert dict(m.stack.weights) == dict(served.weights)
    twice = use(["our-lab/all", "our-lab/all@v1.0.0"])  # of several only the patches
    assert twice.stack.ids == served.ids and not twice.stack.weights and twice.report["mode"] == "gated"


def test_every_patch_of_a_stack_is_judged_by_its_own_author(served, use):
    a, b = served.patches[1], served.patches[0]
    for policy, refused in ((OURS, a), (THEIRS, b)):
        with pytest.raises(TrustError, match=f"refuses patch {refused.id[:12]}"):
            use("our-lab/all", trust=policy)
    both = TrustPolicy(rules=[Rule(base="*", authors=["our-lab", "mallory"])])
    assert use("our-lab/all", trust=both).stack.ids == served.ids


def test_where_one_patch_is_wanted_a_stack_is_refused(served, use):
    with pytest.raises(KeditError, match="'our-lab/all' is a stack of 2 patches"):
        fetch("our-lab/all")
    m = use([])
    with pytest.raises(KeditError, match="is a stack of 2 patches"):
        m.add("our-lab/all")
    assert isinstance(fetch_any("our-lab/all"), FetchedStack) and len(m.stack) == 0


def test_a_lock_in_a_folder(tiny, served, use, tmp_path):
    a, b, _ = tiny[1]
    b.save(tmp_path / "mine" / "b")
    commit = fetch_any("mallory/a").patch
    assert commit.id == a.id
    first = fetch_any("our-lab/all").lock.patches[1].source
    saved = lock(PatchStack([a, b]), {a.id: first, b.id: InFolder(folder="b")})
    path = saved.save(tmp_path / "mine" / "kedit.lock")
    for item in (path, str(path), tmp_path / "mine", str(tmp_path / "mine")):
        assert use(item).stack.ids == (a.id, b.id)
    with pytest.raises(TrustError):
        use(path, trust=THEIRS)  # b lies in a folder, and nobody is its author
    make = use(path)
    make.stack.patches[0].save(tmp_path / "mine" / "b")
    with pytest.raises(KeditError, match=f"{a.id} lies there, {b.id} was locked"):
        use(path)


def test_a_folder_of_a_patch_stays_one(tiny, use, tmp_path):
    """A kedit.lock that lies in the folder of a patch is not looked at."""
    a = tiny[1][0]
    a.save(tmp_path / "a")
    (tmp_path / "a" / "kedit.lock").write_bytes(b"not json")
    assert use(tmp_path / "a").stack.ids == (a.id,)


def test_another_base_is_refused(served):
    other, tokenizer = tiny_model("llama", seed=1)
    with pytest.raises(WrongBaseError):
        kedit_hub.apply("our-lab/all", other, tokenizer=tokenizer)
    other, tokenizer = tiny_model("gpt2")
    with pytest.raises(WrongBaseError, match="this model is a gpt2"):
        kedit_hub.apply("our-lab/all", other, tokenizer=tokenizer)


def test_a_locked_profile_that_is_not_here_is_asked_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    (model, tokenizer, profile), (a, _, _) = tiny
    a.save(tmp_path / "mine" / "a")
    m = kedit_hub.apply(a, model, tokenizer=tokenizer, profile=profile)
    saved = lock(m, {a.id: InFolder(folder="a")})
    assert saved.profiles == (profile.id,) and saved.solved == Solved.model_validate(saved.solved)
    path = saved.save(tmp_path / "mine" / "kedit.lock")
    kedit_hub.api.save_profile(profile)
    locked = kedit_hub.apply(path, model, tokenizer=tokenizer)
    assert lock(locked, saved.sources).profiles == saved.profiles
    expected = logits(locked.model, tokenizer, PROMPTS)
    home = kedit_hub.api.cache_folder() / profile.id
    home.rename(tmp_path / "elsewhere")
    with pytest.raises(ProfileError, match=f"made with the base profile {profile.id}, which is not on this machine"):
        kedit_hub.apply(path, model, tokenizer=tokenizer)
    assert kedit_hub.apply(path, model, tokenizer=tokenizer, profile=profile).stack.ids == (a.id,)
    assert kedit_hub.apply(a, model, tokenizer=tokenizer, profile=profile).stack.ids == (a.id,)
    (tmp_path / "elsewhere").rename(home)  # what the message says
    again = kedit_hub.apply(path, model, tokenizer=tokenizer)
    assert torch.equal(logits(again.model, tokenizer, PROMPTS), expected)
