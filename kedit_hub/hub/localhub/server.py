"""The hub on a socket. Law: loopback only unless told otherwise, bounded input, and no token in any log.

Threads answer requests one by one; Hub (routes.py) decides what, this file reads and writes bytes.
"""

import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from kedit_hub.errors import HubError
from kedit_hub.hub.localhub.bounds import HubBounds
from kedit_hub.hub.localhub.http import Body, Request, Response, answer, refused
from kedit_hub.hub.localhub.refusal import Refusal
from kedit_hub.hub.localhub.routes import Hub
from kedit_hub.hub.localhub.store import Store
from kedit_hub.hub.localhub.tokens import Identity, Role, Tokens, add_user

DEFAULT_PORT = 8471
logger = logging.getLogger(__name__)


class LocalHub:
    """A development hub on the folder `root`, answering while its `with` block runs.

        with LocalHub(tmp_path) as hub:
            token = hub.create_user("ada")
            HfApi(endpoint=hub.endpoint, token=token).create_repo("ada/patch")

    port 0 takes a free one. tokens: more tokens than those of root/tokens.json, {token: Identity}.
    Raises HubError when another hub serves `root`, when the port is taken, or when `host` is not a loopback address:
    tokens and private repos would cross the network unencrypted; allow_remote says that this is wanted.
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tokens: Mapping[str, Identity] | None = None,
        allow_remote: bool = False,
        bounds: HubBounds | None = None,
    ) -> None:
        if not allow_remote and not _is_loopback(host):
            raise HubError(
                f"'{host}' can be reached from other machines, and this hub has no encryption. "
                "Serve 127.0.0.1, or say allow_remote=True inside a network you trust."
            )
        self.root = Path(root)
        self._bounds = bounds or HubBounds()
        self._store = Store(self.root, self._bounds)
        try:
            hub = Hub(self._store, self._bounds)
            self._server = _Server(
                (host, port), hub, Tokens(self.root, tokens or {}), self._bounds, remote=allow_remote
            )
        except OSError as error:
            self._store.close()
            raise HubError(f"The hub cannot listen on {host}:{port} ({error.strerror}). Choose another port.") from None
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def create_user(self, name: str, role: Role = "write") -> str:
        """A new token for a user, who exists from the first token on. Kept only as a hash."""
        return add_user(self.root, name, role)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.close_connections()
        self._store.close()

    def wait(self) -> None:
        """Serve until the thread of the server ends."""
        self._thread.join()


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    tokens: Mapping[str, Identity] | None = None,
    allow_remote: bool = False,
    bounds: HubBounds | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the hub in `root` until interrupted; `ready` is called with the endpoint once it answers."""
    with LocalHub(root, host=host, port=port, tokens=tokens, allow_remote=allow_remote, bounds=bounds) as hub:
        logger.info("serving %s on %s", root, hub.endpoint)
        try:
            if ready is not None:
                ready(hub.endpoint)
            hub.wait()
        except KeyboardInterrupt:
            logger.info("stopped")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], hub: Hub, tokens: Tokens, bounds: HubBounds, *, remote: bool) -> None:
        self.hub, self.tokens, self.bounds, self.remote = hub, tokens, bounds, remote
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            full = len(self._open) >= self.bounds.max_connections
            if not full:
                self._open.add(request)
        if full:
            logger.warning("refused a connection: %d are open", self.bounds.max_connections)
            super().shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the connections that clients keep open, so that nothing is answered any more."""
        with self._open_lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    logger.debug("a connection was already closed")

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Bytes to Request, Response to bytes."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "kedit-localhub"
    disable_nagle_algorithm = True  # else a body waits 40 ms until the head before it is acknowledged
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.bounds.idle_seconds)

    def do_GET(self) -> None:
        body, file = Body(self.rfile, 0), None
        try:
            body = Body(self.rfile, self._content_length())
            response = self.server.hub.respond(self._request(body))
            if response.file is not None and self.command != "HEAD":
                file = response.file.open("rb")
        except Refusal as refusal:
            response = refused(refusal)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            logger.exception("%s %s failed", self.command, self._shown_path())
            response = answer({"error": "The hub failed; its log says why."}, 500)
        with file or nullcontext():
            self._send(response, file, body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _content_length(self) -> int:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # where this body ends is unknown
            raise Refusal("Send a Content-Length; chunked bodies are not read.", 411)
        lengths = self.headers.get_all("Content-Length") or ["0"]
        if len(lengths) > 1 or not re.fullmatch("[0-9]{1,15}", lengths[0]):
            self.close_connection = True
            raise Refusal("The Content-Length is not one number.")
        return int(lengths[0])

    def _request(self, body: Body) -> Request:
        if not self.path.startswith("/"):
            raise Refusal("The address must start with '/'.")
        parts = urlsplit("//hub" + self.path)
        host = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([A-Za-z0-9.-]+))(:\d+)?", self.headers.get("Host", ""))
        if host is None or not (self.server.remote or _is_loopback(host.group(1) or host.group(2))):
            raise Refusal("The Host header names another machine.")  # a web page that rebinds its own name to this one
        try:
            query = parse_qs(parts.query, max_num_fields=1_000)
        except ValueError:
            raise Refusal("The query has too many parameters.") from None
        return Request(
            method="GET" if self.command == "HEAD" else self.command,
            path=parts.path,
            query=query,
            body=body,
            endpoint=f"http://{host.group(0)}",
            user=self._user(),
            range=self.headers.get("Range"),
        )

    def _user(self) -> Identity | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        user = self.server.tokens.identify(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:  # the message that huggingface_hub knows; any other 401 reads as a missing repo
            raise Refusal("Invalid credentials in Authorization header", 401)
        return user

    def _send(self, response: Response, file: BinaryIO | None, body: Body) -> None:
        if body.left:
            self.close_connection = True
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(response.length))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; sandbox")  # a file is never a page
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if file is None:
            self.wfile.write(response.data)
        else:
            file.seek(response.start)
            left = response.length
            while left:
                piece = file.read(min(left, 1 << 20))
                if not piece:
                    raise ConnectionError("a stored file is shorter than its record")
                self.wfile.write(piece)
                left -= len(piece)
        if body.left:
            body.drain(self.server.bounds.max_commit_bytes)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        logger.info("%s %s %s", self.command, self._shown_path(), getattr(code, "value", code))

    def log_message(self, format: str, *args: Any) -> None:
        """Messages of the base class quote the request as sent; only their kind is kept."""
        logger.debug("bad request or timeout from %s", self.client_address[0])

    def _shown_path(self) -> str:
        """The address for a log: one line of ASCII, no query, nothing that looks like a token."""
        sent = getattr(self, "path", "")  # absent while the first line is not understood
        path = urlsplit("//hub" + sent).path if sent.startswith("/") else "?"
        return re.sub(r"hf_\w+", "hf_***", path.encode("ascii", "backslashreplace").decode())[:300]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
