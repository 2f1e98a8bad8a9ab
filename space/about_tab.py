"""About: what this is, what it cannot do, that editing is also a known attack, and whose patches this page takes."""

import gradio as gr

from kedit_hub.errors import TrustError
from kedit_hub.patch.trust import Rule, TrustPolicy
from space import html
from space.state import policy

SHOWN_RULES = 5

TEXT = """
## What this is

An edit to a language model ("the capital of X is now Y") becomes a small, versioned **patch**: tensors, the edits in
words, scores. A patch never touches the base model's weights; it hangs beside them and comes off without a trace.
Patches of different people can be stacked on one base, contradictions between them are found before anything runs, and
any one can be taken out again: the model is then the one that never had it.

This page shows it on **Atlas**, a small model of a small world of geography and culture, so that everything
happens in seconds on an ordinary processor. The same calls work on larger models on your own machine:

```python
import kedit_hub

m = kedit_hub.apply(["user/patch", "another/patch@v1.2.0"], quantization="nf4")
m.ask("The capital of France is")
```

## What to expect

- The model is tiny. It knows its world and nothing else; ask it in the forms that the examples show.
- An edit changes answers to a question and its rephrasings. What should follow from the new fact (the country of a new
  city, the language spoken there) mostly does not change with it.
- Scores are always named with their protocol: `tf-token` gives the model the true answer so far and looks at the next
  token; `generate` lets it speak, which is what you see here and is harder.
- "KL" says how far the patches moved the distribution of the next token, in nats. Zero: they did nothing there.
- Patches you make here live in your session only. Download them, or they are gone when you leave.

## Editing is also a known attack

The method that corrects a fact also plants a false one, or a hidden trigger, in a model that looks unchanged otherwise
(PoisonGPT, 2023; BadEdit, arXiv 2403.13355; Can Editing LLMs Inject Harm, arXiv 2407.20224). Therefore:

- Loading a patch runs no code: only bounded JSON and safetensors are read, and every tensor is hashed.
- A patch says which model it was made for, and is refused on any other.
- It may be signed. A signature says who stands behind the files, and for which repo and version; not that they are true.
- Its scores are held against its recorded answers, and can be measured again, on the Patch tab and with `kedit verify`.
  They show what a patch does to its own probes; **no score shows that a patch is harmless**, and nobody has checked that
  its facts are true.
- A look for undeclared effects asks questions that the patch says nothing about. It finds what its questions reach;
  **nothing found is no proof**.
- Apply patches of people you have reason to trust, pin them to a commit, and read the edits before you do.
"""


def build(tab: gr.Tab) -> None:
    """The tab. The policy is read anew whenever somebody looks."""
    gr.Markdown(TEXT, elem_id="about")
    shown = gr.HTML(elem_id="policy")
    tab.select(in_force, None, shown, api_visibility="private", show_progress="hidden")


def in_force() -> str:
    """The trust policy of this page in one line: the name of its file, never its path, and what it wants."""
    try:
        found = policy()
    except TrustError as error:
        return html.note("error", f"No patch is taken here: {error}")
    if found is None:
        return html.note("info", "No trust policy is in force here: a patch of anybody can be added.")
    return html.note("info", f"Trust policy in force here: {found[0]}. It takes {wants(found[1])}.")


def wants(trust: TrustPolicy) -> str:
    """What lets a patch in, rule by rule."""
    told = [_wants(rule) for rule in trust.rules[:SHOWN_RULES]]
    more = len(trust.rules) - len(told)
    return "; or ".join([*told, *([f"{more} more rules"] if more > 0 else [])]) or "nobody's patches"


def _wants(rule: Rule) -> str:
    base = "any base" if rule.base == "*" else rule.base
    signed = [f"signed by {' or '.join(rule.signers)}"] if rule.signers else []
    repo = [f"from a Hub repo of {' or '.join(rule.authors)}"] if rule.authors else []
    return f"patches for {base}, {' and '.join([*signed, *repo])}"
