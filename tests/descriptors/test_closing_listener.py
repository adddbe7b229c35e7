"""Closing a listener, and what is related to it: clients accepted, clients queued, the name it is bound to.

Source: LPWSPACCEPT, LPWSPLISTEN; "Reference Counting" and "Closing Sockets" (Winsock SPI).
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sharedsock as ss
from sharedsock.descriptors import naming
from sharedsock.testing import Accepted, Actor
from tests.descriptors import kinds
from tests.descriptors.sharers import give


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: tmp_path may be longer than a Unix name can be."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def is_refused(address: object, family: int = socket.AF_INET) -> bool:
    with socket.socket(family) as client:
        return client.connect_ex(address) != 0  # type: ignore[arg-type]  # any family's address


@pytest.mark.rule("CLOSE-40")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
@pytest.mark.parametrize("order", ["listener first", "client first"])
def test_an_accepted_socket_and_its_listener_end_independently(kind: str, order: str) -> None:
    with kinds.listener_of(kind) as listener, kinds.client_of(listener) as peer:
        accepted, _ = listener.accept()
        if order == "listener first":
            listener.close()
            peer.sendall(b"still here")
            assert accepted.recv(100) == b"still here"
            accepted.close()
        else:
            accepted.close()
            assert peer.recv(1) == b""
            with kinds.client_of(listener):
                listener.accept()[0].close()


@pytest.mark.rule("CLOSE-43", "REF-2")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_close_that_is_not_the_last_leaves_the_backlog_as_it_is(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.listener_of(kind) as listener, kinds.client_of(listener) as queued:
        address, family = listener.getsockname(), listener.family
        give(listener, a, b)
        a.close()
        assert kinds.is_silent(queued)
        assert isinstance(b.thread("caller").accept().outcome(), Accepted)
        b.sendall(b"hello", on="client")
        assert queued.recv(5) == b"hello"
        assert not is_refused(address, family), "still listening"
        b.close(on="client")
        b.close()


@pytest.mark.fault("F-72")
@pytest.mark.rule("CLOSE-42")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_the_last_close_drops_queued_clients_and_refuses_new_ones(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.listener_of(kind) as listener, kinds.client_of(listener) as queued:
        address, family = listener.getsockname(), listener.family
        give(listener, a, b)
        b.close()
        a.close()
        kinds.wait_event(queued)
        assert kinds.was_reset(queued)
        assert is_refused(address, family)


@pytest.mark.fault("F-72")
@pytest.mark.rule("REF-3", "REF-5")
@pytest.mark.parametrize("order", ["A last", "B last"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_the_path_of_a_shared_unix_socket_goes_with_the_last_close(
    kind: int, order: str, directory: Path, company: tuple[Actor, Actor]
) -> None:
    path = directory / "door"
    listener = ss.SharedSocket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    if kind != socket.SOCK_DGRAM:
        listener.listen()
    give(listener, *company)
    first, last = company if order == "B last" else reversed(company)
    first.close()
    assert path.exists()
    last.close()
    assert not path.exists()


@pytest.mark.fault("F-72")
def test_a_path_that_is_a_stranger_s_by_now_stays(directory: Path, company: tuple[Actor, Actor]) -> None:
    """Unlinked and bound anew, as servers do at their start: the name belongs to the new listener."""
    a, _ = company
    path = directory / "door"
    with ss.SharedSocket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        give(listener, a)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        a.close()
        assert path.exists()
        assert not is_refused(str(path), socket.AF_UNIX)


@pytest.mark.fault("F-72")
def test_the_name_an_accepted_socket_carries_is_its_listener_s(directory: Path, company: tuple[Actor, Actor]) -> None:
    a, _ = company
    path = directory / "door"
    with ss.SharedSocket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with kinds.client_of(listener):
            accepted, _ = listener.accept()
            give(accepted, a)
            a.close()
            assert path.exists()


@pytest.mark.fault("F-72")
@pytest.mark.parametrize("why", ["never shared", "abstract", "unnamed", "the kernel does not say"])
def test_no_other_path_is_touched(
    why: str, directory: Path, company: tuple[Actor, Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = company
    path = directory / "door"
    with ss.SharedSocket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
        if why == "abstract":
            local.bind(f"\0sharedsock-test-{os.getpid()}")
        elif why != "unnamed":
            local.bind(str(path))
        if why != "never shared":
            a.do("take", local.share(a.pid))
            a.close()
        if why == "the kernel does not say":
            monkeypatch.setattr(naming, "bound_file", lambda inode: None)
    assert path.exists() == (why in ("never shared", "the kernel does not say"))


@pytest.mark.rule("CLOSE-41", "LINGER-12")
@pytest.mark.parametrize(("linger_s", "kernel"), [(None, (0, 0)), (0, (1, 0)), (7, (0, 0))])
def test_an_accepted_socket_starts_with_its_listener_s_linger(
    linger_s: int | None, kernel: tuple[int, int], company: tuple[Actor, Actor]
) -> None:
    """Only LINGER(0) is the kernel's to hand down; a time is kept by us."""
    with kinds.listener_of("tcp4") as listener:
        kinds.set_linger(listener, linger_s)
        with kinds.client_of(listener) as peer:
            accepted, _ = listener.accept()
            assert kinds.get_linger(accepted) == (linger_s is not None, linger_s or 0)
            assert kinds.kernel_linger(accepted) == kernel
            accepted.close()
            kinds.wait_event(peer)
            assert kinds.was_reset(peer) == (linger_s == 0)
