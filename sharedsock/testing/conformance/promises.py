"""The promises, each tried by itself. What a promise needs of a process is in `calls`; where it plays, in `stage`."""

from __future__ import annotations

import _socket
from typing import Final

from sharedsock import spi
from sharedsock.model.errors import wsa_name
from sharedsock.model.winsock import (
    AF_INET,
    FIONBIO,
    SD_SEND,
    SO_DONTLINGER,
    SO_LINGER,
    SOCK_STREAM,
    SOL_SOCKET,
    WSA_IO_PENDING,
    WSA_OPERATION_ABORTED,
    WSAEINTR,
    WSAEINVAL,
    WSAENOTSOCK,
    WSAESHUTDOWN,
    WSAEWOULDBLOCK,
)
from sharedsock.testing.conformance import calls
from sharedsock.testing.conformance.calls import Answer
from sharedsock.testing.conformance.promising import expect, promise
from sharedsock.testing.conformance.stage import TIMEOUT_S, Stage, is_quiet, read_all
from sharedsock.testing.frames import plain_socket

__all__ = ["LINGER_S"]

LINGER_S: Final = 1  # the shortest there is


@promise("CLOSE-20", "CLOSE-1")
def a_close_ends_the_own_process_s_blocked_call(stage: Stage) -> None:
    with stage.connection() as (s, _far):
        reading = stage.blocked(stage.a, calls.receive, s)
        stage.value(stage.a, "WSPCloseSocket", s)
        answer: Answer = reading.value(stage.quick_s)
        expect(answer.code == WSAEINTR, f"the blocked receive came to {answer}, not WSAEINTR")


