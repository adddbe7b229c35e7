"""A SharedSocket that is collected without a close says where it was opened, and gives everything back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

import sharedsock as ss


def _let_go(last: list[object]) -> None:
    last.clear()
    gc.collect()


@pytest.mark.fault("F-114")
@pytest.mark.parametrize("in_a_cycle", [False, True], ids=["alone", "in a cycle"])
def test_a_shared_socket_never_closed_warns_and_gives_its_reference_back(in_a_cycle: bool) -> None:
    """In a cycle the collector may finalise the kernel socket first: the warning and the count do not depend on it."""
    ours, peer = ss.socketpair()
    with peer, ss.fromshare(ours.share(os.getpid())) as twin:
        assert twin.references() == 2
        held: list[object] = [ours]
        if in_a_cycle:
            held.append(held)
        last: list[object] = [held]
        del ours, held
        with pytest.warns(ResourceWarning, match=r"unclosed .*opened at .*test_collected\.py:\d+ in test_a_shared"):
            _let_go(last)
        assert twin.references() == 1
        twin.close()
        assert peer.recv(1) == b"", "nobody holds it any more"


AT_EXIT = """
import sys, threading, types
import sharedsock as ss

selector = ss.Selector()
pair = ss.socketpair()
selector.register(pair[0], 1)
types.kept = [ss.create_server(("127.0.0.1", 0)), pair, selector]
entered = threading.Event()

def hold(*modules):
    entered.set()
    threading.Event().wait()

# Its frame is never freed: so every module is emptied while it lives, the ones imported last first.
threading.Thread(target=hold, args=list(sys.modules.values()), daemon=True).start()
entered.wait()
"""


@pytest.mark.fault("F-116", "F-118")
def test_sockets_that_outlive_the_package_at_exit_are_silent() -> None:
    """Kept by a module that is emptied after the package's own, as a test runner keeps the locals of tests."""
    ended = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)
