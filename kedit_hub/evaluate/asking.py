"""The two models that are measured, and what they told. Law: each distinct question is asked once of each, and what an earlier, killed
evaluation was told is not asked again.

    asked = Asking(edited, tokenizer, unedited, kept=None)
    asked.answers(["The capital of France is"])          ->  {"The capital of France is": "Lyon"}
    asked.forced([("The capital of France is", "Lyon")]) ->  (by the edited model, by the base), each {pair: Forced}
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_hub.errors import KeditError
from kedit_hub.evaluate import protocols
from kedit_hub.evaluate.cache import Kept, Question
from kedit_hub.evaluate.drift import Unedited
from kedit_hub.evaluate.protocols import Forced

Pair = tuple[str, str]  # prompt, answer
Who = Literal["edited", "base"]
Asked = TypeVar("Asked", bound=str | tuple[str, str])
Told = TypeVar("Told", bound=str | Forced)


class Asking:
    """Asks the edited model and the base. Without a base, `unedited` is None and the base tells nothing.

    told_by_base: what the base has told before, read and added to; None: nothing.
    """

    def __init__(
        self,
        edited: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unedited: Unedited | None,
        kept: Kept | None = None,
        *,
        told_by_base: dict[Question, Any] | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ):
        self.edited = edited
        self.tokenizer = tokenizer
        self.unedited = unedited
        self.kept = kept
        self.settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self.memory: dict[Who, dict[Question, Any]] = {
            "edited": {},
            "base": {} if told_by_base is None else told_by_base,
        }

    def answers(self, prompts: Iterable[str]) -> dict[str, str]:
        """The answer of the edited model to each prompt."""
        return self._texts("edited", prompts)

    def answers_of_base(self, prompts: Iterable[str]) -> dict[str, str]:
        """Empty without a base."""
        return {} if self.unedited is None else self._texts("base", prompts)

    def forced(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, Forced], dict[Pair, Forced]]:
        """(edited, base) by (prompt, answer); the base's is empty without one."""
        distinct = list(dict.fromkeys(pairs))

        def told_by(who: Who) -> dict[Pair, Forced]:
            return self._ask(who, ("forced",), distinct, protocols.each_forced, {}, _packed, _unpacked)

        return told_by("edited"), {} if self.unedited is None else told_by("base")

    def nlls(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, float | None], dict[Pair, float | None]]:
        """The same, mean NLL per answer token alone."""
        after, before = self.forced(pairs)
        return {pair: told.nll for pair, told in after.items()}, {pair: told.nll for pair, told in before.items()}

    def continuations(self, who: Who, prompts: Iterable[str], new_tokens: int, top_k: int) -> dict[str, str]:
        """See `protocols.continuations`. who="base" needs one."""
        how = {"new_tokens": new_tokens, "top_k": top_k}
        return self._ask(
            who, ("continuation", new_tokens, top_k), list(dict.fromkeys(prompts)), protocols.each_continuation, how,
            str, _text,
        )  # fmt: skip

    def _texts(self, who: Who, prompts: Iterable[str]) -> dict[str, str]:
        kind = ("answer", protocols.MAX_NEW_TOKENS)
        return self._ask(who, kind, list(dict.fromkeys(prompts)), protocols.each_answer, {}, str, _text)

    def _ask(
        self,
        who: Who,
        kind: Question,
        distinct: list[Asked],
        each: Callable[..., Iterator[list[tuple[int, Told]]]],
        how: dict[str, Any],
        pack: Callable[[Told], Any],
        unpack: Callable[[Any], Told | None],
    ) -> dict[Asked, Told]:
        """What is in memory or on disk, and the rest from the model, kept batch by batch."""
        memory = self.memory[who]
        questions: dict[Asked, Question] = {}
        for asked in distinct:
            questions[asked] = (who, *kind, *_as_tuple(asked))
        if self.kept is not None:
            for question in questions.values():
                if question not in memory and (value := self.kept.get(question)) is not None:
                    told = unpack(value)
                    if told is None:
                        raise KeditError(
                            f"the cache holds {str(value)[:80]!r} for {question!r}: name another cache folder."
                        )
                    memory[question] = told
        missing = [asked for asked, question in questions.items() if question not in memory]
        if missing:
            with self._model(who) as model:
                for batch in each(model, self.tokenizer, missing, **how, **self.settings):
                    told_now = {questions[missing[i]]: told for i, told in batch}
                    if self.kept is not None:
                        self.kept.put({question: pack(told) for question, told in told_now.items()})
                    memory.update(told_now)
        return {asked: memory[question] for asked, question in questions.items()}

    def _model(self, who: Who) -> AbstractContextManager[PreTrainedModel]:
        if who == "edited":
            return nullcontext(self.edited)
        assert self.unedited is not None
        return self.unedited()


# --- results as JSON values and back; None: this is no such result -------------------------------------------------


def _as_tuple(asked: str | Pair) -> tuple[str, ...]:
    return (asked,) if isinstance(asked, str) else asked


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _packed(told: Forced) -> dict[str, Any]:
    return {"predicted": list(told.predicted), "labels": list(told.labels), "nll": told.nll}


def _unpacked(value: Any) -> Forced | None:
    match value:
        case {"predicted": [*predicted], "labels": [*labels], "nll": None | float() | int() as nll} if (
            len(predicted) == len(labels) > 0
        ):
            if all(type(token) is int for token in [*predicted, *labels]):
                return Forced(tuple(predicted), tuple(labels), None if nll is None else float(nll))
    return None