@promise("CLOSE-28", "REF-2", "DUP-18")
def a_close_leaves_the_other_process_and_the_peer_alone(stage: Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        reading = stage.blocked(stage.b, calls.receive, theirs)
        stage.value(stage.a, "WSPCloseSocket", s)
        expect(not reading.is_done(), "B's receive has ended with A's close")
        expect(is_quiet(far), "the peer has noticed A's close")
        far.sendall(b"still here")
        answer: Answer = reading.value(stage.quick_s)
        expect(answer == (0, b"still here"), f"B's receive came to {answer}")
        stage.value(stage.b, "WSPCloseSocket", theirs)


@promise("CLOSE-2", "CLOSE-3")
def a_closed_handle_is_10038_from_every_call(stage: Stage) -> None:
    with stage.connection() as (s, _far):
        stage.value(stage.a, "WSPCloseSocket", s)
        for name, arguments in (
            ("WSPSend", ([b"x"],)),
            ("WSPRecv", ([bytearray(1)],)),
            ("WSPGetSockName", ()),
            ("WSPShutdown", (SD_SEND,)),
            ("WSPIoctl", (FIONBIO, 1)),
            ("WSPCloseSocket", ()),
        ):
            stage.fails(stage.a, WSAENOTSOCK, name, s, *arguments)


@promise("CLOSE-4")
def no_handle_is_given_out_twice(stage: Stage) -> None:
    seen: set[int] = set()
    for _ in range(8):
        s = stage.value(stage.a, "WSPSocket", AF_INET, SOCK_STREAM, 0, stage.entry)
        expect(s not in seen, f"handle {s} was given out again")
        seen.add(s)
        stage.value(stage.a, "WSPCloseSocket", s)


@promise("REF-1", "REF-5", "LINGER-2")
def the_connection_ends_with_the_last_close_in_whatever_order(stage: Stage) -> None:
    for is_source_first in (True, False):
        with stage.connection() as (s, far):
            theirs = stage.share(s)
            closers = [(stage.a, s), (stage.b, theirs)]
            for actor, handle in closers if is_source_first else reversed(closers):
                expect(is_quiet(far), "the peer has noticed a close that was not the last")
                stage.value(actor, "WSPCloseSocket", handle)
            _, end = read_all(far, stage.quick_s)
            expect(end == "FIN", f"after the last close the connection is {end}")


@promise("DUP-12")
def an_info_is_a_reference_from_the_moment_it_is_made(stage: Stage) -> None:
    with stage.connection() as (s, far):
        info = stage.value(stage.a, "WSPDuplicateSocket", s, stage.b.pid)
        stage.value(stage.a, "WSPCloseSocket", s)
        expect(is_quiet(far), "the connection has ended while an info was under way")
        answer: Answer = stage.b.call(calls.take, info)
        expect(answer.code == 0, f"B could not use its info after A's close: {answer}")
        stage.value(stage.b, "WSPSend", answer.value, [b"x"])
        expect(far.recv(1) == b"x", "B's descriptor is of another socket")
        stage.value(stage.b, "WSPCloseSocket", answer.value)


@promise("DUP-3", "DUP-5")
def an_info_is_good_once_and_for_its_target_only(stage: Stage) -> None:
    with stage.connection() as (s, _far):
        info = stage.value(stage.a, "WSPDuplicateSocket", s, stage.b.pid)
        answer: Answer = stage.a.call(calls.take, info)
        expect(answer.code == WSAEINVAL, f"a stranger's use of an info came to {answer}, not WSAEINVAL")
        first: Answer = stage.b.call(calls.take, info)
        expect(first.code == 0, f"a refused use has used the info up: {first}")
        again: Answer = stage.b.call(calls.take, info)
        expect(again.code == WSAEINVAL, f"the second use of an info came to {again}, not WSAEINVAL")
        stage.value(stage.b, "WSPCloseSocket", first.value)
        stage.value(stage.a, "WSPCloseSocket", s)


@promise("DUP-15", "CLOSE-20")
def what_one_descriptor_has_not_received_is_there_for_the_other(stage: Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        far.sendall(b"abcdef")
        answer: Answer = stage.a.call(calls.receive, s, 3)
        expect(answer == (0, b"abc"), f"A's receive of 3 bytes came to {answer}")
        stage.value(stage.a, "WSPCloseSocket", s)
        reading = stage.b.thread("blocked").call(calls.receive, theirs, 64)
        answer = reading.value(stage.quick_s)
        expect(answer == (0, b"def"), f"B received {answer}, not the rest")
        stage.value(stage.b, "WSPCloseSocket", theirs)


@promise("DUP-17")
def the_blocking_mode_is_common(stage: Stage) -> None:
    with stage.connection() as (s, _far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPIoctl", s, FIONBIO, 1)
        reading = stage.b.thread("blocked").call(calls.receive, theirs)
        answer: Answer = reading.value(stage.quick_s)
        expect(answer.code == WSAEWOULDBLOCK, f"after FIONBIO in A, B's receive came to {answer}")
        for actor, handle in ((stage.a, s), (stage.b, theirs)):
            stage.value(actor, "WSPCloseSocket", handle)


@promise("DUP-18", "SHUT-1")
def a_shutdown_is_common(stage: Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPShutdown", s, SD_SEND)
        expect(far.recv(1) == b"", "the peer got no FIN")
        stage.fails(stage.b, WSAESHUTDOWN, "WSPSend", theirs, [b"x"])
        for actor, handle in ((stage.a, s), (stage.b, theirs)):
            stage.value(actor, "WSPCloseSocket", handle)


@promise("LINGER-2", "REF-4")
def a_graceful_close_delivers_what_is_queued(stage: Stage) -> None:
    with stage.connection(small=True) as (s, far):
        queued = stage.a.call(calls.fill, s)
        stage.value(stage.a, "WSPCloseSocket", s)
        count, end = read_all(far, stage.quick_s)
        expect((count, end) == (queued, "FIN"), f"of {queued} queued bytes {count} arrived, then {end}")


@promise("LINGER-3", "LINGER-13")
def linger_0_resets_at_the_last_close_and_only_there(stage: Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_LINGER, spi.LINGER(1, 0))
        stage.value(stage.a, "WSPCloseSocket", s)
        expect(is_quiet(far), "LINGER(0) has acted on a close that was not the last")
        stage.value(stage.b, "WSPCloseSocket", theirs)
        _, end = read_all(far, stage.quick_s)
        expect(end == "reset", f"after the last close with LINGER(0) the connection is {end}")


@promise("LINGER-4", "LINGER-5", "REF-6", "NONIFS-11")
def a_refused_close_has_changed_nothing(stage: Stage) -> None:
    with stage.connection(small=True) as (s, far):
        queued = stage.a.call(calls.fill, s)
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_LINGER, spi.LINGER(1, 30))
        stage.fails(stage.a, WSAEWOULDBLOCK, "WSPCloseSocket", s)
        _, closed, _ = stage.a.call(calls.counts, s)
        expect(not closed, "WPUCloseSocketHandle was called on a refused close")
        stage.fails(stage.a, WSAEWOULDBLOCK, "WSPRecv", s, [bytearray(1)])
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_DONTLINGER, True)
        stage.value(stage.a, "WSPCloseSocket", s)
        count, end = read_all(far, stage.quick_s)
        expect((count, end) == (queued, "FIN"), f"of {queued} queued bytes {count} arrived, then {end}")


@promise("LINGER-6")
def a_lingering_close_waits_for_the_peer_and_no_longer(stage: Stage) -> None:
    with stage.connection(small=True) as (s, far):
        queued = stage.a.call(calls.fill, s)
        stage.value(stage.a, "WSPIoctl", s, FIONBIO, 0)
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_LINGER, spi.LINGER(1, 60))
        closing = stage.a.thread("blocked").call(calls.close_timed, s)
        count, end = read_all(far, stage.quick_s)
        expect((count, end) == (queued, "FIN"), f"of {queued} queued bytes {count} arrived, then {end}")
        answer, _ = closing.value(TIMEOUT_S)
        expect(answer.code == 0, f"the close came to {answer}")


@promise("LINGER-7")
def a_lingering_close_ends_hard_when_its_time_is_over(stage: Stage) -> None:
    with stage.connection(small=True) as (s, far):
        queued = stage.a.call(calls.fill, s)
        stage.value(stage.a, "WSPIoctl", s, FIONBIO, 0)
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_LINGER, spi.LINGER(1, LINGER_S))
        answer, took_s = stage.a.thread("blocked").call(calls.close_timed, s).value(LINGER_S + 2 * stage.quick_s)
        expect(answer.code == 0, f"the close came to {answer}")
        expect(took_s > 0.9 * LINGER_S, f"with LINGER({LINGER_S}) and bytes unsent the close took {took_s:.2f} s")
        count, end = read_all(far, stage.quick_s)
        expect(end == "reset", f"when the time was over the connection was {end}: {count} of {queued} bytes came")


