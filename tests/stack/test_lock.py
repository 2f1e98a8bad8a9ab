"""kedit.lock: what is written is read, what was locked is restored, and what is no longer so is refused with both digests."""

import itertools
import json
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub import strictjson
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError, LimitError, PatchFormatError
from kedit_hub.patch import LowRank, Patch
from kedit_hub.patch.signature import sign
from kedit_hub.stack.lock import (
    Broken,
    InFolder,
    InPack,
    InRepo,
    Lock,
    Verified,
    _digest,
    _longest_rising,
    beside,
    diff,
    lock,
    restore,
)
from kedit_hub.stack.packed import pack
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import EVALS, PATHS, D, M, base, numbers

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
THERE = InRepo(repo="ada/tower", commit="a" * 40)


def no_hub(entry):
    raise KeditError("there is no hub here")


def small(target, subject="France", **changes):
    arguments = {
        "deltas": {PATHS[0]: LowRank(numbers(2, D), numbers(M, 2))},
        "edits": [Edit(f"The capital of {subject} is", target, subject, relation="capital")],
        "base": base(),
        "method": "mend",
    }
    return Patch.create(**{**arguments, **changes})


@pytest.fixture(scope="module")
def patches():
    """Unsigned with scores; signed; without either."""
    return [small("Rome").replace_evals(EVALS), sign(small("Bern", "Peru"), KEY), small("Oslo", "Chad")]


@pytest.fixture
def here(patches, tmp_path):
    """(path of a lock of one patch in a folder, one packed, one in a repo; what pulls the last)."""
    patches[0].save(tmp_path / "patches" / "one")
    digests = pack([patches[1]], tmp_path)
    sources = {patches[0].id: InFolder(folder="patches/one"), patches[1].id: InPack(packed=True), patches[2].id: THERE}
    stack = PatchStack(patches, conflicts="latest", weights={patches[0].id: 2.5}, pinned=[patches[1]])
    path = lock(stack, sources, StackSettings(mode="joint", budget=0.1), digests).save(tmp_path / "kedit.lock")

    def pull(entry):
        assert entry.source == THERE
        return patches[2]

    return path, pull


def read(here):
    path, pull = here
    found = Lock.load(path)
    return found, beside(found, path, pull)


def test_what_is_restored_is_what_was_locked(patches, here):
    found, fetch = read(here)
    stack, settings = restore(found, fetch)
    assert stack.ids == tuple(patch.id for patch in patches)
    assert dict(stack.weights) == {patches[0].id: 2.5} and stack.pinned == {patches[1].id} and stack.policy == "latest"
    assert settings == StackSettings(mode="joint", budget=0.1)
    assert [patch.evals for patch in stack] == [patch.evals for patch in patches]
    assert [patch.signers for patch in stack] == [patch.signers for patch in patches]
    assert isinstance(found.verify(fetch), Verified)


def test_a_lock_is_written_in_one_form(here):
    path, _ = here
    data = path.read_bytes()
    found = Lock.load(path)
    assert found.to_bytes() == data and json.loads(data)["digest"] == found.digest
    assert Lock.load(found.save(path.with_name("again"))) == found
    assert lock(restore(*read(here))[0], found.sources, found.settings, found.packed).to_bytes() == data
    for other in (data.replace(b"\n", b"\r\n"), strictjson.canonical(json.loads(data)), data + b"\n"):
        with pytest.raises(PatchFormatError, match="another form"):
            Lock.parse(other, local=True)


def test_an_empty_lock(tmp_path):
    empty = lock(PatchStack(conflicts="pin"), {})
    assert empty.base is None and Lock.load(empty.save(tmp_path / "kedit.lock")) == empty
    stack, settings = restore(empty, no_hub)
    assert len(stack) == 0 and stack.policy == "pin" and settings == StackSettings()


