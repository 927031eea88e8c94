"""A cell is offline: an attempt to reach a network is an error in the stage that made it.

Variables that ask the hub libraries to stay offline are set by the host. This is for code that does not ask. An audit
hook (PEP 578) sees every connection, datagram and name look-up that Python code makes. It cannot be removed again. It
does not see what native code does, nor the programs that a cell starts: those have the variables alone.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

_EVENTS = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyaddr",
    "socket.gethostbyname",
    "socket.getnameinfo",
    "socket.sendmsg",
    "socket.sendto",
)
_LOCAL_FAMILIES = (socket.AF_UNIX,)


class NetworkTouchedError(RuntimeError):
    """Code inside a cell tried to reach a network."""


def forbid_network() -> None:
    """Make every later attempt to reach a network raise ``NetworkTouchedError``.

    Sockets between processes stay allowed.
    """
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    first = arguments[0]
    if isinstance(first, socket.socket) and first.family in _LOCAL_FAMILIES:
        return
    target = arguments[1] if isinstance(first, socket.socket) else first
    if event == "socket.sendmsg" and target is None:
        return  # over a connection that is there, so it was allowed
    raise NetworkTouchedError(f"{event} to {target!r}: a cell must not reach a network")