@promise("NONIFS-5", "NONIFS-10")
def each_handle_is_given_back_exactly_once(stage: Stage) -> None:
    with stage.connection() as (s, _far):
        theirs = stage.share(s)
        for actor, handle, when in ((stage.a, s, "not the last"), (stage.b, theirs, "the last")):
            stage.value(actor, "WSPCloseSocket", handle)
            created, closed, is_kept = actor.call(calls.counts, handle)
            expect(closed == created, f"WPUCloseSocketHandle was called {closed} times at a close that was {when}")
            expect(not is_kept, f"the handle was not given back at a close that was {when}")


@promise("CLOSE-22", "CLOSE-23", "OVERLAP-13")
def a_close_completes_a_request_exactly_once_with_995(stage: Stage) -> None:
    with stage.connection() as (s, _far):
        code = stage.a.call(calls.begin_receive, s)
        expect(code == WSA_IO_PENDING, f"beginning a receive came to {wsa_name(code)}")
        stage.value(stage.a, "WSPCloseSocket", s)
        completions = stage.a.call(calls.completed, stage.quick_s)
        expect(completions == [(WSA_OPERATION_ABORTED, 0)], f"its completions are {completions}")


@promise("OVERLAP-2", "OVERLAP-7")
def a_request_completes_exactly_once_with_its_bytes(stage: Stage) -> None:
    with stage.connection() as (s, far):
        code = stage.a.call(calls.begin_receive, s)
        expect(code == WSA_IO_PENDING, f"beginning a receive came to {wsa_name(code)}")
        far.sendall(b"abc")
        completions = stage.a.call(calls.completed, stage.quick_s)
        expect(completions == [(0, 3)], f"its completions are {completions}")
        stage.value(stage.a, "WSPCloseSocket", s)


@promise("CLOSE-31", "CLOSE-43")
def a_closed_listener_takes_no_client_from_the_other_process(stage: Stage) -> None:
    listener, address = stage.a.call(calls.listen, stage.entry)
    theirs = stage.share(listener)
    mine = stage.blocked(stage.a, calls.call, "WSPAccept", listener)
    other = stage.blocked(stage.b, calls.call, "WSPAccept", theirs)
    stage.value(stage.a, "WSPCloseSocket", listener)
    answer: Answer = mine.value(stage.quick_s)
    expect(answer.code == WSAEINTR, f"A's accept came to {answer}, not WSAEINTR")
    with plain_socket(_socket.socket().detach()) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(address)
        answer = other.value(stage.quick_s)
        expect(answer.code == 0, f"B's accept came to {answer}")
        for handle in (answer.value[0], theirs):
            stage.value(stage.b, "WSPCloseSocket", handle)


@promise("CLEANUP-3", "CLEANUP-4")
def the_last_cleanup_ends_this_process_s_references_only(stage: Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPCleanup")
        far.sendall(b"x")
        reading = stage.b.thread("blocked").call(calls.receive, theirs)
        answer: Answer = reading.value(stage.quick_s)
        expect(answer == (0, b"x"), f"after A's cleanup B's receive came to {answer}")
        stage.a.call(calls.begin)
        stage.fails(stage.a, WSAENOTSOCK, "WSPSend", s, [b"x"])
        stage.value(stage.b, "WSPCloseSocket", theirs)
        _, end = read_all(far, stage.quick_s)
        expect(end == "FIN", f"after the last close the connection is {end}: A's cleanup has kept a reference")
