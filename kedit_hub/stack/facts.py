"""The facts of all patches of a stack as one router. Law: a function of the set; edits that are shadowed are left out.

What is put before a question is the fact on a line of its own: "The capital of France is Nantes." and a newline. With demonstrations it is
told as they are, "New Fact: The capital of France is Nantes", a newline and "Prompt: " (Zheng et al. 2023).

Other models that a patch names (an encoder, a cross-encoder, a counterfactual model) are never fetched: whoever applies the patch hands
them over by these names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.tokens import encode, join
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch.deltas import Facts
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.facts import Chat, Fact, FactsRouter, Piece
from kedit_hub.runtime.scope import Crossed, Lexical, Near, Scope, words
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import speaking

Models = Mapping[str, Any]  # by the name a patch gives it: see `_named`
NO_MODELS: Models = MappingProxyType({})
Watch = Callable[..., None]


def told(edit: Edit) -> str:
    """The fact in words, as it is put before a question."""
    text = join(edit.prompt, edit.target)
    return text + ("\n" if text.endswith((".", "!", "?")) else ".\n")


def told_new(edit: Edit) -> str:
    """The same after demonstrations."""
    return f"New Fact: {join(edit.prompt, edit.target)}\nPrompt: "


@dataclass
class _Gathered:
    """Facts that share a scope, as they are found."""

    make: Callable[[Sequence[Tensor | Edit]], Scope]
    facts: list[Fact] = field(default_factory=list)
    of: list[Any] = field(default_factory=list)  # what the scope knows each by


def in_words(
    patches: Sequence[Patch], stack: PatchStack, model: nn.Module, tokenizer: Any, models: Models = NO_MODELS
) -> tuple[list[FactsRouter], dict[str, list[Watch]]]:
    """None or one router, and what listens to the inputs of which modules. patches: in the order of their ids.

    KeditError for a model that a patch names and that is not in `models`, or does not speak the base's tokens.
    """
    scopes: dict[Any, _Gathered] = {}
    shown: dict[str, int] = {}  # demonstrations, each once
    at: dict[Any, str] = {}  # modules that scopes listen to
    for patch in patches:
        for path, delta in patch.deltas.items():
            if not isinstance(delta, Facts):
                continue
            if tokenizer is None:
                raise KeditError(f"patch {patch.id[:12]} holds facts in words, which need a tokenizer: pass tokenizer=")
            speaks = speaking(patch, stack)[delta.edit_index].tolist()
            key, make = _scope(patch, path, delta, models)
            mine = scopes.setdefault(key, _Gathered(make))
            at |= {key: path} if delta.scope == "projection" else {}
            numbers = tuple(shown.setdefault(text, len(shown)) for text in delta.demonstrations or ())
            answer = None if delta.answer == "prompt" else _answering(patch, str(delta.answer_model), model, models)
            for row, number in enumerate(delta.edit_index.tolist()):
                if speaks[row]:
                    edit = patch.edits[number]
                    piece = _piece(tokenizer, told_new(edit) if numbers else told(edit))
                    assert delta.threshold is not None
                    mine.facts.append(
                        Fact(delta.threshold, piece, patch.id, delta.told or 1, delta.shown or 0, numbers, answer)
                    )
                    mine.of.append(edit if delta.embeddings is None else delta.embeddings[row])
    found = {key: mine for key, mine in scopes.items() if mine.facts}
    if not found:
        return [], {}
    made = {key: mine.make(mine.of) for key, mine in found.items()}
    router = FactsRouter(
        tuple(fact for mine in found.values() for fact in mine.facts),
        tuple(made.values()),
        partial(tokenizer.decode, skip_special_tokens=True),
        tokenizer.bos_token_id,
        tuple(_piece(tokenizer, text) for text in shown),
        _chat(tokenizer),
    )
    watching: dict[str, list[Watch]] = {}
    for key, path in at.items():
        if key in made:
            watching.setdefault(path, []).append(made[key].watch)  # type: ignore[attr-defined]
    return [router], watching


def _scope(patch: Patch, path: str, delta: Facts, models: Models) -> tuple[Any, Callable[[Sequence[Any]], Scope]]:
    """What facts of this delta have to share to be in one scope, and how that is made of them."""
    scale = delta.scale or 1.0
    if delta.scope == "lexical":
        return "lexical", lambda edits: Lexical(tuple(words(edit.prompt) for edit in edits))
    if delta.scope == "projection":
        projection = delta.projection
        assert projection is not None
        same = (path, scale, projection.shape, projection.numpy().tobytes())
        return same, lambda rows: Near(torch.stack(list(rows)), scale, projection=projection)
    name = str(delta.scope_model)
    given = _named(patch, name, models)
    if delta.scope == "cross":
        cross = getattr(given, "cross", given)
        return (name, "cross"), lambda edits: Crossed(tuple(told(edit) for edit in edits), cross)
    encoder = getattr(given, "encode", given)
    return (name, scale), lambda rows: Near(torch.stack(list(rows)), scale, encoder=encoder)


def _named(patch: Patch, name: str, models: Models) -> Any:
    """For a scope: a callable (of texts, or of pairs of texts), or what has one as `encode` or `cross`. For answers: a causal LM, or what
    has one as `answer`."""
    if name not in models:
        trained = name.startswith("trained-editor/")
        what = "the trained editor" if trained else "another model"
        how = (
            "[folder or user/repo]), on the command line by --editor (for `kedit edit --on`, by --on-editor)"
            if trained
            else f"{{{name!r}: ...}})"
        )
        raise KeditError(
            f"patch {patch.id[:12]} ({patch.manifest.method}) needs {what} {name!r} to know its scope or to answer, and nothing is fetched "
            f"that a patch names: hand it over, as in apply(..., models={how}, or take the patch out of the stack"
        )
    return models[name]


def _answering(patch: Patch, name: str, base: nn.Module, models: Models) -> Any:
    answer = getattr(_named(patch, name, models), "answer", None) or models[name]
    own, wanted = (getattr(getattr(m, "config", None), "vocab_size", None) for m in (answer, base))
    if own != wanted:
        raise KeditError(
            f"patch {patch.id[:12]} is answered by {name!r}, which has {own} tokens where the base has {wanted}: its answers take the "
            "place of the base's logits, so it has to be a causal model with the base's own tokenizer"
        )
    return answer


def _piece(tokenizer: Any, text: str) -> Piece:
    return Piece(text, tuple(encode(tokenizer, [text]).input_ids[0].tolist()))


def _chat(tokenizer: Any) -> Chat | None:
    """Of a tokenizer with a chat template that begins a conversation in one way."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    mark = "\N{WHITE SQUARE}"

    def rendered(role: str, text: str) -> str:
        return str(tokenizer.apply_chat_template([{"role": role, "content": text}], tokenize=False))

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    def message(text: str) -> tuple[int, ...]:
        try:
            return tokens(rendered("system", text))
        except Exception:  # templates refuse roles with errors of their own
            return tokens(rendered("user", text))

    opening = rendered("user", mark).partition(mark)[0].rstrip()
    return Chat(opening, message, tokenizer.decode) if opening else None
