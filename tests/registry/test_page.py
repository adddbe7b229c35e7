"""The common-state page: every state fits one word, clients see it at once, and none of them can write."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterator

import pytest

from sharedsock.registry.page import PAGE_SIZE, SLOTS, CommonState, PageReader, PageWriter, from_word, to_word


@pytest.fixture
def writer() -> Iterator[PageWriter]:
    made = PageWriter()
    yield made
    made.close()


def passed(writer: PageWriter) -> int:
    assert writer.fd is not None
    return os.dup(writer.fd)


@pytest.mark.parametrize("seconds", [None, 0, 1, 65_535])
@pytest.mark.parametrize("events", [0, 1 << 6 | 1, 4_194_304 << 6 | 63])
def test_every_state_fits_one_word_and_comes_back(seconds: int | None, events: int) -> None:
    """The highest pid Linux gives out is 4,194,304 - 1, and there are six network events."""
    names = ("shut_receive", "shut_send", "reset_seen", "nonblocking", "has_port")
    for *flags, lingers in itertools.product([False, True], repeat=6):
        kept_s, linger_s = (None, seconds) if lingers else (seconds, None)
        state = CommonState(
            **dict(zip(names, flags, strict=True)), linger_s=linger_s, linger_kept_s=kept_s, events=events
        )
        assert 0 <= to_word(state) < 2**64
        assert from_word(to_word(state)) == state


def test_longer_than_a_day_is_a_day() -> None:
    assert from_word(to_word(CommonState(linger_s=2**32 - 1))) == CommonState(linger_s=65_535)


def test_an_untouched_slot_is_the_default(writer: PageWriter) -> None:
    assert writer.read(SLOTS - 1) == CommonState()
    assert to_word(CommonState()) == 0


def test_a_reader_sees_each_write_and_counts_it(writer: PageWriter) -> None:
    reader = PageReader(passed(writer))
    for slot, state in ((0, CommonState(shut_send=True)), (SLOTS - 1, CommonState(linger_s=0, nonblocking=True))):
        writer.write(slot, state)
        assert reader.read(slot) == writer.read(slot) == state
        assert reader.changes(slot) == 1
    assert reader.read(1) == CommonState()
    reader.close()


@pytest.mark.parametrize("slot", [-1, SLOTS, 1 << 40])
def test_there_is_nothing_beyond_the_slots(writer: PageWriter, slot: int) -> None:
    reader = PageReader(passed(writer))
    with pytest.raises(IndexError):
        reader.read(slot)
    reader.close()


@pytest.mark.fault("S-14")
def test_a_client_can_neither_write_nor_resize_nor_unseal(writer: PageWriter) -> None:
    import fcntl

    fd = passed(writer)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        for attempt in (
            lambda: os.pwrite(fd, b"\xff" * 8, 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, PAGE_SIZE * 2),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        ):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(fd)
    writer.write(0, CommonState(shut_receive=True))


def test_the_number_is_close_on_exec(writer: PageWriter) -> None:
    assert writer.fd is not None
    assert not os.get_inheritable(writer.fd)


@pytest.mark.fault("F-34")
def test_a_reader_takes_no_other_descriptor_for_a_page(writer: PageWriter) -> None:
    """A file that can shrink would be SIGBUS at the next read."""
    small = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, PAGE_SIZE)
    read_end, write_end = os.pipe()
    for fd in (small, unsealed, read_end):
        with pytest.raises(OSError):
            PageReader(fd)
        with pytest.raises(OSError):
            os.fstat(fd)
    os.close(write_end)


def test_readers_outlive_the_writer() -> None:
    made = PageWriter()
    made.write(3, CommonState(reset_seen=True))
    reader = PageReader(passed(made))
    made.close()
    assert reader.read(3) == CommonState(reset_seen=True)
    reader.close()


def test_without_seals_the_page_is_the_registrys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback: no descriptor to pass on, and clients ask by a call."""

    def refuse(*arguments: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    made = PageWriter()
    assert made.fd is None
    made.write(5, CommonState(shut_send=True))
    assert made.read(5) == CommonState(shut_send=True)
    made.close()
    monkeypatch.undo()
    monkeypatch.delattr(os, "memfd_create")
    made = PageWriter()
    assert made.fd is None
    made.close()
