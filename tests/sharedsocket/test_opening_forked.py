"""Opening a socket in a child whose fork ran no hooks: what the child opens is its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

CHILD = """
    import ctypes, os, socket
    {before}
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        status = 1
        try:
            import sharedsock as ss
            {opened}
            left.sendall(b"mine")
            assert right.recv(8) == b"mine"
            left.close()
            assert right.recv(8) == b""
            right.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    {after}
"""
PARENT = "import sharedsock as ss; ours, theirs = ss.socketpair()"
STILL_OURS = "ours.sendall(b'x'); assert theirs.recv(1) == b'x'; ours.close(), theirs.close()"
TCP = (
    "door = ss.create_server(('127.0.0.1', 0)); left = ss.SharedSocket(); "
    "left.connect(door.getsockname()); right, _ = door.accept(); door.close()"
)


@pytest.mark.fault("F-86", "F-90")
@pytest.mark.parametrize(
    "opened",
    [
        "left, right = ss.socketpair()",
        "left, right = map(ss.adopt, socket.socketpair())",
        "left, right = (ss.SharedSocket(fileno=end.detach()) for end in socket.socketpair())",
        TCP,
    ],
)
@pytest.mark.parametrize(("before", "after"), [(PARENT, STILL_OURS), ("from sharedsock.kernel import numbers", "pass")])
def test_what_a_child_of_a_fork_without_hooks_opens_is_its_own(opened: str, before: str, after: str) -> None:
    """The wiped page is noticed by the opening itself; the parent's sockets stay the parent's."""
    program = textwrap.dedent(CHILD).format(before=before, opened=opened, after=after)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
