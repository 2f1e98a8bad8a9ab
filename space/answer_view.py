"""How an answer is shown: three panes, where they part, how sure each was, and the proof of what was and was not changed."""

from kedit_hub.evaluate.beside import Said, Token, Who
from space import html
from space.asking import Answer, Heard, Proof, Question

TITLES: dict[Who, str] = {"base": "Base", "patched": "Patched", "placebo": "Placebo"}
TOLD: dict[Who, str] = {
    "base": "without any patch",
    "patched": "with your stack",
    "placebo": "noise of the same size in the same places",
}
LEGEND = (
    "Each token with the probability it was said with; the thin bar is what the base would have given it. Marked from where an answer "
    "parts from the base&#39;s."
)


def show(answer: Answer, patches: int) -> str:
    """All of it but the proof."""
    found = answer.found
    panes = [_pane("base", found.base), _pane("patched", found.patched)]
    if found.placebo is not None:
        panes.append(_pane("placebo", found.placebo))
    apart = f'<p class="subtle">No placebo: {html.text(found.no_placebo)}.</p>' if found.no_placebo and patches else ""
    return (
        f'<div class="sides n{len(panes)}">{"".join(panes)}</div><p class="subtle legend">{LEGEND}</p>{apart}'
        f'<div class="applied">{_applied(answer, patches)}</div>'
    )


def growing(heard: Heard, placebo: bool) -> str:
    """The panes while the answers are being said."""
    names: tuple[Who, ...] = ("base", "patched", "placebo") if placebo else ("base", "patched")
    panes = "".join(
        f'<section class="side {who}" aria-busy="true" aria-label="{TITLES[who]} answer">{_head(who)}'
        f'<p class="answer growing">{html.text(heard.texts.get(who, ""), 2000)}<span class="caret"></span></p></section>'
        for who in names
    )
    return f'<div class="sides n{len(names)}">{panes}</div>'


def _head(who: Who) -> str:
    return f"<h2>{TITLES[who]} <small>{TOLD[who]}</small></h2>"


def _pane(who: Who, said: Said) -> str:
    empty = "" if said.text else " empty"
    return (
        f'<section class="side {who}" aria-label="{TITLES[who]} answer">{_head(who)}'
        f'<p class="answer{empty}">{html.text(said.text or "(nothing)", 2000)}</p>'
        f'<p class="caption">Next token, {len(said.top)} most probable</p>{html.bars(said.top, f"{TITLES[who]}: next token")}'
        f"{_tokens(who, said)}</section>"
    )


def _tokens(who: Who, said: Said) -> str:
    """Every token with how sure its model was, and how sure the base would have been; marked from where the answers part."""
    if not said.tokens:
        return ""
    parted = "" if said.parts is None else f" It parts from the base at token {said.parts + 1}."
    cells = "".join(
        _token(at, token, marked=said.parts is not None and at >= said.parts, alone=who == "base")
        for at, token in enumerate(said.tokens)
    )
    return (
        f'<p class="caption">Token by token.{parted}</p>'
        f'<ol class="tokens" aria-label="{TITLES[who]}: token by token">{cells}</ol>'
    )


def _token(at: int, token: Token, *, marked: bool, alone: bool) -> str:
    others = ", ".join(f"{text} {p * 100:.1f} %" for text, p in token.top)
    whole = f"token {at + 1}: {token.p * 100:.1f} %; base {token.p_base * 100:.1f} %; likeliest: {others}"
    thin = "" if alone else f'<span class="thin" style="width:{_width(token.p_base)}%"></span>'
    name = "mark" if marked else "span"
    return (
        f'<li title="{html.text(whole)}"><{name} class="said">{html.text(token.text, 40)}</{name}>'
        f'<span class="gauge"><span class="thick" style="width:{_width(token.p)}%"></span>{thin}</span>'
        f'<span class="share">{html.percent(token.p)}</span></li>'
    )


def _width(p: float) -> str:
    return f"{max(0.0, min(1.0, p)) * 100:.1f}"


