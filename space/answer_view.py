"""How an answer is shown: three panes, where they part, how sure each was, and the proof of what was and was not changed."""

from kedit_hub.evaluate.beside import Said, Token, Who
from space import html
from space.asking import Answer, Heard, Proof, Question
from space.sentences import Language, counted, told

NAMES: tuple[Who, ...] = ("base", "patched", "placebo")


def show(answer: Answer, patches: int, language: Language = "en") -> str:
    """All of it but the proof."""
    found = answer.found
    panes = [_pane(language, "base", found.base), _pane(language, "patched", found.patched)]
    if found.placebo is not None:
        panes.append(_pane(language, "placebo", found.placebo))
    why = told(language, "no_placebo", why=found.no_placebo)
    apart = f'<p class="subtle">{html.text(why)}</p>' if found.no_placebo and patches else ""
    legend = html.text(told(language, "legend"))
    return (
        f'<div class="sides n{len(panes)}">{"".join(panes)}</div><p class="subtle legend">{legend}</p>{apart}'
        f'<div class="applied">{_applied(language, answer, patches)}</div>'
    )


def growing(heard: Heard, placebo: bool, language: Language = "en") -> str:
    """The panes while the answers are being said."""
    names = NAMES if placebo else NAMES[:2]
    panes = "".join(
        f'<section class="side {who}" aria-busy="true" aria-label="{_label(language, "answer_of", who)}">{_head(language, who)}'
        f'<p class="answer growing">{html.text(heard.texts.get(who, ""), 2000)}<span class="caret"></span></p></section>'
        for who in names
    )
    return f'<div class="sides n{len(names)}">{panes}</div>'


def _label(language: Language, key: str, who: Who) -> str:
    return told(language, key, who=told(language, f"pane_{who}"))


def _head(language: Language, who: Who) -> str:
    return f"<h2>{told(language, f'pane_{who}')} <small>{told(language, f'told_{who}')}</small></h2>"


def _pane(language: Language, who: Who, said: Said) -> str:
    empty = "" if said.text else " empty"
    return (
        f'<section class="side {who}" aria-label="{_label(language, "answer_of", who)}">{_head(language, who)}'
        f'<p class="answer{empty}">{html.text(said.text or told(language, "nothing_said"), 2000)}</p>'
        f'<p class="caption">{told(language, "next_tokens", count=len(said.top))}</p>'
        f"{html.bars(said.top, _label(language, 'next_token_of', who))}{_tokens(language, who, said)}</section>"
    )


def _tokens(language: Language, who: Who, said: Said) -> str:
    """Every token with how sure its model was, and how sure the base would have been; marked from where the answers part."""
    if not said.tokens:
        return ""
    parted = "" if said.parts is None else told(language, "parts_at", at=said.parts + 1)
    cells = "".join(
        _token(language, at, token, marked=said.parts is not None and at >= said.parts, alone=who == "base")
        for at, token in enumerate(said.tokens)
    )
    return (
        f'<p class="caption">{told(language, "token_by_token")}{parted}</p>'
        f'<ol class="tokens" aria-label="{_label(language, "tokens_of", who)}">{cells}</ol>'
    )


def _token(language: Language, at: int, token: Token, *, marked: bool, alone: bool) -> str:
    others = ", ".join(f"{text} {p * 100:.1f} %" for text, p in token.top)
    whole = told(language, "token_told", at=at + 1, p=token.p * 100, p_base=token.p_base * 100, others=others)
    thin = "" if alone else f'<span class="thin" style="width:{_width(token.p_base)}%"></span>'
    name = "mark" if marked else "span"
    return (
        f'<li title="{html.text(whole)}"><{name} class="said">{html.text(token.text, 40)}</{name}>'
        f'<span class="gauge"><span class="thick" style="width:{_width(token.p)}%"></span>{thin}</span>'
        f'<span class="share">{html.percent(token.p)}</span></li>'
    )


def _width(p: float) -> str:
    return f"{max(0.0, min(1.0, p)) * 100:.1f}"


def _applied(language: Language, answer: Answer, patches: int) -> str:
    """Whether the patches did anything to this question; red when they did not."""
    if not patches:
        return html.note("info", told(language, "no_patch"))
    how = told(
        language,
        "applied_how",
        patches=counted(language, "patches", patches),
        tensors=counted(language, "tensors", answer.tensors),
        modules=counted(language, "modules", len(answer.modules)),
        paths=", ".join(answer.modules),
        mode=answer.mode,
        why=answer.why,
        seconds=answer.seconds,
    )
    noise = answer.found.kl_placebo
    moved = "" if noise is None else told(language, "placebo_moved", kl=noise)
    if answer.kl > 0:
        return html.note("good", told(language, "applied", kl=answer.kl) + moved, how)
    if answer.base.text != answer.patched.text:
        return html.note("good", told(language, "applied_later") + moved, how)
    return html.note("error", told(language, "applied_not"), how)


# --- the proof ------------------------------------------------------------------------------------------------------


def show_proof(proof: Proof, answer: Answer, language: Language = "en") -> str:
    """What the patches leave alone, every question of it openable; and that the base is what it was."""
    equal = proof.before == proof.after
    same = answer.found.restored
    restored = html.facts(
        [
            html.Line(
                told(language, "restored"),
                "good" if equal and same else "bad",
                (
                    told(language, "weights_equal" if equal else "weights_changed"),
                    html.Short(proof.after[:12], proof.after),
                    told(language, "logits_equal" if same else "logits_changed"),
                ),
            )
        ]
    )
    return f"{_locality(language, proof)}{restored}"


def _locality(language: Language, proof: Proof) -> str:
    asked, nothing = proof.neighbours, told(language, "nothing_said")
    left_out = [told(language, "neighbours_edited", count=proof.edited)] if proof.edited else []
    left_out += [told(language, "neighbours_long", count=proof.long)] if proof.long else []
    if not asked:
        return html.note("info", *(left_out or [told(language, "no_neighbours")]))
    kept = sum(one.unchanged for one in asked)
    rows = "".join(
        f"<details><summary>{'✓' if one.unchanged else '✗'} {html.text(one.prompt)}</summary>"
        f"<p>{told(language, 'base_said')} <strong>{html.text(one.before or nothing)}</strong></p>"
        f"<p>{told(language, 'patched_said')} <strong>{html.text(one.after or nothing)}</strong></p></details>"
        for one in sorted(asked, key=lambda one: one.unchanged)
    )
    kind = "good" if kept == len(asked) else "warning"
    head = html.note(kind, told(language, "unchanged", kept=kept, count=len(asked)), *left_out)
    return f'{head}<details class="neighbours"><summary>{told(language, "open_them")}</summary>{rows}</details>'


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
