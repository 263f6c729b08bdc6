"""A small web server for Prometheus: GET /metrics, and nothing else.

NOTE [ bounds ]
Anybody who reaches the port may talk to it, so what one caller can hold is bounded: one request per connection,
`REQUEST_S` for all of it however slowly it drips, `MOST_CONNECTIONS` at once (more are told 503), no body is read. It
serves a page that the watch has published; no request touches a file.
"""

import ipaddress
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any

from overlap_recompute.cli.watching.exposition import CONTENT_TYPE
from overlap_recompute.plan.errors import ConfigError

REQUEST_S = 5.0
MOST_CONNECTIONS = 8
_PATH = "/metrics"
_FULL = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S
    server: "_Server"

    def do_GET(self) -> None:
        if self.path.split("?", 1)[0] == _PATH:
            self._answer(HTTPStatus.OK, self.server.page(), CONTENT_TYPE)
        else:
            self._answer(HTTPStatus.NOT_FOUND, f"only {_PATH} is here\n")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Called for what cannot be served; a method without `do_...` comes as 501, which says the same as 405."""
        status = HTTPStatus(code)
        refused = status is HTTPStatus.NOT_IMPLEMENTED
        self.close_connection = True
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED if refused else status, "only GET\n" if refused else "bad request\n")

    def _answer(self, status: HTTPStatus, text: str, content_type: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "overlap-recompute"

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal belongs to the picture."""


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 64  # with fewer, a burst of callers waits a second for the kernel to try again
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], page: Callable[[], str]) -> None:
        self.address_family, self.page = family, page
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            request.settimeout(0.1)
            try:
                request.sendall(_FULL)
            except OSError:
                pass  # the caller has gone
            finally:
                self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(REQUEST_S, _cut, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that goes away in the middle is no event."""


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


class Endpoint:
    """Serves what was last published, from a thread. Use it as a context, or call `close`."""

    def __init__(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            ConfigError: no such host, or the port is taken or forbidden.
        """
        self._text = "\n"
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(family, (str(address[0]), int(address[1])), lambda: self._text)
        except (OSError, UnicodeError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(
                f"--prometheus-port {port} on {host}, where nothing can be served ({reason})",
                "an address of this machine and a free port",
                "choose another port, or 0 for any free one",
            ) from error
        self.host = str(self._server.server_address[0])
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="prometheus", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{_PATH}"

    @property
    def is_open_to_others(self) -> bool:
        """Whether other machines may reach it."""
        return not ipaddress.ip_address(self.host.split("%")[0]).is_loopback

    def publish(self, text: str) -> None:
        """Serve this page from now on."""
        self._text = text

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=REQUEST_S)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
