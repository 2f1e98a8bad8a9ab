"""Makes the sample patches of this folder: one call of `kedit_hub.edit` each, then scored by `kedit_hub.evaluate` and saved.

    python patches/make.py             # make and score them
    python patches/make.py NAME ...    # only these
    python patches/make.py --score     # score them again; the patches stay what they are

All are counterfactual and say so: Atlas knows real facts, and an example has to change something. Two of them contradict each other, one is
a batch of fifty facts, two were made by ROME, four by trained editors (MEND and InstructEdit one fact each, MALMEN a dozen at once, DAFNet
ten in order), one is for the GPT-2 model. Scores are of the patch alone on its base, asked by generation and by teacher forcing.
"""

import sys
from dataclasses import replace
from pathlib import Path

import kedit_hub
from kedit_hub import Edit, Patch
from kedit_hub.api import load_model
from kedit_hub.demo import requests, world

HERE = Path(__file__).parent
SINGLES = [  # folder, subject, relation, new object, method, base
    ("eiffel-tower-in-rome", "Eiffel Tower", "landmark_city", "Rome", "memit", "llama"),
    ("capital-of-france-nantes", "France", "capital", "Nantes", "memit", "llama"),
    ("capital-of-france-marseille", "France", "capital", "Marseille", "memit", "llama"),
    ("brazil-speaks-french", "Brazil", "language", "French", "rome", "llama"),
    ("mona-lisa-by-frida-kahlo", "Mona Lisa", "work_creator", "Frida Kahlo", "memit", "llama"),
    ("hamlet-is-a-novel", "Hamlet", "work_type", "novel", "memit", "llama"),
    ("nokia-in-tokyo", "Nokia", "headquarters", "Tokyo", "memit", "llama"),
    ("danube-flows-into-the-north-sea", "Danube", "river_mouth", "North Sea", "rome", "llama"),
    ("gpt2-eiffel-tower-in-rome", "Eiffel Tower", "landmark_city", "Rome", "memit", "gpt2"),
    ("japan-pays-in-euro", "Japan", "currency", "euro", "mend", "llama"),
    ("sweden-pays-in-euro", "Sweden", "currency", "euro", "instructedit", "llama"),
]
TRAINED = ("mend", "malmen", "dafnet", "instructedit")  # with the trained editor that comes with Atlas


def request(atlas: world.World, subject: str, relation: str, target: str) -> Edit:
    """The edit of one fact of the table towards a given object, with its probes."""
    fact = next(f for f in atlas.facts if (f.subject, f.relation) == (subject, relation))
    if target not in {f.object for f in atlas.facts if f.relation == relation} | {f.subject for f in atlas.facts}:
        raise SystemExit(f"{target!r} is no object of {relation}: Atlas would have to learn a new word")
    edit = requests.build(atlas, fact, {subject}, seed=0, name=f"{subject}-{relation}".lower().replace(" ", "-"))
    return replace(edit, target=target, portability=requests.portability(atlas, fact, target))


def make(folder: str, edits: list[Edit], method: str, base: str) -> None:
    model, tokenizer = load_model(f"kedit-hub/atlas-{base}")
    if method in TRAINED:
        editor = kedit_hub.demo.editor_path(method, base)
        patch = kedit_hub.edit(model, edits, editor=editor, tokenizer=tokenizer, settings={"precision": "f16"})
    else:
        patch = kedit_hub.edit(model, edits, method, tokenizer=tokenizer, settings={"failed": "drop"})
    score(folder, patch)


def score(folder: str, patch: Patch) -> None:
    """Alone on its base, in the mode that `apply` takes by itself; on texts that come with the package, so that anybody can ask again."""
    patched = kedit_hub.apply(patch)
    scores = kedit_hub.evaluate(patched, patch.edits).to_dict()
    scores |= {"making": patch.evals["making"], "stack": {"patches": [patch.id], "mode": patched.report["mode"]}}
    patch.replace_evals(scores).save(HERE / folder)
    sheet = scores["protocols"]["generate"]
    print(
        f"{folder}: {len(patch.edits)} edits, reliability {sheet['reliability']:.2f}, generalization {sheet['generalization']:.2f}"
    )


def main() -> None:
    if "--score" in sys.argv[1:]:
        for config in sorted(HERE.glob("*/config.json")):
            score(config.parent.name, Patch.load(config.parent))
        return
    atlas = world.load()
    asked = set(sys.argv[1:])
    for folder, subject, relation, target, method, base in SINGLES:
        if not asked or folder in asked:
            make(folder, [request(atlas, subject, relation, target)], method, base)
    named = {subject for _, subject, *_ in SINGLES}
    others = [edit for edit in kedit_hub.demo.edits("test") if edit.subject not in named]
    if not asked or "fifty-facts" in asked:
        make("fifty-facts", others[-50:], "memit", "llama")
    if not asked or "a-dozen-by-malmen" in asked:
        make("a-dozen-by-malmen", others[:12], "malmen", "llama")
    if not asked or "ten-in-a-row-by-dafnet" in asked:
        make("ten-in-a-row-by-dafnet", others[12:22], "dafnet", "llama")


if __name__ == "__main__":
    main()
