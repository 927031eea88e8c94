"""The fence around a cell: Python code reaches no network, and processes of this machine may still talk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness

PROGRAM = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from harness.worker.offline import NetworkTouchedError, forbid_network
forbid_network()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one, other = socket.socketpair()
try:
    {does}
except NetworkTouchedError as error:
    print("fenced", error)
else:
    print("done")
"""


def said(does: str) -> str:
    command = [sys.executable, "-I", "-c", PROGRAM.format(does=does), str(Path(harness.__file__).parents[1])]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(
    "does",
    [
        "socket.create_connection(('127.0.0.1', 9), timeout=1)",
        "socket.getaddrinfo('localhost', 9)",
        "socket.gethostbyaddr('127.0.0.1')",
        "socket.gethostbyname('localhost')",
        "socket.gethostbyname_ex('localhost')",
        "socket.getnameinfo(('127.0.0.1', 9), 0)",
        "udp.connect(('127.0.0.1', 9))",
        "udp.connect_ex(('127.0.0.1', 9))",
        "udp.sendmsg([b'x'], [], 0, ('127.0.0.1', 9))",
        "udp.sendto(b'x', ('127.0.0.1', 9))",
    ],
)
def test_what_reaches_out_is_an_error(does: str) -> None:
    assert said(does).startswith("fenced socket.")


@pytest.mark.parametrize(
    "does", ["one.sendall(b'x'); assert other.recv(1) == b'x'", "one.sendmsg([b'x']); assert other.recv(1) == b'x'"]
)
def test_processes_of_this_machine_may_talk(does: str) -> None:
    assert said(does) == "done\n"