def test_adding_to_a_lock_as_to_an_index(patches, tmp_path):
    path = tmp_path / "kedit.lock"
    lock(PatchStack(), {}).save(path)
    for number, patch in enumerate(patches):
        before = Lock.load(path)
        patch.save(tmp_path / f"p{number}")
        stack, settings = restore(before, beside(before, path, no_hub))
        after = lock(stack.add(patch), {**before.sources, patch.id: InFolder(folder=f"p{number}")}, settings)
        after.save(path)
        assert [change.what for change in diff(before, after).changes if change.patch] == ["added"]
    assert [entry.id for entry in Lock.load(path).patches] == [patch.id for patch in patches]


# --- what has changed since ---------------------------------------------------------------------------------------


def test_another_patch_in_the_folder_is_told_with_both_ids(patches, here, tmp_path):
    small("Nice").save(tmp_path / "patches" / "one")
    found, fetch = read(here)
    broken = found.verify(fetch)
    assert isinstance(broken, Broken) and len(broken.reasons) == 1
    with pytest.raises(KeditError, match=f"{small('Nice').id} lies there, {patches[0].id} was locked"):
        restore(found, fetch)


def test_other_scores_are_told_with_both_digests(patches, here, tmp_path):
    was = Lock.load(here[0]).patches[0].files["evals.json"]
    patches[0].replace_evals({"protocols": {}}).save(tmp_path / "patches" / "one")
    with pytest.raises(KeditError, match=rf"evals\.json of patch .* has the digest [0-9a-f]{{64}}, {was} was locked"):
        restore(*read(here))
    patches[0].replace_evals(None).save(tmp_path / "patches" / "one")
    with pytest.raises(KeditError, match=f"has the digest of no file, {was} was locked"):
        restore(*read(here))


def test_another_signer_is_told(patches, here):
    for patch in (sign(patches[2], KEY), sign(patches[2], OTHER)):
        with pytest.raises(KeditError, match=f"is now signed by {patch.signers[0]}, and was signed by nobody"):
            restore(*read((here[0], lambda entry, patch=patch: patch)))


def test_changed_packed_files_are_not_even_parsed(here, tmp_path):
    file = tmp_path / "stack.json"
    file.write_bytes(b"[" * 100)
    with pytest.raises(KeditError, match=r"stack\.json has the digest [0-9a-f]{64}, [0-9a-f]{64} was locked"):
        restore(*read(here))


def test_every_reason_is_told(here, tmp_path):
    (tmp_path / "stack.safetensors").write_bytes(b"")
    (tmp_path / "patches" / "one" / "config.json").write_bytes(b"{}")
    found, fetch = read((here[0], no_hub))
    broken = found.verify(fetch)
    assert isinstance(broken, Broken) and len(broken.reasons) == 3
    with pytest.raises(KeditError) as caught:
        restore(found, fetch)
    assert all(reason in str(caught.value) for reason in broken.reasons)


def resealed(path, change, **how):
    """The lock with its value changed and the digest to match."""
    value = json.loads(path.read_bytes())
    del value["digest"]
    change(value)
    return strictjson.pretty({**value, "digest": _digest(value)})


def test_another_base_is_told(patches, here):
    for change in (
        lambda v: v["base"].update(id="org/other"),
        lambda v: v["base"].update(model_type="gpt2"),
        lambda v: v["base"].update(revision=None),
        lambda v: v["base"].update(fingerprint="0" * 64),
    ):
        here[0].write_bytes(resealed(here[0], change))
        with pytest.raises(KeditError, match=r"the lock is for the base .*, its patches are for 'org/base'"):
            restore(*read(here))


# --- policies and choices -----------------------------------------------------------------------------------------


def test_what_a_function_decided_is_kept_as_choices(tmp_path):
    a, b = small("Rome"), small("Nice")
    for answer, silent in (("earlier", b), ("later", a)):
        stack = PatchStack([a, b], conflicts=lambda conflict, answer=answer: answer)
        saved = lock(stack, {a.id: THERE, b.id: THERE})
        assert saved.conflicts == "error" and len(saved.choices) == 1
        held = {a.id: a, b.id: b}
        again, _ = restore(Lock.parse(saved.to_bytes()), lambda entry, held=held: held[entry.id])
        assert again.shadowed == stack.shadowed == {(silent.id, 0)}


