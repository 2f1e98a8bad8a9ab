"""`bench` on the demo model: its numbers are those of `evaluate`, what is measured is kept, and what is kept is not measured again."""

import shutil
import warnings

import pytest

import kedit_hub
from kedit_hub import api, benchmarking, demo, workshop
from kedit_hub.benchmarking import bench
from kedit_hub.errors import EditError, KeditError
from kedit_hub.evaluate.cells import plan, pool, records_digest
from kedit_hub.evaluate.run import RunsFile
from kedit_hub.materials import Bases, read
from kedit_hub.workshop import Workshop
from tests.evaluate import atlas

ATLAS = "kedit-hub/atlas-llama"
EDITS = demo.edits("test")[:3]
TEXTS = demo.texts("drift")[:5]
SUITES = ("single", "batch", "sequential", "stack")


def measured(out, suites=("stack",), methods=("memit",), edits=EDITS, **how):
    """Quickly: two edits, teacher forcing alone, five texts."""
    asked = {"n": (2,), "protocols": ("tf-token",), "drift_texts": TEXTS, "progress": False, **how}
    return bench(methods, suites, atlas.base()[0], edits, tokenizer=atlas.base()[1], out=out, **asked)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of results, and its runs by suite and mode."""
    out = tmp_path_factory.mktemp("bench") / "results"
    runs = measured(out, SUITES, modes=("auto", "weights"), protocols=("tf-token", "generate"), n=(1, 2))
    return out, {(run.suite, run.mode, run.n): run for run in runs}


@pytest.fixture
def results(finished, tmp_path):
    """The same folder, to be changed by one test."""
    return shutil.copytree(finished[0], tmp_path / "results")


@pytest.fixture
def nothing_is_made(monkeypatch):
    monkeypatch.setattr(api, "edit", lambda *_, **__: pytest.fail("an edit was made"))


def same(sheet, run):
    told = sheet.to_dict()
    outcomes = told.pop("per_edit")
    for spent in ("time", "memory"):
        del told[spent]
    assert told == {name: value for name, value in run.scores.items() if name not in ("time", "memory", "making")}
    assert outcomes == run.per_edit


def edits_of(suite, n=2):
    return plan((suite,), EDITS, n=(n,))[0].edits


def patch(*edits):
    return kedit_hub.edit(*atlas.base()[:1], list(edits), "memit", tokenizer=atlas.base()[1], progress=False)


def scored(model, edits, **more):
    return kedit_hub.evaluate(model, edits, protocols=("tf-token", "generate"), drift_texts=TEXTS, **more)


def test_every_cell_is_there_once(finished):
    assert sorted(finished[1]) == [
        ("batch", "gated", 1), ("batch", "gated", 2), ("sequential", "gated", 1), ("sequential", "gated", 2),
        ("sequential", "weights", 1), ("sequential", "weights", 2), ("single", "gated", 2), ("stack", "gated", 1),
        ("stack", "gated", 2),
    ]  # fmt: skip
    assert list(RunsFile(finished[0] / "runs.jsonl")) == list(finished[1].values())


def test_batch_stack_and_sequential_are_evaluate_on_such_patches(finished):
    edits = edits_of("batch")
    same(scored(atlas.apply(patch(*edits)), edits), finished[1]["batch", "gated", 2])
    one_by_one = [patch(edit) for edit in edits]
    same(scored(atlas.apply(*one_by_one), edits), finished[1]["stack", "gated", 2])
    ordered = edits_of("sequential")
    sheet = scored(atlas.apply(*one_by_one), ordered)
    same(sheet, finished[1]["sequential", "gated", 2])
    told = [outcome.questions[0].scores["generate"] for outcome in sheet.per_edit]
    assert finished[1]["sequential", "gated", 2].retention == {"1": told[0], "2": sum(told) / 2}


def test_single_is_the_mean_of_evaluate_on_each_patch(finished):
    run, edits = finished[1]["single", "gated", 2], edits_of("single")
    sheets = [scored(atlas.apply(patch(edit)), [edit]) for edit in edits]
    for protocol in ("tf-token", "generate"):
        for role in ("reliability", "generalization"):
            values = [sheet.protocols[protocol][role] for sheet in sheets]
            assert run.scores["protocols"][protocol][role] == pytest.approx(sum(values) / 2)
    assert run.scores["drift"]["ppl_after"] == pytest.approx(sum(sheet.drift["ppl_after"] for sheet in sheets) / 2)
    assert run.per_edit == [sheet.per_edit[0].to_dict() for sheet in sheets]


def test_weights_are_fused_patch_after_patch(finished):
    model, tokenizer = atlas.base()
    fused = model
    for edit in edits_of("sequential"):
        made = kedit_hub.edit(fused, edit, "memit", tokenizer=tokenizer, profile=demo.profile("llama"), progress=False)
        fused = kedit_hub.apply(made, fused, tokenizer=tokenizer, mode="joint").fuse()
    run = finished[1]["sequential", "weights", 2]
    same(scored(fused, edits_of("sequential"), tokenizer=tokenizer, base=model), run)
    assert run.scores["drift"]["kl"] > finished[1]["sequential", "gated", 2].scores["drift"]["kl"]


def test_a_run_says_what_it_depends_on(finished):
    run = finished[1]["stack", "gated", 2]
    assert run.base.id == ATLAS and run.base.parameters == sum(p.numel() for p in atlas.base()[0].parameters())
    assert (run.base.dtype, run.base.quantization) == ("float32", None) and len(run.base.fingerprint) == 64
    assert run.dataset.id == "edits" and run.dataset.sha256 == records_digest(EDITS)
    assert run.dataset.edits_sha256 == records_digest(edits_of("stack"))
    assert run.settings == {"profile": demo.profile("llama").id}
    assert (
        run.scores["making"]["failed"] == 0 and run.scores["making"]["settings"]["layer"] == demo.profile("llama").layer
    )
    assert run.provenance.versions["torch"] and run.verified is False
    spent = run.efficiency
    assert spent.edit_cpu_s > 0 and spent.edit_wall_s > 0 and spent.train_s == 0
    sizes = [(folder / "patch" / name).stat().st_size for name in ("config.json", "patch.safetensors")
             for folder in (finished[0] / "patches").iterdir()]  # fmt: skip
    assert 0 < spent.artifact_bytes < sum(sizes)
    assert spent.peak_rss_bytes > 100_000_000


def test_what_is_measured_is_not_measured_again(finished, nothing_is_made, monkeypatch):
    monkeypatch.setattr("kedit_hub.evaluate.bench.evaluate", lambda *_, **__: pytest.fail("was asked"))
    before = (finished[0] / "runs.jsonl").read_bytes()
    runs = measured(finished[0], SUITES, modes=("auto", "weights"), protocols=("tf-token", "generate"), n=(1, 2))
    assert runs == list(finished[1].values())
    assert (finished[0] / "runs.jsonl").read_bytes() == before


def test_one_missing_line_is_one_cell_and_its_patches_are_found(results, finished, nothing_is_made):
    file = results / "runs.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2] + lines[3:]) + b'{"kedit_run": 1, "suite')
    with pytest.warns(UserWarning, match="half a line"):
        runs = measured(results, SUITES, modes=("auto",), protocols=("tf-token", "generate"), n=(1, 2))
    again = list(RunsFile(file))
    assert len(again) == len(lines) and again[-1].key == list(finished[1].values())[2].key
    assert again[-1].per_edit == list(finished[1].values())[2].per_edit
    assert [run.key for run in runs] == [run.key for run in finished[1].values() if run.mode != "weights"]


def test_another_question_is_another_cell(results, nothing_is_made):
    before = len(list(RunsFile(results / "runs.jsonl")))
    how = {"protocols": ("tf-token", "generate")}
    for change in (
        {"protocols": ("tf-token",)},
        {**how, "drift_texts": TEXTS[:4]},
        {**how, "fluency": True},
        {**how, "resume": False},
    ):
        measured(results, **change)
        assert len(list(RunsFile(results / "runs.jsonl"))) == (before := before + 1), change
    assert measured(results, per_edit=False, **how)[0].per_edit != []  # measured before with them


def test_edits_that_do_not_take_are_counted_and_asked(tmp_path, monkeypatch):
    weak = {"value": {"steps": 1, "lr": 1e-6}}
    one, two = measured(tmp_path, ("batch", "stack"), settings=weak)
    for run in (one, two):
        assert run.scores["making"] == {"failed": 2, "settings": {}} and run.mode == "-"
        assert run.scores["protocols"]["tf-token"]["reliability"] < 1 and run.scores["drift"]["kl"] == 0
        assert run.settings["value.steps"] == 1 and run.efficiency.artifact_bytes == 0
    monkeypatch.setattr(api, "edit", lambda *_, **__: pytest.fail("was tried again"))
    assert len(measured(tmp_path, settings=weak, resume=False)) == 1


def test_a_refused_cell_stops_no_other(tmp_path, monkeypatch):
    attached = Workshop.attached

    def refuse(shop, patches, model, tokenizer, mode):
        if mode == "joint":
            raise KeditError("no joint solve today")
        return attached(shop, patches, model, tokenizer, mode)

    with monkeypatch.context() as patched, pytest.raises(KeditError) as refused:
        patched.setattr(Workshop, "attached", refuse)
        measured(tmp_path, modes=("joint", "gated"))
    assert "1 of 2 cells were refused: stack n=2 of memit, joint: no joint solve today" in str(refused.value)
    assert [run.mode for run in RunsFile(tmp_path / "runs.jsonl")] == ["gated"]
    assert [run.mode for run in measured(tmp_path, modes=("joint", "gated"))] == ["joint", "gated"]


def test_auto_finds_what_was_measured_under_the_mode_it_comes_to(results, nothing_is_made):
    file = results / "runs.jsonl"
    before = file.read_bytes()
    measured(results, modes=("gated",), protocols=("tf-token", "generate"))
    assert file.read_bytes() == before
    assert measured(results, modes=("joint",), protocols=("tf-token", "generate"))[0].mode == "joint"


def test_a_policy_for_patches_of_others_is_not_asked_for_those_made_here(tmp_path, monkeypatch):
    policy = tmp_path / "policy.json"
    policy.write_text('{"kedit_trust": 1, "keys": {}, "rules": []}')
    monkeypatch.setenv("KEDIT_TRUST", str(policy))
    assert measured(tmp_path / "out", ("sequential",), n=(1,), modes=("auto", "weights"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"methods": ("rume",)}, "'rume' names no method"),
        ({"methods": "rome"}, "pass a list"),
        ({"suites": ("all",)}, "'all' names no suite"),
        ({"protocols": ("exact",)}, "'exact' names no protocol"),
        ({"quantizations": ("int4",)}, "'int4' names no quantization"),
        ({"quantizations": ()}, "[] names no quantization"),
        ({"quantizations": ("nf4",)}, "the id or folder"),
        ({"quantizations": ("nf4",), "suites": ("sequential",), "modes": ("weights",)}, "full precision"),
        ({"n": (4,)}, "there are 3"),
        ({"n": (2,), "limit": 1}, "there are 1"),
        ({"settings": {"steps": 3}}, "does not take the setting"),
        ({"settings": {"value": {"steps": [1]}}}, "value.steps=[1]"),
        ({"edits": ["an edit"]}, "'an edit' is none"),
        ({"edits": "testing"}, "'testing'"),
        ({"edits": "test", "split": "x"}, "'test'"),
    ],
)
def test_what_cannot_be_measured(tmp_path, wrong, said):
    with pytest.raises(KeditError) as refused:
        measured(tmp_path, **wrong)
    assert said in str(refused.value)
    assert not (tmp_path / "runs.jsonl").exists()


def test_records_of_a_file_that_cannot_be_read_are_counted(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text('{"prompt": "A is in", "target_new": "B", "subject": "A"}\n{"prompt": "", "target_new": "B"}\n')
    with pytest.warns(UserWarning, match="1 of 2 records cannot be read"):
        edits, records = read(file)
    assert (
        [edit.prompt for edit in edits] == ["A is in"] and records.id == "records.jsonl" and len(records.sha256) == 64
    )
    with pytest.raises(EditError):
        read(tmp_path / "none.jsonl")


def test_edits_that_ask_the_same_are_counted(tmp_path):
    with pytest.warns(UserWarning, match="1 edits ask what an earlier one asks"):
        measured(tmp_path, edits=[*EDITS, EDITS[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pool(demo.edits("test"))[:3] == EDITS


def test_a_patch_is_found_by_all_it_is_made_from(tmp_path, monkeypatch):
    bases = Bases(*atlas.base())
    shop = Workshop(bases, "memit", folder=tmp_path, settings={})
    assert not shop.has(EDITS[:1], 0)
    first = shop.made(EDITS[:1], 0)
    assert first.patch.edits == (EDITS[0],) and first.failed == 0 and shop.has(EDITS[:1], 0)
    (tmp_path / ".new-killed" / "new").mkdir(parents=True)  # left by a killed process
    monkeypatch.setattr(api, "edit", lambda *_, **__: pytest.fail("was made again"))
    again = Workshop(bases, "memit", folder=tmp_path, settings={}).made(EDITS[:1], 0)
    assert again.patch == first.patch and again.cost == first.cost
    assert not shop.has(EDITS[:2], 0) and not shop.has(EDITS[:1], 1)
    others = [
        Workshop(bases, "rome", folder=tmp_path, settings={}),
        Workshop(bases, "memit", folder=tmp_path, settings={"value": {"steps": 41}}),
        Workshop(bases, "memit", folder=tmp_path, settings={}, profile=demo.profile("llama").replace(drift_budget=0.5)),
        Workshop(Bases(ATLAS.replace("llama", "gpt2")), "memit", folder=tmp_path, settings={}),
    ]
    assert not any(other.has(EDITS[:1], 0) for other in others)
    monkeypatch.setattr(workshop.provenance, "source", lambda: ("1" * 40, False))
    assert not shop.has(EDITS[:1], 0)


def test_bases_of_fewer_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    how = {"n": (2,), "protocols": ("tf-token",), "drift_texts": TEXTS, "progress": False, "out": tmp_path}
    runs = bench(["memit"], ["quantization"], ATLAS, EDITS, **how)
    found = {(run.base.dtype, run.base.quantization): run for run in runs}
    assert list(found) == [("float32", None), ("bfloat16", None), ("float32", "int8"), ("float32", "nf4")]
    for (dtype, _), run in found.items():
        assert run.scores["environment"]["dtype"] == dtype and run.scores["protocols"]["tf-token"]["reliability"] > 0.5
    assert len(list((tmp_path / "patches").iterdir())) == 2  # made once, for all of them
    assert len({run.base.fingerprint for run in runs}) == 1 and len({run.key for run in runs}) == 4
    more = bench(["memit"], ["quantization", "stack"], ATLAS, EDITS, quantizations=["int8"], **how)
    assert [(run.suite, run.base.quantization) for run in more] == [
        ("quantization", None),
        ("stack", "int8"),
        ("quantization", "int8"),
    ]
    assert len(list(RunsFile(tmp_path / "runs.jsonl"))) == 5


def test_measured_by_another_commit_is_kept_and_said(results, monkeypatch):
    monkeypatch.setattr(benchmarking.provenance, "source", lambda: ("1" * 40, False))
    before = (results / "runs.jsonl").read_bytes()
    with pytest.warns(UserWarning, match="another version of kedit_hub"):
        measured(results, protocols=("tf-token", "generate"))
    assert (results / "runs.jsonl").read_bytes() == before
