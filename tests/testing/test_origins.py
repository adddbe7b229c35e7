"""Where things come from: also what no audit event tells, and what is collected without close."""

from __future__ import annotations

import ctypes
import gc
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sharedsock.testing import Checkers
from sharedsock.testing.origins import Recording, recordings

QUICK_S = 0.05


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Without the recording that checks this project's own tests."""
    others = recordings()
    for one in others:
        one.stop()
    yield
    for one in others:
        one.start()


@pytest.fixture
def recording() -> Iterator[Recording]:
    made = Recording("test_x.py::test_it")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def _is_here(place: str, function: str) -> bool:
    return place.startswith(f"{__file__}:") and place.endswith(f" in {function}")


@pytest.mark.parametrize(
    "opened",
    [
        lambda: os.pipe(),
        lambda: os.dup(0),
        lambda: os.openpty(),
        lambda: os.eventfd(0),
        lambda: os.memfd_create("x"),
        lambda: os.pidfd_open(os.getpid()),
        lambda: os.open(".", os.O_RDONLY),
        lambda: socket.socket().detach(),
        lambda: os.dup2(0, os.dup(0)),
    ],
    ids=["pipe", "dup", "openpty", "eventfd", "memfd", "pidfd", "open", "detach", "dup2"],
)
def test_a_number_is_told_with_its_place(opened: Callable[[], Any], recording: Recording) -> None:
    result = opened()
    numbers = result if isinstance(result, tuple) else (result,)
    try:
        for number in numbers:
            origin = recording.of_number(number)
            assert origin is not None
            assert _is_here(origin.place, "<lambda>"), origin
            assert (origin.test, origin.thread) == ("test_x.py::test_it", "MainThread")
    finally:
        for number in numbers:
            os.close(number)


def test_a_temporary_file_is_told_by_the_directory_it_was_made_in(recording: Recording) -> None:
    with tempfile.TemporaryFile() as file:
        origin = recording.of_number(file.fileno())
    assert origin is not None
    assert _is_here(origin.place, "test_a_temporary_file_is_told_by_the_directory_it_was_made_in")


def test_a_number_that_is_something_else_by_now_has_no_place(recording: Recording) -> None:
    first, second = os.pipe()
    os.close(first)
    os.close(second)
    libc = ctypes.CDLL(None)
    numbers = (ctypes.c_int * 2)()
    assert libc.pipe(numbers) == 0
    assert list(numbers) == [first, second]
    assert recording.of_number(first) is None
    for number in numbers:
        os.close(number)


def test_what_c_code_has_opened_is_told_to_have_no_place() -> None:
    with _quiet("descriptors") as check:
        numbers = (ctypes.c_int * 2)()
        assert ctypes.CDLL(None).pipe(numbers) == 0
    for number in numbers:
        os.close(number)
    assert len(check.findings) == 2
    assert check.findings[0].place == ""
    assert "at no place that was seen: outside Python" in check.findings[0].lines()[1]


def _quiet(*kinds: str) -> Checkers:
    return Checkers.only(*kinds, raises=False, grace_s=QUICK_S)


def test_the_functions_are_themselves_again_when_nobody_records() -> None:
    before = os.pipe, os.dup, multiprocessing.process.BaseProcess.start, sys.unraisablehook
    first, second = Recording(), Recording()
    first.start()
    second.start()
    assert os.pipe is not before[0]
    assert pickle.loads(pickle.dumps(os.pipe)) is os.pipe
    first.stop()
    assert os.pipe is not before[0], "the other one still wants to know"
    mine: Any = lambda number: number  # noqa: E731
    ours, os.dup = os.dup, mine
    try:
        second.stop()
        assert os.dup is mine, "what somebody else has replaced is his"
    finally:
        os.dup = ours
    assert os.pipe is before[0]
    assert (multiprocessing.process.BaseProcess.start, sys.unraisablehook) == before[2:]
    os.dup = before[1]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_multiprocessing_is_told_with_its_place(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=signal.pause)
    with _quiet("processes") as check:
        process.start()
    process.kill()
    process.join()
    process.close()
    (finding,) = check.findings
    assert _is_here(finding.place, "test_a_process_of_multiprocessing_is_told_with_its_place"), finding


def test_forks_are_told_with_their_places_also_when_they_have_ended() -> None:
    with _quiet("processes") as check:
        ended = os.fork()
        if ended == 0:
            os._exit(0)
        os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
        program = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "60"])
    os.kill(program, signal.SIGKILL)
    os.waitpid(program, 0)
    os.waitpid(ended, 0)
    assert len(check.findings) == 2
    for finding in check.findings:
        assert _is_here(finding.place, "test_forks_are_told_with_their_places_also_when_they_have_ended"), finding


def _helper() -> socket.socket:
    return socket.socket()


def _drop_a_file() -> None:
    file = open(__file__)  # noqa: SIM115
    del file
    gc.collect()


def _drop_a_pipe() -> None:
    first, second = os.pipe()
    os.close(second)
    file = os.fdopen(first)
    del file
    gc.collect()


def _drop_a_socket() -> None:
    made = _helper()
    ring = [made]
    ring.append(ring)  # type: ignore[arg-type]
    del made, ring
    gc.collect()


@pytest.mark.parametrize(
    ("drop", "what", "where"),
    [
        (_drop_a_socket, "unclosed <socket.socket", "_helper"),
        (_drop_a_file, "unclosed file <_io.TextIOWrapper", "_drop_a_file"),
        (_drop_a_pipe, "unclosed file <_io.TextIOWrapper", "_drop_a_pipe"),
    ],
    ids=["socket", "file", "pipe"],
)
def test_what_is_collected_without_close_is_warned_of_with_its_place(
    drop: Callable[[], None], what: str, where: str, recording: Recording
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        drop()
    (warning,) = told
    assert str(warning.message).startswith(what)
    place = str(warning.message).partition(", opened at ")[2]
    assert _is_here(place.removesuffix(" by test_x.py::test_it"), where), warning


@pytest.mark.parametrize("drop", [_drop_a_socket, _drop_a_file], ids=["socket", "file"])
def test_where_a_warning_is_an_error_it_has_its_place_as_well(
    drop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer cannot raise: the error goes to sys.unraisablehook."""
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(str(args.exc_value)))
    recording = Recording()
    recording.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drop()
    finally:
        recording.stop()
    assert len(told) == 1
    assert f", opened at {__file__}:" in told[0]


def test_a_warning_of_what_no_recording_knows_is_left_alone() -> None:
    made = io.open(__file__)  # noqa: SIM115, UP020
    recording = Recording()
    recording.start()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            del made
    finally:
        recording.stop()
    (warning,) = told
    assert "opened at" not in str(warning.message)
