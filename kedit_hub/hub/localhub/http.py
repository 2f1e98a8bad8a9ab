"""What a request and an answer are, apart from sockets. Law: a body is read in bounded pieces, and only when wanted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from kedit_hub import strictjson
from kedit_hub.errors import LimitError
from kedit_hub.hub.localhub.refusal import Refusal
from kedit_hub.hub.localhub.tokens import Identity


class Body:
    """The body of one request: `length` bytes still on the wire."""

    def __init__(self, stream: BufferedIOBase, length: int) -> None:
        self._stream = stream
        self.left = length

    def read(self, max_bytes: int) -> bytes:
        """All of it; raises Refusal (413) when it is longer than `max_bytes`."""
        if self.left > max_bytes:
            raise Refusal(f"The request has {self.left:,} bytes; at most {max_bytes:,} are read.", 413)
        data = self._stream.read(self.left)
        self._count(data, cut=len(data) < self.left)
        return data

    def lines(self, max_bytes: int, max_line: int) -> Iterator[bytes]:
        """One line at a time, without empty ones."""
        if self.left > max_bytes:
            raise Refusal(f"The request has {self.left:,} bytes; at most {max_bytes:,} are read.", 413)
        while self.left:
            line = self._stream.readline(min(self.left, max_line + 1))
            self._count(line, cut=not line)
            if len(line) > max_line:
                raise Refusal(f"A line of the request has more than {max_line:,} bytes.", 413)
            if line.strip():
                yield line

    def drain(self, max_bytes: int) -> bool:
        """Throw away what is left, so that the sender gets to read the answer. True when nothing is left."""
        budget = max_bytes
        while self.left and budget > 0:
            data = self._stream.read(min(self.left, 1 << 16, budget))
            if not data:
                return False
            self.left -= len(data)
            budget -= len(data)
        return not self.left

    def _count(self, data: bytes, *, cut: bool) -> None:
        self.left -= len(data)
        if cut:
            raise ConnectionError("the client closed the connection in the middle of a request")


@dataclass(frozen=True)
class Request:
    """One request. path: as sent, percent-encoded; endpoint: http://host:port as the client names this hub."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: Body
    endpoint: str
    user: Identity | None
    range: str | None

    def one(self, name: str) -> str | None:
        """The last value of a query parameter."""
        return self.query[name][-1] if name in self.query else None

    def flag(self, name: str) -> bool:
        return (self.one(name) or "").lower() in ("1", "true")

    def json(self, max_bytes: int) -> dict[str, Any]:
        """The body as a JSON object; an empty body is {}."""
        data = self.body.read(max_bytes)
        return json_object(data, "The request", max_bytes) if data.strip() else {}

    def form(self, max_bytes: int) -> dict[str, list[str]]:
        """The body as an HTML form."""
        try:
            return parse_qs(self.body.read(max_bytes).decode(), max_num_fields=10_000)
        except ValueError:
            raise Refusal("The request is not a form in UTF-8.") from None


@dataclass(frozen=True)
class Response:
    """One answer: either `data`, or the bytes [start, stop) of a file."""

    status: int = 200
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    stop: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start if self.file else len(self.data)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def refused(refusal: Refusal) -> Response:
    """The answer to a refused request; the message goes into a header too, where huggingface_hub looks for it."""
    message = str(refusal)
    in_header = message.encode("ascii", "backslashreplace").decode().replace("\r", " ").replace("\n", " ")
    headers = {"X-Error-Message": in_header[:500], **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return answer({"error": message}, refusal.status, headers)


def json_object(data: bytes, what: str, max_bytes: int) -> dict[str, Any]:
    """A strict JSON object; raises Refusal."""
    try:
        value = strictjson.loads(data, what=what, max_bytes=max_bytes, error=Refusal)
    except LimitError as error:
        raise Refusal(str(error), 413) from None
    if not isinstance(value, dict):
        raise Refusal(f"{what} is not a JSON object.")
    return value


def text_field(value: dict[str, Any], name: str, max_chars: int, default: str | None = None) -> str:
    """A text of a JSON object; raises Refusal when it is missing, of another type, or too long."""
    text = value.get(name)
    if text is None and default is not None:
        return default
    if not isinstance(text, str):
        raise Refusal(f"The field '{name}' must be a text.")
    if len(text) > max_chars:
        raise Refusal(f"The field '{name}' has {len(text):,} characters; at most {max_chars:,} are accepted.")
    return text
