"""Text of tests that leave something behind on purpose, ten kinds, and of tests that leave nothing.

Each leaking test keeps its leak in `kept`, a list of the module, and is told apart by its name: test_<kind>_<number>.
"""

from __future__ import annotations

from typing import Final

from tests.lasting import LASTING

__all__ = ["CLEAN", "KINDS_OF", "clean_tests", "leaking_tests"]

HEAD: Final = f"""
import os, socket, subprocess, sys, tempfile, threading, multiprocessing
import pytest
import sharedsock as ss

kept = []
LASTING = {LASTING!r}

def keeper(number):
    pass
"""

# Kind of injected leak: the kinds of finding it must come to, and its lines. HERE marks the place to be named.
_BODIES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "listener": (("sockets",), ("made = socket.create_server(('127.0.0.1', 0))  # HERE", "kept.append(made)")),
    "connected": (
        ("sockets",),
        (
            "with socket.create_server(('127.0.0.1', 0)) as door:",
            "    kept.append(socket.create_connection(door.getsockname()))  # HERE",
        ),
    ),
    "accepted": (
        ("sockets",),
        (
            "with socket.create_server(('127.0.0.1', 0)) as door, socket.create_connection(door.getsockname()):",
            "    kept.append(door.accept()[0])  # HERE",
        ),
    ),
    "udp": (("sockets",), ("kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))  # HERE",)),
    "shared": (
        ("sockets",),
        ("ours, peer = ss.socketpair()  # HERE", "peer.close()", "ours.references()", "kept.append(ours)"),
    ),
    "ticket": (
        ("references",),
        ("ours, peer = ss.socketpair()  # HERE", "ours.share(None, expires_s=10)", "ours.close()", "peer.close()"),
    ),
    "file": (("descriptors",), ("kept.append(open(__file__))  # HERE",)),
    "pipe": (("descriptors", "descriptors"), ("kept.extend(os.pipe())  # HERE",)),
    "thread": (
        ("threads",),
        ("stop = threading.Event()", "threading.Thread(target=stop.wait, daemon=True).start()  # HERE"),
    ),
    "process": (
        ("processes",),
        ("kept.append(subprocess.Popen([sys.executable, '-S', '-c', LASTING, str(os.getpid())]))  # HERE",),
    ),
}
KINDS_OF: Final = {name: kinds for name, (kinds, _) in _BODIES.items()}


def leaking_tests(of_each: int) -> str:
    """Return a module with so many tests of each kind of leak; a finding's place must be its HERE line."""
    tests = [
        _function(f"test_{name}_{number}", "", lines)
        for number in range(of_each)
        for name, (_, lines) in _BODIES.items()
    ]
    return HEAD + "\n" + "\n".join(tests)


def _function(name: str, argument: str, lines: tuple[str, ...]) -> str:
    return "\n".join([f"def {name}({argument}):", *(f"    {line}" for line in lines), ""])


CLEAN: Final[dict[str, tuple[str, ...]]] = {
    "sockets": (
        "with socket.create_server(('127.0.0.1', 0)) as door:",
        "    with socket.create_connection(door.getsockname()) as client, door.accept()[0] as server:",
        "        client.sendall(b'x')",
        "        assert server.recv(1) == b'x'",
    ),
    "thread": ("thread = threading.Thread(target=print)", "thread.start()", "thread.join()"),
    "late_thread": ("threading.Timer(0.05, print).start()",),
    "process": ("assert subprocess.run([sys.executable, '-S', '-c', ''], check=True).returncode == 0",),
    "file": ("with tempfile.TemporaryFile() as file:", "    file.write(b'x')"),
    "shared": (
        "ours, peer = ss.socketpair()",
        "with ours, peer, ss.fromshare(ours.share(os.getpid())) as other:",
        "    peer.sendall(b'x')",
        "    assert other.recv(1) == b'x'",
    ),
    "never_shared": (
        "with ss.create_server(('127.0.0.1', 0)) as door, ss.create_connection(door.getsockname()) as client:",
        "    with door.accept()[0] as server:",
        "        server.sendall(b'x')",
        "        assert client.recv(1) == b'x'",
    ),
    "cycle": ("made = socket.socket()", "made.close()", "ring = [made]", "ring.append(ring)"),
    "fork": (
        "child = multiprocessing.get_context('fork').Process(target=keeper, args=(1,))",
        "child.start()",
        "child.join()",
        "child.close()",
    ),
    "wide_fixture": ("assert wide.fileno() >= 0",),
}


def clean_tests(of_each: int) -> str:
    """Return a module with so many tests of each kind that leave nothing; a wider fixture lives through all of them."""
    fixture = _function("wide", "", ("with socket.socket() as made:", "    yield made"))
    tests = [
        _function(f"test_{name}_{number}", "wide" if name == "wide_fixture" else "", lines)
        for number in range(of_each)
        for name, lines in CLEAN.items()
    ]
    return HEAD + "\n@pytest.fixture(scope='module')\n" + fixture + "\n" + "\n".join(tests)
