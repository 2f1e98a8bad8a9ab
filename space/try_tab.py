"""Try: one question, the base's answer beside the patched one, and the proof that the patches were really applied."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
from torch import Tensor

from kedit_hub import KeditError, PatchedModel
from kedit_hub.errors import ConflictError
from space import believe, html
from space.believe import Asked
from space.state import MAX_NEW_TOKENS, MAX_PATCHES, MAX_QUESTION, Held, Policy, Workshop, clashes, kept, precisions

WINNERS = [
    ("Refuse: none of them is put on the base", "error"),
    ("Latest: the patch chosen last answers", "latest"),
    ("Pinned: the patch that you pin answers", "pin"),
]
TOP = 8  # next tokens shown
EXAMPLES = 8


# --- the request, as a value --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Everything an answer depends on."""

    text: str
    patches: tuple[Held, ...]
    base: str
    precision: str = "float32"
    conflicts: Policy = "error"
    max_new_tokens: int = 32
    pinned: tuple[str, ...] = ()  # ids of patches that win under "pin"


@dataclass(frozen=True)
class Side:
    """What one model answers. top: the most probable next tokens with their probabilities."""

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Answer:
    """kl: KL(base||patched) of the next-token distribution in nats. modules: paths that the patches change."""

    base: Side
    patched: Side
    kl: float
    mode: str
    why: str
    modules: tuple[str, ...]
    seconds: float


def ask(workshop: Workshop, question: Question) -> Answer:
    """The answers of the base and of the base with the patches. KeditError: too long, conflicts, wrong base, ..."""
    text = question.text.strip()
    if not text:
        raise KeditError("There is no question yet. Write the beginning of a sentence, or click an example.")
    if len(text) > MAX_QUESTION:
        raise KeditError(f"The question has {len(text):,} characters; at most {MAX_QUESTION} are taken here.")
    if not 1 <= question.max_new_tokens <= MAX_NEW_TOKENS:
        raise KeditError(f"max_new_tokens is {question.max_new_tokens}; it has to lie in 1 to {MAX_NEW_TOKENS}.")
    if question.conflicts not in ("error", "latest", "pin"):
        raise KeditError(f'conflicts is {question.conflicts[:40]!r}; take "error", "latest" or "pin".')
    started = time.perf_counter()
    loaded = workshop.load(question.base, question.precision)
    with loaded.lock:
        _check_length(loaded.model, loaded.tokenizer, text, question.max_new_tokens)
        plain = workshop.patched(loaded, ())
        patched = workshop.patched(loaded, question.patches, question.conflicts, pinned=question.pinned)
        before, after = next_token(plain, text), next_token(patched, text)
        base_side = Side(plain.ask(text, question.max_new_tokens), top_tokens(plain, before))
        patched_side = Side(patched.ask(text, question.max_new_tokens), top_tokens(patched, after))
        kl = max(0.0, (before.exp() * (before - after)).sum().item())  # rounding may leave -1e-8
    return Answer(
        base_side,
        patched_side,
        kl,
        str(patched.report["mode"]),
        str(patched.report["why"]),
        tuple(sorted({path for held in question.patches for path in held.patch.deltas})),
        time.perf_counter() - started,
    )