def test_a_contradiction_that_the_lock_leaves_open_breaks_it():
    a, b = small("Rome"), small("Nice")
    saved = lock(PatchStack([a, b], conflicts="latest"), {a.id: THERE, b.id: THERE})
    value = {**json.loads(saved.to_bytes()), "conflicts": "error"}
    del value["digest"]
    found = Lock.parse(strictjson.pretty({**value, "digest": _digest(value)}))
    with pytest.raises(KeditError, match="answered in two ways"):
        restore(found, lambda entry: {a.id: a, b.id: b}[entry.id])


def test_a_patch_that_others_need_is_missed():
    a = small("Rome")
    b = small("Bern", "Peru", requires=[a.id])
    saved = lock(PatchStack([a, b]), {a.id: THERE, b.id: THERE})
    value = json.loads(saved.to_bytes())
    del value["digest"], value["patches"][0]
    found = Lock.parse(strictjson.pretty({**value, "digest": _digest(value)}))
    with pytest.raises(KeditError, match="which its patches build on"):
        restore(found, lambda entry: b)


def test_what_cannot_be_locked(patches):
    with pytest.raises(KeditError, match="it is not said where the patch"):
        lock(PatchStack(patches), {})
    with pytest.raises(KeditError, match="cannot be locked: packed must be given"):
        lock(PatchStack(patches), {patch.id: InPack(packed=True) for patch in patches})
    other = small("Rome", base=base().model_copy(update={"id": "org/other"}))
    with pytest.raises(KeditError, match=r"for 2 bases \('org/base' \(llama\), 'org/other' \(llama\)\)"):
        lock(PatchStack([patches[1], other]), {patches[1].id: THERE, other.id: THERE})


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_lock_from_elsewhere_names_no_folder(here):
    with pytest.raises(PatchFormatError, match="names the folder 'patches/one', and came from elsewhere"):
        Lock.parse(here[0].read_bytes())


@pytest.mark.parametrize("name", ["/etc", "..", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/", "", "~", "~/a", ".git", "C:x",
                                  "C:/x", "a\\..\\x", "a\x00b", "a\nb", "a/./b", "a.", "a ", "a\u202eb", "x" * 200, "/".join("a" * 17),
                                  "\\\\host\\x", "file:///etc", "${HOME}", "-x"])  # fmt: skip
def test_folders_that_are_refused(here, name):
    data = resealed(here[0], lambda v: v["patches"][0].update(source={"folder": name}))
    with pytest.raises(PatchFormatError, match=r"is not valid: patches\.0\.source"):
        Lock.parse(data, local=True)


@pytest.mark.parametrize("name", ["a", "a/b/c", "Größe", "パッチ", "a b", "v1.2.0", "a-b_c+d", "a..b"])
def test_folders_that_are_taken(here, name):
    data = resealed(here[0], lambda v: v["patches"][0].update(source={"folder": name}))
    assert Lock.parse(data, local=True).patches[0].source == InFolder(folder=name)


def test_links_are_not_followed(here, tmp_path):
    (tmp_path / "patches" / "one").rename(tmp_path / "outside")
    (tmp_path / "patches" / "one").symlink_to(tmp_path / "outside")
    with pytest.raises(KeditError, match="is a symbolic link"):
        restore(*read(here))
    (tmp_path / "patches" / "one").unlink()
    (tmp_path / "outside").rename(tmp_path / "patches" / "one")
    restore(*read(here))
    (tmp_path / "patches").rename(tmp_path / "elsewhere")
    (tmp_path / "patches").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeditError, match="is a symbolic link"):
        restore(*read(here))


# --- comparing ----------------------------------------------------------------------------------------------------


