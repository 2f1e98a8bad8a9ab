"""HTML of the page. Law: every text that comes from a patch, a model or a visitor passes through `text` first."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kedit_hub.patch.card import escape
from space.sentences import Language, message, told


def text(value: object, limit: int = 400) -> str:
    """Inert: ASCII punctuation as entities, control and direction characters spelled out, bounded."""
    return escape(str(value), limit)


@dataclass(frozen=True)
class Short:
    """A shortened word, and the whole of it for hovering."""

    shown: str
    whole: str


@dataclass(frozen=True)
class Line:
    """One line of `facts`, plain text."""

    name: str
    kind: Literal["good", "bad", "warning", "plain"]
    text: str | tuple[str | Short, ...]


def facts(lines: Iterable[Line]) -> str:
    """Names with what is known of each; the text says it, the colour repeats it."""
    rows = "".join(
        f'<div class="fact {line.kind}"><dt>{text(line.name)}</dt><dd>{_told(line.text)}</dd></div>' for line in lines
    )
    return f'<dl class="facts">{rows}</dl>'


def _told(parts: str | tuple[str | Short, ...]) -> str:
    return "".join(
        f'<abbr title="{text(part.whole)}">{text(part.shown)}</abbr>' if isinstance(part, Short) else text(part, 1000)
        for part in ([parts] if isinstance(parts, str) else parts)
    )


def refusal(error: Exception, language: Language = "en") -> str:
    """The message of a refusal; its lines stay lines."""
    return note("error", *message(language, error).splitlines())


def note(kind: str, *paragraphs: str) -> str:
    """A message box of plain texts. kind: "error" | "warning" | "good" | "info"."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<div class="note {kind}"{role}>{"".join(f"<p>{text(part, 2000)}</p>" for part in paragraphs)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, classes: str = "", label: str = "") -> str:
    """A table of plain texts, scrolled sideways, by keyboard too, where it is too wide. label: what it is about, else its head."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    whole = f'<table class="plain {classes}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return scrolled(whole, label or ", ".join(head))


def scrolled(markup: str, label: str) -> str:
    """Markup of this file in a region that scrolls sideways and never widens the page. label: plain text."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{markup}</div>'


def framed(kind: str, trusted: object) -> str:
    """A message box around a text of `say`, which the browser puts in."""
    return f'<div class="note {kind}"><p>{trusted}</p></div>'


def picture(svg: str, label: str, file: str, language: Language = "en") -> str:
    """A drawing that stands alone, as a picture: nothing in it can run, and its style stays its own. file: its name when it is kept,
    which is also how what it says on hover is read."""
    source = f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"
    shown = scrolled(f'<img class="drawing" src="{source}" alt="{text(label)}">', label)
    png = text(file.removesuffix(".svg") + ".png")
    return (
        f'{shown}<p class="subtle"><a href="{source}" download="{text(file)}">{told(language, "keep_drawing")}</a> '
        f'<a class="as-png" href="{source}" download="{png}">{told(language, "as_png")}</a></p>'
    )


def more(language: Language, count: int, key: str = "and_more") -> str:
    """How many are left out below a table; "" where none is."""
    return f'<p class="subtle">{told(language, key, count=count)}</p>' if count > 0 else ""


def lines(words: str, limit: int, language: Language = "en") -> str:
    """A text file as it stands, line by line."""
    found = words.splitlines()
    more = f"\n{told(language, 'more_lines', count=len(found) - limit)}" if len(found) > limit else ""
    return (
        f'<pre class="file" tabindex="0">{"".join(f"{text(line, 300)}{chr(10)}" for line in found[:limit])}{more}</pre>'
    )


def bars(top: Sequence[tuple[str, float]], label: str) -> str:
    """Probabilities in [0, 1] of the most probable next tokens."""
    rows = "".join(
        f'<li><span class="token">{text(token, 40)}</span>'
        f'<span class="track"><span class="bar" style="width:{max(0.0, min(1.0, p)) * 100:.1f}%"></span></span>'
        f'<span class="share">{percent(p)}</span></li>'
        for token, p in top
    )
    return f'<ol class="bars" aria-label="{text(label)}">{rows}</ol>'


def percent(p: float) -> str:
    if 0 < p < 0.001:
        return "&lt;0.1 %"
    return f"{p * 100:.1f} %"


def number(value: object) -> str:
    return "–" if not isinstance(value, int | float) or isinstance(value, bool) else f"{value:.3f}"
