"""Messages between a rank and the hub: one JSON object a line over TCP. Nothing received is ever evaluated."""

import json
import socket
from collections.abc import Mapping
from typing import Any

MAX_LINE_BYTES = 64 * 1024
MAX_TEXT_CHARACTERS = 2000


class WireError(Exception):
    """Bytes that are not a message."""


def encode(kind: str, **fields: Any) -> bytes:
    """A message of this kind, ready to send."""
    return json.dumps({"kind": kind, **fields}).encode() + b"\n"


def shorten(text: str) -> str:
    """The text if it is short, else its beginning, so that a message always fits a socket's buffer."""
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS] + " ..."


class LineBuffer:
    """Collects bytes of one connection and cuts them into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Mapping[str, Any]]:
        """Complete messages after `data` came in.

        Raises:
            WireError: a line that is too long or not a JSON object with a "kind".
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, (*lines, self._rest))) > MAX_LINE_BYTES:
            raise WireError("line too long")
        return [_parse(line) for line in lines]


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WireError(str(error)) from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise WireError("not a message")
    return message


def notice_lost_hosts(connection: socket.socket, timeout_s: float) -> None:
    """Let the kernel probe an idle connection, so that a host that vanished shows as an error within `timeout_s`."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe_s = max(1, int(timeout_s / 6))
    options = {
        "TCP_KEEPIDLE": probe_s,
        "TCP_KEEPINTVL": probe_s,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": int(timeout_s * 1000),
    }
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