def test_what_two_locks_say_differently(patches):
    a, b, c = patches
    sources = {patch.id: THERE for patch in patches}
    old = lock(PatchStack([a, b, c]), sources)
    new = lock(
        PatchStack([c, a], conflicts="pin", weights={a.id: 3.0}, pinned=[c]),
        {**sources, c.id: InRepo(repo="ada/tower", commit="b" * 40)},
        StackSettings(budget=0.2),
    )
    told = {(change.what, change.patch): (change.before, change.after) for change in diff(old, new).changes}
    moved = {key: told.pop(key) for key in list(told) if key[0] == "moved"}
    assert moved in ({("moved", a.id): (1, 2)}, {("moved", c.id): (3, 1)})  # one of the two, whichever
    assert told == {
        ("removed", b.id): (f"ada/tower@{'a' * 40}", None),
        ("weight", a.id): (1.0, 3.0),
        ("pinned", c.id): (False, True),
        ("source", c.id): ({"repo": "ada/tower", "commit": "a" * 40}, {"repo": "ada/tower", "commit": "b" * 40}),
        ("settings.budget", None): (None, 0.2),
        ("conflicts", None): ("error", "pin"),
    }
    assert diff(old, old).changes == () and json.dumps(diff(old, new).to_dict())
    assert all(len(row) == 4 and all(isinstance(text, str) for text in row) for row in diff(old, new).rows())


def test_as_few_as_possible_have_moved():
    def slow(numbers):
        best = 0
        for chosen in range(1 << len(numbers)):
            run = [number for i, number in enumerate(numbers) if chosen >> i & 1]
            best = max(best, len(run)) if run == sorted(run) else best
        return best

    for order in itertools.permutations(range(6)):
        places = _longest_rising(list(order))
        run = [order[place] for place in places]
        assert run == sorted(run) and places == sorted(set(places)) and len(run) == slow(order)
    assert _longest_rising([]) == []


# --- hostile locks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(code="x"), "code: Extra"),
        (lambda v: v["settings"].update(code="x"), "settings.code"),
        (lambda v: v["settings"].update(mode="exec"), "settings.mode"),
        (lambda v: v["settings"].update(budget=-1.0), "settings.budget"),
        (lambda v: v.update(conflicts="os.system"), "conflicts"),
        (lambda v: v["patches"][0].update(weight=0.0), "patches.0.weight"),
        (lambda v: v["patches"][0].update(weight=1e9), "patches.0.weight"),
        (lambda v: v["patches"][0].update(weight="1"), "patches.0.weight"),
        (lambda v: v["patches"][0].update(weight=None), "patches.0.weight"),
        (lambda v: v["patches"][0].update(weight=True), "patches.0.weight"),
        (lambda v: v["patches"][0].update(pinned=1), "patches.0.pinned"),
        (lambda v: v["patches"][0].update(author="ada"), "patches.0.author"),
        (lambda v: v["patches"][0].update(id="../x"), "patches.0.id"),
        (lambda v: v["patches"][0]["files"].update({"../x": "0" * 64}), "patches.0.files"),
        (lambda v: v["patches"][2]["source"].update(commit="main"), "patches.2.source"),
        (lambda v: v["patches"][2]["source"].update(commit="v1.0.0"), "patches.2.source"),
        (lambda v: v["patches"][2]["source"].update(repo="../../etc"), "patches.2.source"),
        (lambda v: v["patches"][2]["source"].update(repo="https://x/y"), "patches.2.source"),
        (lambda v: v["patches"][2]["source"].update(folder="x"), "patches.2.source"),
        (lambda v: v["patches"][2].update(source={"packed": False}), "patches.2.source"),
        (lambda v: v["patches"][2].update(source={"url": "http://x"}), "patches.2.source"),
        (lambda v: v["patches"][2].update(source={}), "patches.2.source"),
        (lambda v: v["patches"].append(v["patches"][0]), "every patch once"),
        (lambda v: v.update(patches=[]), "base must be given"),
        (lambda v: v.update(base=None), "base must be given"),
        (lambda v: v.update(packed=None), "packed must be given"),
        (lambda v: v.update(packed={"stack.json": "0" * 64}), "packed must hold"),
        (lambda v: v["packed"].update({"/etc/passwd": "0" * 64}), "packed./etc/passwd"),
        (lambda v: v.update(choices=[[["0" * 64, 0], ["1" * 64, 0]]]), "between the patches of the lock"),
        (lambda v: v.update(choices=[[[v["patches"][0]["id"], -1], [v["patches"][1]["id"], 0]]]), "choices.0.0.1"),
        (lambda v: v.update(profiles=["/x"]), "profiles.0"),
        (lambda v: v.update(solved={"mode": "gated", "why": "", "modules": {}}), "though the settings ask for joint"),
        (lambda v: v.update(solved={"mode": "joint", "why": "x" * 1001, "modules": {}}), "solved.why"),
        (lambda v: v.update(solved={"mode": "joint", "why": "", "modules": {"__class__": {}}}), "solved.modules"),
    ],
)  # fmt: skip
def test_locks_that_do_not_mean_anything(here, change, words):
    with pytest.raises(PatchFormatError, match="is not valid") as caught:
        Lock.parse(resealed(here[0], change), local=True)
    assert words in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None, [1]])
