"""What the author's paraphrases bring, and where generalization comes from: the gated stack of 100 single patches on Atlas, test split.

    python benchmarks/paraphrases.py

Every edit has three held-out rephrases: two phrasings the base never saw with this fact ("unseen") and one it was trained with ("seen").
The same stack is made with the author's two paraphrases among the keys and values, and without them. Settings are the shipped profile's.
"""

from dataclasses import replace

from common import Report, one_by_one, quiet, row

import kedit_hub
from kedit_hub.api import load_model


def main() -> None:
    quiet()
    report = Report(
        "paraphrases", "Gated stacks of 100 single patches on Atlas, with and without the author's paraphrases"
    )
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = kedit_hub.demo.edits("test")[:100]
    rows = []
    for name, asked in (("two paraphrases", edits), ("none", [replace(edit, paraphrases=()) for edit in edits])):
        patches, failed = one_by_one(model, tokenizer, asked)
        pm = kedit_hub.apply(patches, model, tokenizer=tokenizer, conflicts="latest")
        scores = kedit_hub.evaluate(pm, asked, drift_texts=[])
        for protocol in ("generate", "tf-token"):
            answers = [
                [q.scores[protocol] for q in edit.questions if q.role == "generalization"] for edit in scores.per_edit
            ]
            unseen = sum(sum(a[:2]) for a in answers) / (2 * len(answers))
            seen = sum(a[2] for a in answers) / len(answers)
            reliability, _, neighbour, same, unrelated, _ = row(scores, protocol)
            portability = scores.protocols[protocol]["portability"]
            kinds = [portability.get(kind) for kind in ("chain", "alias", "one_hop")]
            rows.append([name, protocol, reliability, unseen, seen, neighbour, same, unrelated, *kinds])
        report.say(f"{name}: {len(failed)} of {len(edits)} values failed")
    columns = (
        "reliability",
        "unseen phrasing",
        "seen phrasing",
        "neighbour",
        "same subject",
        "unrelated",
        "chain",
        "alias",
        "one hop",
    )
    report.table(["paraphrases", "protocol", *columns], rows)
    report.save()


if __name__ == "__main__":
    main()
