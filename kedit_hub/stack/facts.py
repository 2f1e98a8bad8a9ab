"""The facts of all patches of a stack as one router. Law: a function of the set; edits that are shadowed are left out.

What is put before a question is the fact on a line of its own: "The capital of France is Nantes." and a newline.
"""

from collections.abc import Sequence
from typing import Any

from kedit_hub.base.tokens import encode, join
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch.deltas import Facts
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.facts import Fact, FactsRouter, words
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import speaking


def told(edit: Edit) -> str:
    """The fact in words, as it is put before a question."""
    text = join(edit.prompt, edit.target)
    return text + ("\n" if text.endswith((".", "!", "?")) else ".\n")


def in_words(patches: Sequence[Patch], stack: PatchStack, tokenizer: Any) -> list[FactsRouter]:
    """None or one. patches: in the order of their ids. KeditError for facts whose scope or answer is up to another model."""
    facts: dict[tuple[str, int], Fact] = {}
    for patch in patches:
        for delta in patch.deltas.values():
            if not isinstance(delta, Facts):
                continue
            if (delta.scope, delta.answer) != ("lexical", "prompt"):
                raise KeditError(
                    f"patch {patch.id[:12]} holds {len(delta.edit_index)} edit(s) in words (facts, of method {patch.manifest.method}) with "
                    f"the scope {delta.scope!r}, answered by {delta.answer!r}: such facts are read, checked and shared, but not applied by "
                    "this version: take the patch out of the stack, and put its facts before your question yourself"
                )
            if tokenizer is None:
                raise KeditError(f"patch {patch.id[:12]} holds facts in words, which need a tokenizer: pass tokenizer=")
            assert delta.threshold is not None
            speaks = speaking(patch, stack)
            for number in delta.edit_index.tolist():
                if speaks[number]:
                    edit = patch.edits[number]
                    row = encode(tokenizer, [told(edit)])
                    tokens = tuple(row.input_ids[0].tolist())
                    facts[patch.id, number] = Fact(words(edit.prompt), delta.threshold, tokens, patch.id)
    if not facts:
        return []
    return [FactsRouter(tuple(facts.values()), tokenizer.decode, tokenizer.bos_token_id)]
