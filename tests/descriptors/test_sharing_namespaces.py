"""Processes that count in a PID namespace of their own: a number of theirs is never taken for one of ours (F-27).

The kernel translates the credentials of a connection, so who redeems is always known by the registry's own numbers.
What a process says in a message is not translated: there a foreign namespace is refused.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

import sharedsock as ss
from tests.descriptors.launched import context_of, run, say
from tests.descriptors.sharers import wait_end_of, wait_until

_CLONE_NEWPID: Final = 0x20000000

Body = Callable[[Any], None]


@contextmanager
def inside(body: Body) -> Iterator[tuple[int, Any]]:
    """Run a body as process 1 of a new PID namespace; give its pid as we count, and the far end of its pipe."""
    near, far = multiprocessing.Pipe()
    report, told = os.pipe()
    middle = os.fork()
    if middle == 0:
        near.close()  # else nobody sees its end
        _found_a_namespace(body, far, told)
    far.close()
    os.close(told)
    with near, open(report, "rb", buffering=0) as reader:
        try:
            first = reader.read(16)
            if not first:
                os.waitpid(middle, 0)
                middle = 0
                pytest.skip("no leave to make a PID namespace")
            yield int(first), near
            near.send(None)
        finally:
            near.close()
            if middle:
                _, status = os.waitpid(middle, 0)
        assert status == 0, "it has said why on stderr"


def _found_a_namespace(body: Body, far: Connection[Any, Any], told: int) -> None:
    """In a child: make a namespace, have its first process run the body, and end as that one does."""
    code = 1
    try:
        if ctypes.CDLL(None).unshare(_CLONE_NEWPID) != 0:
            return
        first = os.fork()
        if first == 0:
            os.close(told)
            assert os.getpid() == 1
            body(far)
            code = 0
            return
        far.close()
        os.write(told, b"%d" % first)
        code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _redeem_and_use(far: Any) -> None:
    with ss.fromshare(far.recv()) as shared:
        shared.sendall(b"from inside")
        far.send(shared.references())
        far.recv()


@pytest.mark.fault("F-27")
@pytest.mark.rule("DUP-2", "DUP-5")
@pytest.mark.parametrize("target", ["its number here", None])
def test_a_process_in_a_namespace_of_its_own_redeems_what_is_for_it(
    pair: tuple[ss.SharedSocket, socket.socket], target: str | None
) -> None:
    """Bound to the number it has here: the kernel says that it is that one. It goes by its own as process 1."""
    ours, peer = pair
    with inside(_redeem_and_use) as (pid, near):
        near.send(ours.share(None if target is None else pid))
        assert near.recv() == 2
        assert peer.recv(32) == b"from inside"
        assert pid in [holder.pid for holder in ours.holders()]
    wait_until(lambda: ours.references() == 1, "its reference to go")


def _redeem_what_is_for_another(far: Any) -> None:
    try:
        ss.fromshare(far.recv())
    except ss.TicketInvalid:
        far.send("refused")
    far.recv()


@pytest.mark.fault("F-27")
@pytest.mark.rule("DUP-5")
def test_a_number_here_is_not_the_same_number_there(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """A ticket for this process is none for process 1 of another namespace, nor for anybody else in it."""
    ours, _ = pair
    info = ours.share(os.getpid())
    with inside(_redeem_what_is_for_another) as (_, near):
        near.send(info)
        assert near.recv() == "refused"
    ss.fromshare(info).close()


def _name_processes(far: Any) -> None:
    """Say what comes of naming one's own number, another one, and none."""
    with ss.fromshare(far.recv()) as shared:
        outcomes: list[Any] = []
        for name in (lambda: shared.share(1), lambda: shared.share(os.getpid() + 1), lambda: shared.lend(1)):
            try:
                name()
                outcomes.append("taken")
            except OSError as error:
                outcomes.append(error.errno)
        far.send((outcomes, shared.references(), shared.share(None)))
        far.recv()


@pytest.mark.fault("F-27")
@pytest.mark.rule("DUP-6")
def test_a_sharer_in_a_namespace_of_its_own_cannot_name_processes(
    pair: tuple[ss.SharedSocket, socket.socket],
) -> None:
    """What it calls 1 is somebody else here: refused, nothing is counted. A ticket for the first claimer goes on."""
    ours, _ = pair
    with inside(_name_processes) as (_, near):
        near.send(ours.share(None))
        outcomes, references, info = near.recv()
        assert outcomes == [errno.EINVAL] * 3
        assert references == 2
        with ss.fromshare(info) as mine:
            assert mine.references() == 3
    wait_until(lambda: ours.references() == 1, "its reference to go")


def _launch_inside(far: Any) -> None:
    with ss.fromshare(far.recv()) as shared:
        far.send([run(context_of("fork").Process(target=say, args=(shared,))) for _ in range(2)])
        far.recv()


@pytest.mark.fault("F-27", "F-89")
def test_a_launcher_in_a_namespace_of_its_own_hands_over_all_the_same(
    pair: tuple[ss.SharedSocket, socket.socket],
) -> None:
    """It cannot name its child, which has what it was given; nothing of it is left when both have ended."""
    ours, peer = pair
    with inside(_launch_inside) as (_, near):
        near.send(ours.share(None))
        assert near.recv() == [0, 0]
        assert peer.recv(64).startswith(b"3 1\n")
    wait_until(lambda: ours.references() == 1, "their references to go")
    ours.close()
    wait_end_of(peer)
