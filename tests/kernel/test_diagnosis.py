"""What the kernel tells of Unix sockets: their files and their peers."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from sharedsock.kernel import diagnosis


def inode(view: socket.socket) -> int:
    return os.fstat(view.fileno()).st_ino


def test_a_bound_socket_is_told_with_its_file_and_an_unbound_one_without(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as unbound:
        bound.bind(str(tmp_path / "s"))
        status = (tmp_path / "s").stat()
        device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
        assert diagnosis.bound_file(inode(bound)) == (status.st_ino & 0xFFFFFFFF, device)
        assert diagnosis.bound_file(inode(unbound)) is None
        gone = inode(unbound)
    assert diagnosis.bound_file(gone) is None


def test_peers_are_told_of_both_ends_however_many_there_are() -> None:
    """More than one datagram of the kernel's answer has room for."""
    pairs = [socket.socketpair() for _ in range(300)]
    try:
        peers = diagnosis.unix_peers()
        for one, other in pairs:
            assert (peers[inode(one)], peers[inode(other)]) == (inode(other), inode(one))
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


@pytest.mark.parametrize("cut", [3, 15, 20, 35])
def test_an_answer_that_is_cut_short_tells_nothing_that_is_not_there(cut: int) -> None:
    whole = struct.pack("=IHHII", 40, 20, 0, 1, 0) + bytes(16) + struct.pack("=HHI", 8, 2, 7)
    assert list(diagnosis._answers(whole)) == [(0, {2: struct.pack("=I", 7)})]
    found = []
    try:
        found = [one for one in diagnosis._answers(whole[:cut]) if one is not None]
    except struct.error:
        pass
    assert found in ([], [(0, {})])


def test_a_system_without_it_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    assert diagnosis.unix_peers() == {}
    with pytest.raises(OSError):
        diagnosis.bound_file(1)
