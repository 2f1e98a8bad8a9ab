"""Strangers' text in HTML. Law: it goes through `escape` (into markup) or `island` (into the data block), never in any other way.

escape('<b>"x"')        ->  '&lt;b&gt;&quot;x&quot;'
visible("a\\u202eb")     ->  'aU+202Eb'
"""

import html
import json
import unicodedata
from typing import Any

MAX_CHARS = 300
_SPACES = "\n\r\t\v\f\x85\u2028\u2029"
_UNSEEN = ("Cc", "Cf", "Co", "Cn", "Cs")


def visible(text: str, limit: int = MAX_CHARS) -> str:
    """One line without surprises: what cannot be seen or turns the writing around is spelled out, and it is bounded."""
    if len(text) > limit:
        text = text[:limit] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_seen, text))


def _seen(char: str) -> str:
    if char in _SPACES:
        return " "
    return f"U+{ord(char):04X}" if unicodedata.category(char) in _UNSEEN else char


def escape(text: object, limit: int = MAX_CHARS) -> str:
    """`text` as the content of an element or of a quoted attribute."""
    return html.escape(visible(str(text), limit), quote=True)


def isolated(text: object, limit: int = MAX_CHARS) -> str:
    """`text` as an element whose writing direction stays its own."""
    return f"<bdi>{escape(text, limit)}</bdi>"


def island(value: Any) -> str:
    """JSON that may stand inside a script element of type application/json: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