def test_unknown_versions(here, version):
    with pytest.raises(PatchFormatError, match="this kedit_hub reads 1"):
        Lock.parse(resealed(here[0], lambda v: v.update(kedit_lock=version)), local=True)


def test_an_edit_by_hand_is_told(here):
    data = here[0].read_bytes()
    with pytest.raises(PatchFormatError, match="damaged or changed by hand"):
        Lock.parse(data.replace(b'"weight": 2.5', b'"weight": 9.5'), local=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"[]", "has kedit_lock 'None'"),
        (b'{"kedit_lock": 1, "kedit_lock": 1}', "twice"),
        (b'{"kedit_lock": 1, "weight": NaN}', "NaN"),
        (b'{"kedit_lock": 1, "weight": 1e999}', "not finite"),
        (b'{"kedit_lock": ' + b"[" * 50_000, "nested|values"),
        (b'{"kedit_lock": 1, "patches": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper"),
        (b'{"kedit_lock": 1, "x": ' + b"1" * 5000 + b"}", "digits"),
        (b"\xff\xfe", "not UTF-8"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x80\x04K\x01.", "pickle"),
        (b"PK\x03\x04", "pickle or zip"),
    ],
)
def test_bytes_that_are_no_lock(data, words):
    with pytest.raises(PatchFormatError, match=words):
        Lock.parse(data)


def test_a_million_patches_are_refused_at_once(here):
    entry = json.loads(here[0].read_bytes())["patches"][0]
    many = strictjson.canonical({"kedit_lock": 1, "patches": [entry] * 20_000})
    with pytest.raises(LimitError, match="20,000 patches; at most 10,000"):
        Lock.parse(many)
    with pytest.raises(LimitError, match="values"):
        Lock.parse(b'{"kedit_lock": 1, "patches": [' + b"{}," * 1_048_577 + b"{}]}")
    with pytest.raises(LimitError, match="bytes"):
        Lock.parse(b" " * (1 << 24) + b"{}")


def test_ten_thousand_patches_are_read(here):
    """As many as a lock may name fit into the bytes that it may have."""
    value = json.loads(here[0].read_bytes())
    entry, _, there = value["patches"]
    signers = [f"{n:064x}" for n in range(4)]
    value["patches"] = [
        {**there, "files": entry["files"], "signers": signers, "id": f"{n:064x}"} for n in range(10_000)
    ]
    value |= {"packed": None, "choices": []}
    del value["digest"]
    data = strictjson.pretty({**value, "digest": _digest(value)})
    assert len(Lock.parse(data).patches) == 10_000


def test_the_scores_file_is_the_one_that_lies_there(patches, here, tmp_path):
    """The digests of a lock are those of the bytes on disk, which any tool can compute."""
    for name, digest in Lock.load(here[0]).patches[0].files.items():
        assert sha256((tmp_path / "patches" / "one" / name).read_bytes()).hexdigest() == digest
