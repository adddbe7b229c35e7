"""The package may be imported while another class stands in the place of socket.socket, as pytest-socket puts one."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import socket
plain = socket.socket

class Guard(plain):
    def __new__(cls, *arguments, **keywords):
        raise RuntimeError("blocked")

socket.socket = Guard
import sharedsock as ss
a, b = ss.socketpair()
socket.socket = plain
with a, b:
    a.sendall(b"x")
    assert b.recv(1) == b"x"
    assert isinstance(a, plain) and not isinstance(a, Guard)
"""


def test_a_shared_socket_is_the_stdlibs_whoever_stands_in_its_place() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