def _applied(answer: Answer, patches: int) -> str:
    """Whether the patches did anything to this question; red when they did not."""
    if not patches:
        return html.note("info", "No patch is chosen: both sides are the base.")
    count = _count(patches, "patch", "patches")
    where = f"{_count(len(answer.modules), 'module', 'modules')}: {', '.join(answer.modules)}"
    how = (
        f"{count} with {_count(answer.tensors, 'tensor', 'tensors')} attached to {where}. Mode {answer.mode} ({answer.why}). "
        f"{answer.seconds:.2f} s."
    )
    noise = answer.found.kl_placebo
    told = "" if noise is None else f" The placebo moved it by KL {noise:.3g}."
    if answer.kl > 0:
        return html.note("good", f"Applied. The next-token distribution moved by KL {answer.kl:.3g} nats.{told}", how)
    if answer.base.text != answer.patched.text:
        return html.note("good", f"Applied. The next token is untouched (KL 0); a later one changed.{told}", how)
    return html.note("error", "KL 0: the patches changed nothing about this question. None of them is about it.", how)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


# --- the proof ------------------------------------------------------------------------------------------------------


def show_proof(proof: Proof, answer: Answer) -> str:
    """What the patches leave alone, every question of it openable; and that the base is what it was."""
    equal = proof.before == proof.after
    same = answer.found.restored
    restored = html.facts(
        [
            html.Line(
                "Base restored",
                "good" if equal and same else "bad",
                (
                    "sha256 of all its weights equal, " if equal else "NOT: its weights have changed, ",
                    html.Short(proof.after[:12], proof.after),
                    "; with the patches off its logits for this question are the same, bit for bit."
                    if same
                    else "; with the patches off its logits are NOT what they were.",
                ),
            )
        ]
    )
    return f"{_locality(proof)}{restored}"


def _locality(proof: Proof) -> str:
    asked = proof.neighbours
    if not asked:
        return html.note("info", "These patches name no questions that they leave alone, so none was asked.")
    kept = sum(one.unchanged for one in asked)
    rows = "".join(
        f"<details><summary>{'✓' if one.unchanged else '✗'} {html.text(one.prompt)}</summary>"
        f"<p>Base: <strong>{html.text(one.before or '(nothing)')}</strong></p>"
        f"<p>Patched: <strong>{html.text(one.after or '(nothing)')}</strong></p></details>"
        for one in sorted(asked, key=lambda one: one.unchanged)
    )
    kind = "good" if kept == len(asked) else "warning"
    head = html.note(
        kind,
        f"{kept}/{len(asked)} unchanged: questions that these patches are to leave alone, asked with and without them.",
    )
    return f'{head}<details class="neighbours"><summary>Open them one by one</summary>{rows}</details>'


# --- for programs ---------------------------------------------------------------------------------------------------


def as_json(answer: Answer, question: Question, code: str) -> dict[str, object]:
    """JSON values of everything that is shown, and of what was asked."""
    found = answer.found
    sides: dict[str, Said | None] = {"base": found.base, "patched": found.patched, "placebo": found.placebo}
    return {
        "question": question.text.strip(),
        "base": question.base,
        "precision": question.precision,
        "patches": [
            {"id": held.patch.id, "where": held.where, "strength": dict(question.strengths).get(held.patch.id, 1.0)}
            for held in question.patches
        ],
        "conflicts": question.conflicts,
        "pinned": list(question.pinned),
        "seed": question.placebo,
        "max_new_tokens": question.max_new_tokens,
        "mode": {"asked": question.mode, "used": answer.mode, "why": answer.why},
        "modules": list(answer.modules),
        "kl": found.kl,
        "kl_placebo": found.kl_placebo,
        "restored": found.restored,
        "answers": {
            name: None
            if said is None
            else {
                "text": said.text,
                "parts_at": said.parts,
                "tokens": [
                    {"text": t.text, "p": t.p, "p_base": t.p_base, "top": [list(pair) for pair in t.top]}
                    for t in said.tokens
                ],
            }
            for name, said in sides.items()
        },
        "code": code,
    }
