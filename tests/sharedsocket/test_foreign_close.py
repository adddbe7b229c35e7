"""Somebody closes a file number of ours behind our back: an error, and never another's file."""

from __future__ import annotations

import os

import pytest

import sharedsock as ss

pytestmark = pytest.mark.fault("F-55")


@pytest.mark.parametrize("end", ["close", "abort", "with"])
def test_a_close_tells_that_the_number_was_gone(end: str) -> None:
    """socket.socket's close raises EBADF."""
    s = ss.SharedSocket()
    os.close(s.fileno())
    with pytest.raises(ss.NotASocket, match="somebody else in this process had closed") as caught:
        if end == "with":
            with s:
                pass
        else:
            getattr(s, end)()
    assert caught.value.winerror == 10038
    s.close()
    assert s.fileno() == -1


def test_a_close_of_a_lost_number_touches_no_other_file() -> None:
    """The number is nobody's at the close, and somebody else's at the end: the socket forgets it at once."""
    s = ss.SharedSocket()
    kernel = s._kernel
    number = s.fileno()
    os.close(number)
    with pytest.raises(ss.NotASocket):
        s.close()
    stranger = os.dup(0)
    try:
        if stranger != number:
            os.dup2(stranger, number)
        expected = os.fstat(number)
        del kernel
        assert os.fstat(number) == expected
    finally:
        os.close(number)
        if stranger != number:
            os.close(stranger)


def test_a_second_object_on_a_number_leaves_the_first_an_error() -> None:
    """test_socket, testCloseException: two objects own one number; the second to close learns of it."""
    s = ss.SharedSocket()
    ss.SharedSocket(fileno=s.fileno()).close()
    with pytest.raises(OSError) as caught:
        s.recv(1)
    assert caught.value.winerror == 10038  # type: ignore[attr-defined]
    with pytest.raises(ss.NotASocket):
        s.close()


def test_a_shared_descriptor_whose_number_was_closed_gives_its_reference_back(registry: ss.Registry) -> None:
    s = ss.SharedSocket()
    twin = s.dup()
    os.close(s.fileno())
    assert twin.references() == 2
    with pytest.raises(ss.NotASocket):
        s.close()
    assert twin.references() == 1
    twin.close()


def test_detach_gives_out_what_there_is() -> None:
    """The stdlib's detach() makes no system call, so it cannot fail."""
    s = ss.SharedSocket()
    number = s.fileno()
    os.close(number)
    assert s.detach() == number
    assert s.fileno() == -1


def test_a_close_leaves_a_foreign_program_the_mode_it_has_chosen() -> None:
    """O_NONBLOCK belongs to all who have the file: one that cleared it waits in the kernel, before and after (I4)."""
    a, b = ss.socketpair()
    foreign = os.dup(a.fileno())
    try:
        os.set_blocking(foreign, True)
        a.close()
        assert os.get_blocking(foreign)
    finally:
        os.close(foreign)
        b.close()