def _check_length(model: Any, tokenizer: Any, text: str, max_new_tokens: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    tokens = len(tokenizer(text)["input_ids"])
    if tokens == 0 or (positions is not None and tokens + max_new_tokens > positions):
        raise KeditError(
            f"The question has {tokens} tokens; this model reads 1 to {(positions or tokens) - max_new_tokens}."
        )


@torch.no_grad()
def next_token(model: PatchedModel, text: str) -> Tensor:
    """Log-probabilities (V,) of the token after `text`, float64."""
    inputs = model.tokenizer(text, return_tensors="pt")
    logits = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    return torch.log_softmax(logits[0, -1].double(), dim=-1)


def top_tokens(model: PatchedModel, log_probabilities: Tensor) -> tuple[tuple[str, float], ...]:
    best = log_probabilities.topk(min(TOP, len(log_probabilities)))
    return tuple(
        (shown_token(model.tokenizer, int(token)), probability)
        for token, probability in zip(best.indices, best.values.exp().tolist())
    )


def shown_token(tokenizer: Any, token: int) -> str:
    """A token as text; the space that begins a word is left out, other white space is named."""
    if token == tokenizer.eos_token_id:
        return "(end of text)"
    text = str(tokenizer.decode([token]))
    return text.strip() or {" ": "(space)", "\n": "(new line)"}.get(text, f"(token {token})")


def take_home(question: Question, endpoint: str | None = None) -> str:
    """Two lines of Python that give the patched answer. endpoint: of the hub of this page, None for the usual one."""
    if question.conflicts == "pin":
        places = [_loaded(held, endpoint) for held in question.patches]
        pinned = [name[:12] for name in question.pinned]
        arguments = [f"kedit_hub.PatchStack([{', '.join(places)}], conflicts='pin', pinned={pinned!r})"]
    else:
        places = [_place(held, endpoint) for held in question.patches]
        arguments = [places[0] if len(places) == 1 else f"[{', '.join(places)}]"]
    if not places:
        arguments.append(f"model={question.base!r}")
    if question.precision != "float32":
        arguments.append(f"quantization={question.precision!r}")
    if question.conflicts == "latest":
        arguments.append("conflicts='latest'")
    asked = repr(question.text.strip())
    if question.max_new_tokens != 32:
        asked += f", max_new_tokens={question.max_new_tokens}"
    return f"import kedit_hub\nprint(kedit_hub.apply({', '.join(arguments)}).ask({asked}))"


def _place(held: Held, endpoint: str | None) -> str:
    if held.origin == "hub" and endpoint is not None:
        return f"kedit_hub.pull({held.where!r}, endpoint={endpoint!r})"
    return repr(held.where)


def _loaded(held: Held, endpoint: str | None) -> str:
    """As a Patch, which is what a stack is made of."""
    if held.origin == "hub":
        return f"kedit_hub.pull({held.where!r})" if endpoint is None else _place(held, endpoint)
    return f"kedit_hub.Patch.load({held.where!r})"


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(answer: Answer, patches: int) -> str:
    return (
        f'<div class="sides">{_side("Base", "base", answer.base)}{_side("Patched", "patched", answer.patched)}</div>'
        f'<div class="applied">{_applied(answer, patches)}</div>'
    )


def _side(title: str, name: str, side: Side) -> str:
    empty = "" if side.text else " empty"
    return (
        f'<section class="side {name}" aria-label="{title} answer"><h3>{title}</h3>'
        f'<p class="answer{empty}">{html.text(side.text or "(nothing)", 2000)}</p>'
        f'<p class="caption">Next token, {TOP} most probable</p>{html.bars(side.top, f"{title}: next token")}</section>'
    )


def _applied(answer: Answer, patches: int) -> str:
    """Whether the patches did anything to this question; red when they did not."""
    if not patches:
        return html.note("info", "No patch is chosen: both sides are the base.")
    count = f"{patches} {'patch' if patches == 1 else 'patches'}"
    where = f"{len(answer.modules)} {'module' if len(answer.modules) == 1 else 'modules'}: {', '.join(answer.modules)}"
    how = f"{count} attached to {where}. Mode {answer.mode} ({answer.why}). {answer.seconds:.2f} s."
    if answer.kl > 0:
        return html.note("good", f"Applied. The next-token distribution moved by KL {answer.kl:.3g} nats.", how)
    if answer.base.text != answer.patched.text:
        return html.note("good", "Applied. The next token is untouched (KL 0); a later one changed.", how)
    return html.note("error", "KL 0: the patches changed nothing about this question. None of them is about it.", how)


# --- the tab ------------------------------------------------------------------------------------------------------


def choices(offered: Sequence[Held], asked: dict[str, Asked]) -> list[tuple[str, str]]:
    """asked: what asking again gave on this page, by patch id."""
    return [(believe.label(held, asked), held.patch.id) for held in offered]


def examples(workshop: Workshop, base: str, keys: Sequence[str], own: Sequence[Held]) -> list[list[str]]:
    """Questions to click: about the chosen patches and their neighbours; where none is chosen, about the first ones."""
    offered = workshop.offered(own, base)
    chosen = [held for held in offered if held.patch.id in keys] or offered
    prompts: list[str] = []
    for held in chosen[:4]:
        for edit in held.patch.edits[: 2 if len(chosen) > 1 else 4]:
            prompts += [edit.prompt, *edit.rephrases[:1], *[probe.prompt for probe in edit.locality[:1]]]
    return [[prompt] for prompt in dict.fromkeys(prompts) if len(prompt) <= MAX_QUESTION][:EXAMPLES]


@dataclass(frozen=True)
class Widgets:
    """What other parts of the page read and update. policy, pinned: who wins where patches disagree."""

    base: Any
    patches: Any
    policy: Any
    pinned: Any


def build(workshop: Workshop, own: Any, asked: Any) -> Widgets:
    """The tab. own, asked: the gr.States with the visitor's patches (a tuple of Held) and what they measured ({id: Asked})."""
    first = next(iter(workshop.bases))
    offered = workshop.offered((), first)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            patches = gr.CheckboxGroup(
                choices(offered, {}),
                label="1. Choose patches",
                info="Each one changes what the model knows. Tick several to stack them."
                if offered
                else "There are none yet: make one in the next tab, or add one from the Hub below.",
                elem_id="patches",
            )
            clash = gr.HTML(visible=False, elem_id="clash")
            policy = gr.Radio(
                WINNERS, value="error", label="Where they disagree", visible=False, elem_id="policy-choice"
            )
            pinned = gr.CheckboxGroup([], label="Pinned patches", visible=False, elem_id="pinned")
            with gr.Accordion("Add a patch from the Hub", open=False):
                ref = gr.Textbox(
                    label="Hub repo", placeholder="user/repo or user/repo@v1.2.0", max_lines=1, max_length=300
                )
                add = gr.Button("Add", size="sm")
                added = gr.HTML()
            with gr.Accordion("Base model and precision", open=len(workshop.bases) > 1):
                base = gr.Radio(
                    [(item.title, item.id) for item in workshop.bases.values()], value=first, label="Base model"
                )
                precision = gr.Radio(
                    [(("full precision (float32)" if name == "float32" else name), name) for name in precisions()],
                    value="float32",
                    label="Precision",
                )
        with gr.Column(scale=7, min_width=340):
            question = gr.Textbox(
                label="2. Ask",
                info="Write the beginning of a sentence; the model continues it.",
                lines=2,
                max_length=MAX_QUESTION,
                elem_id="question",
            )
            samples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=examples(workshop, first, (), ()),
                label="Or click one",
                samples_per_page=EXAMPLES,
                elem_id="examples",
            )
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            result = gr.HTML(elem_id="result")
            code = gr.Code(
                label="Take it home", language="python", visible=False, elem_id="code", interactive=False,
                lines=2, max_lines=6, wrap_lines=True, show_line_numbers=False,
            )  # fmt: skip

    def on_choice(
        keys: list[str], own: tuple[Held, ...], base: str, text: str, policy: Policy, pinned: list[str]
    ) -> tuple[Any, ...]:
        """Conflicts, examples and, where the box is empty, a question for the chosen patches."""
        chosen = workshop.chosen(keys[:MAX_PATCHES], own)
        sentences = clashes(chosen)
        shown = html.note("warning", "These patches disagree.", *sentences[:5], *(["..."] if sentences[5:] else []))
        asked = examples(workshop, base, keys, own)
        prefilled = asked[0][0] if asked and keys and not (text or "").strip() else gr.skip()
        return (
            gr.HTML(shown, visible=bool(sentences)),
            gr.Radio(visible=bool(sentences)),
            gr.CheckboxGroup(
                choices(chosen, {}),
                value=[key for key in pinned if key in keys],
                visible=bool(sentences) and policy == "pin",
            ),
            gr.Dataset(samples=asked),
            prefilled,
        )

    def on_base(base: str, own: tuple[Held, ...], asked: dict[str, Asked]) -> tuple[Any, ...]:
        return (
            gr.CheckboxGroup(choices(workshop.offered(own, base), asked), value=[]),
            gr.Dataset(samples=examples(workshop, base, (), own)),
        )

    def on_ask(
        text: str,
        keys: list[str],
        own: tuple[Held, ...],
        base: str,
        precision: str,
        policy: Policy,
        pinned: list[str],
    ) -> tuple[str, Any]:
        try:
            chosen = workshop.chosen(keys, own)
            disagree = bool(clashes(chosen))
            if disagree and policy == "error":
                raise ConflictError("The chosen patches disagree. Untick one of them, or choose which of them answers.")
            wins = tuple(key for key in pinned if key in keys) if disagree and policy == "pin" else ()
            wanted = Question(text or "", chosen, base, precision, policy if disagree else "error", pinned=wins)
            return show(ask(workshop, wanted), len(chosen)), gr.Code(take_home(wanted, workshop.endpoint), visible=True)
        except KeditError as error:
            return html.refusal(error), gr.Code(visible=False)

    def on_change(shown: str, *inputs: Any) -> tuple[Any, Any]:
        """Keep a shown answer true to the choice beside it. Where none is shown one may be on its way, and is left alone."""
        return on_ask(*inputs) if shown else (gr.skip(), gr.skip())

    def on_add(
        text: str, own: tuple[Held, ...], keys: list[str], base: str, asked: dict[str, Asked]
    ) -> tuple[Any, ...]:
        try:
            held = workshop.from_hub(text or "")
            own = kept(own, held)
        except KeditError as error:
            return own, gr.CheckboxGroup(), html.refusal(error), text
        if held.patch.manifest.base.id != base:
            other = workshop.bases[held.patch.manifest.base.id].title
            shown = html.note("info", f"Added. It was made for {other}: choose that base to use it.")
            return own, gr.CheckboxGroup(), shown, ""
        updated = gr.CheckboxGroup(choices(workshop.offered(own, base), asked), value=[*keys, held.patch.id])
        return own, updated, html.note("good", f"Added {held.where}."), ""

    asking = [question, patches, own, base, precision, policy, pinned]
    one_at_a_time: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    shown = [result, code]
    button.click(on_ask, asking, shown, **one_at_a_time)
    question.submit(on_ask, asking, shown, **one_at_a_time)
    samples.click(lambda sample: sample[0], samples, question, **private).then(on_ask, asking, shown, **one_at_a_time)
    choosing = [patches, own, base, question, policy, pinned]
    patches.change(on_choice, choosing, [clash, policy, pinned, samples, question], **private).then(
        on_change, [result, *asking], shown, **one_at_a_time
    )
    policy.input(lambda policy: gr.CheckboxGroup(visible=policy == "pin"), policy, pinned, **private)
    gr.on([policy.input, pinned.input], on_change, [result, *asking], shown, **one_at_a_time)
    precision.input(on_change, [result, *asking], shown, **one_at_a_time)
    base.change(on_base, [base, own, asked], [patches, samples], **private).then(
        on_change, [result, *asking], shown, **one_at_a_time
    )
    gr.on(
        [add.click, ref.submit], on_add, [ref, own, patches, base, asked], [own, patches, added, ref],
        concurrency_id="hub", concurrency_limit=2, api_visibility="private",
    )  # fmt: skip
    asked.change(
        lambda own, base, asked: gr.CheckboxGroup(choices(workshop.offered(own, base), asked)),
        [own, base, asked], patches, **private,
    )  # fmt: skip
    return Widgets(base, patches, policy, pinned)
