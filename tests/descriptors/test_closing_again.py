"""Closing twice, from anywhere, in the middle of anything: once is enough, and never again is it a socket.

Source: LPWSPCLOSESOCKET; "Closing Sockets"; spec/fault-catalogue.md, F-48 and F-73.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import closing, descriptor, lingering, naming, options, table
from sharedsock.model import trace
from sharedsock.testing import Actor, Raised, Returned
from sharedsock.testing.observation import thread_facts
from tests.descriptors import kinds

NOT_A_SOCKET = Raised("NotASocket", 10038, 9)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Have something done where this process comes by a probe point, once."""

    def arm(point: str, act: Callable[[], object]) -> None:
        def hook(reached: str, context: Mapping[str, Any]) -> None:
            if reached == point:
                monkeypatch.setattr(trace, "hook", None)
                act()

        monkeypatch.setattr(trace, "hook", hook)

    return arm


def wait_blocked(shared: ss.SharedSocket, thread: threading.Thread) -> None:
    """Wait until a thread of this process is registered as waiting, and asleep."""
    assert thread.native_id is not None
    while not (shared.pending_operations() and thread_facts(os.getpid(), thread.native_id).is_waiting):
        os.sched_yield()


# -- once is enough -----------------------------------------------------------------------------------------------


@pytest.mark.fault("F-48")
@pytest.mark.rule("CLOSE-1", "CLOSE-3")
def test_a_second_close_does_nothing_and_counts_nothing(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        for _ in range(3):
            assert a.thread("closer").close().outcome() == Returned()
        assert b.do("references") == 2
        for _ in range(3):
            pair.local.close()
            pair.local.abort()
            pair.local.__exit__(None, None, None)
        assert b.do("references") == 1
        assert kinds.is_silent(pair.peer)
        b.close()


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("point", ["close.begin", "close.marked", "close.drained", "close.fd_closed", "close.last"])
def test_of_two_threads_one_closes_and_the_other_returns_at_once(point: str, company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        a.do("take", pair.local.share(a.pid))
        pair.local.close()
        with a.hold_at(point) as held:
            first = a.thread("first").close()
            held.wait_reached()
            assert a.thread("second").close().outcome() == Returned()
            assert not first.is_done()
        assert first.outcome() == Returned()
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("point", ["close.begin", "close.marked", "close.drained", "close.fd_closed", "close.ended"])
def test_a_close_on_top_of_itself_does_nothing(point: str, at: Any) -> None:
    """A destructor or a signal handler that runs in the middle of a close, in the same thread."""
    with kinds.pair_of("tcp4") as pair:
        entered: list[bool] = []

        def close_again() -> None:
            entered.append(True)
            pair.local.close()
            pair.local.abort()

        at(point, close_again)
        pair.local.close()
        assert entered
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-48")
@pytest.mark.rule("CLOSE-20")
def test_a_signal_handler_may_close_what_its_own_thread_waits_on() -> None:
    """Its own wait ends when the handler returns; a close that waited for it would wait for ever."""
    assert threading.current_thread() is threading.main_thread()
    with kinds.pair_of("tcp4") as pair:
        main = threading.main_thread()

        def interrupt() -> None:
            wait_blocked(pair.local, main)
            assert main.ident is not None
            signal.pthread_kill(main.ident, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_: pair.local.close())
        helper = threading.Thread(target=interrupt)
        helper.start()
        try:
            with pytest.raises(ss.OperationAborted) as caught:
                pair.local.recv(1)
        finally:
            helper.join()
            signal.signal(signal.SIGUSR1, before)
        assert caught.value.winerror == 10004
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("point", ["op.enter", "op.waiting", "op.ready"])
def test_a_callback_may_close_what_its_own_thread_is_about_to_wait_on(point: str, at: Any) -> None:
    with kinds.pair_of("tcp4") as pair:
        if point == "op.ready":
            pair.local.settimeout(0.01)
        at(point, pair.local.close)
        with pytest.raises((ss.OperationAborted, ss.NotASocket)) as caught:
            pair.local.recv(1)
        assert caught.value.winerror in (10004, 10038)
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-48")
@pytest.mark.rule("CLOSE-20")
def test_a_callback_may_close_what_has_just_been_received(at: Any) -> None:
    """Rule 2: it was taken, so it is the result."""
    with kinds.pair_of("tcp4") as pair:
        pair.local.settimeout(60)
        at("op.done", pair.local.close)
        main = threading.current_thread()

        def send() -> None:
            wait_blocked(pair.local, main)
            pair.peer.sendall(b"taken")

        helper = threading.Thread(target=send)
        helper.start()
        assert pair.local.recv(16) == b"taken"
        helper.join()
        with pytest.raises(ss.NotASocket):
            pair.local.recv(1)


@pytest.mark.fault("F-48", "F-114")
def test_a_collected_descriptor_is_closed_with_a_warning_and_its_reference_goes(company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        a.do("take", pair.local.share(a.pid))
        twin = pair.local.dup()
        assert pair.local.references() == 3
        twins = [twin]
        del twin
        with pytest.warns(ResourceWarning, match=r"unclosed .*test_closing_again\.py"):
            twins.clear()
        pair.local.close()  # the next registry call gives the collected one's reference back as well
        assert a.do("references") == 1
        a.close()
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-48")
def test_collection_on_top_of_a_close_of_the_same_descriptor_is_one_close(at: Any) -> None:
    with kinds.pair_of("tcp4") as pair:
        at("close.marked", lambda: closing.collect(pair.local._descriptor))
        pair.local.close()
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("filter_", ["error", "ignore"])
def test_a_warning_made_an_error_still_closes(filter_: str) -> None:
    left, right = ss.socketpair()
    with right:
        with warnings.catch_warnings():
            warnings.simplefilter(filter_)  # type: ignore[arg-type]  # a literal
            seen = io.StringIO()
            stderr, sys.stderr = sys.stderr, seen
            hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
            try:
                del left
                gc.collect()
            finally:
                sys.stderr, sys.unraisablehook = stderr, hook
        assert right.recv(1) == b""


# -- never again a socket -----------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[ss.SharedSocket], object]] = {
    "accept": lambda end: end.accept(),
    "bind": lambda end: end.bind(("127.0.0.1", 0)),
    "connect": lambda end: end.connect(("127.0.0.1", 1)),
    "dup": lambda end: end.dup(),
    "get_inheritable": lambda end: end.get_inheritable(),
    "getpeername": lambda end: end.getpeername(),
    "getsockname": lambda end: end.getsockname(),
    "getsockopt": lambda end: end.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "get linger": lambda end: kinds.get_linger(end),
    "holders": lambda end: end.holders(),
    "lend": lambda end: end.lend(os.getpid()),
    "listen": lambda end: end.listen(),
    "recv": lambda end: end.recv(1),
    "recv_into": lambda end: end.recv_into(bytearray(1)),
    "recvfrom": lambda end: end.recvfrom(1),
    "recvfrom_into": lambda end: end.recvfrom_into(bytearray(1)),
    "recvmsg": lambda end: end.recvmsg(1),
    "recvmsg_into": lambda end: end.recvmsg_into([bytearray(1)]),
    "references": lambda end: end.references(),
    "send": lambda end: end.send(b"x"),
    "sendall": lambda end: end.sendall(b"x"),
    "sendfile": lambda end: kinds.SENDS["sendfile"](end, b"x"),
    "sendmsg": lambda end: end.sendmsg([b"x"]),
    "sendmsg_afalg": lambda end: end.sendmsg_afalg(op=1),
    "sendto": lambda end: end.sendto(b"x", ("127.0.0.1", 1)),
    "set_inheritable": lambda end: end.set_inheritable(False),
    "setblocking": lambda end: end.setblocking(True),
    "setsockopt": lambda end: end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "set linger": lambda end: kinds.set_linger(end, 0),
    "settimeout": lambda end: end.settimeout(1),
    "share": lambda end: end.share(os.getpid()),
    "shutdown": lambda end: end.shutdown(socket.SHUT_WR),
    "ticket": lambda end: end.ticket(),
}


@pytest.mark.rule("CLOSE-2", "CLOSE-34", "CLOSE-35", "SHUT-8", "DUP-7")
@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_starts_on_a_closed_descriptor_is_10038(call: str) -> None:
    """Also between two calls of a thread that has been using it: what counts is when the call starts."""
    left, right = ss.socketpair()
    with right:
        left.sendall(b"in use")
        left.close()
        with pytest.raises(ss.NotASocket) as caught:
            CALLS[call](left)
        assert caught.value.winerror == 10038
        assert "test_closing_again.py" in str(caught.value), "who closed it, and where"


@pytest.mark.rule("CLOSE-2")
def test_connect_ex_of_a_closed_descriptor_says_so_by_its_errno() -> None:
    left, right = ss.socketpair()
    left.close()
    right.close()
    assert left.connect_ex(("127.0.0.1", 1)) == 9


@pytest.mark.rule("CLOSE-4")
@pytest.mark.fault("F-47")
def test_a_number_used_again_never_leads_a_closed_descriptor_to_a_stranger() -> None:
    left, right = ss.socketpair()
    number, token = left.fileno(), left.descriptor
    left.close()
    right.close()
    gc.collect()
    strangers: list[ss.SharedSocket] = []
    while number not in [end.fileno() for end in strangers]:
        strangers += ss.socketpair()
    assert token not in [end.descriptor for end in strangers], "tokens are never given out twice"
    assert left.fileno() == -1
    for call in (left.recv, left.close, left.abort):
        if call == left.recv:
            with pytest.raises(ss.NotASocket):
                left.recv(1)
        else:
            call()  # type: ignore[call-arg]  # close and abort
    for one, other in zip(strangers[::2], strangers[1::2], strict=True):
        one.sendall(b"mine")
        assert other.recv(16) == b"mine"
        one.close()
        other.close()


@pytest.mark.rule("CLOSE-29")
@pytest.mark.fault("F-38")
def test_of_two_descriptors_of_one_socket_in_one_process_only_the_closed_one_s_operations_end(
    company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        for name in ("one", "two"):
            a.do("take", pair.local.share(a.pid), on=name)
        pair.local.close()
        first, second = a.thread("first").recv(1, on="one"), a.thread("second").recv(1, on="two")
        a.wait_until_blocked("first")
        asleep = a.wait_until_blocked("second")
        closing_one = a.thread("closer").close(on="one")
        assert first.outcome().winerror == 10004  # type: ignore[union-attr]  # Aborted, or the test fails here
        bounds.check("T_abort", first.ended_s - closing_one.began_s)
        assert a.wait_until_blocked("second") == asleep
        pair.peer.sendall(b"2")
        assert second.value() == b"2"
        a.close(on="two")


# -- cut short ----------------------------------------------------------------------------------------------------

SWEPT = {module.__file__ for module in (closing, lingering, naming, options, table, descriptor)}


class Sweep:
    """Raises KeyboardInterrupt before the k-th bytecode that runs in the files of a close."""

    def __init__(self, place: int) -> None:
        self.left = place
        self.raised = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in SWEPT:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace = self.step  # 3.13 turns them on when the trace function is set, not when it is returned
        return self.step

    def step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                self.raised = True
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.step

    def run(self, call: Callable[[], object]) -> bool:
        """Call; whether it was interrupted."""
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # 3.12: settrace() asks for these events only if some frame wants them
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return self.raised


@pytest.mark.fault("F-48", "F-73")
@pytest.mark.parametrize("case", ["never shared", "shared", "lingering"])
def test_an_interrupt_anywhere_in_a_close_leaves_nothing_of_it(case: str) -> None:
    """It is gone, or as it was; after one more close() it is gone, counted by nobody, and the peer knows."""
    place, cut = 0, 0
    with socket.create_server(("127.0.0.1", 0)) as door:
        while True:
            place += 2 if case == "never shared" else 7  # a stride; each step of a close is many places long
            local = ss.create_connection(door.getsockname())
            peer, _ = door.accept()
            client = None
            if case != "never shared":
                ss.revoke(local.share(None))
                client = local._descriptor.client
            if case == "lingering":
                kinds.set_linger(local, 1)
                local.sendall(b"x")
            was_cut = Sweep(place).run(local.close)
            cut += was_cut
            local.close()
            assert local.fileno() == -1
            assert kinds.wait_event(peer) >= 0, place
            peer.close()
            if client is not None:
                assert client.sockets() == (), place
            if not was_cut:
                break
    assert cut > 20, "the sweep went through the close"


@pytest.mark.fault("F-73")
@pytest.mark.rule("LINGER-7")
def test_ctrl_c_in_a_linger_wait_ends_it_and_the_rest_goes_in_the_background() -> None:
    assert threading.current_thread() is threading.main_thread()
    main = threading.main_thread()
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        queued = kinds.queue(pair.local, 1 << 20)
        kinds.set_linger(pair.local, 30)

        def interrupt() -> None:
            assert main.native_id is not None
            assert main.ident is not None
            while not (pair.local._descriptor.is_closed and thread_facts(os.getpid(), main.native_id).call == "poll"):
                os.sched_yield()
            signal.pthread_kill(main.ident, signal.SIGINT)

        helper = threading.Thread(target=interrupt)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            pair.local.close()
        helper.join()
        assert pair.local.fileno() == -1
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)
