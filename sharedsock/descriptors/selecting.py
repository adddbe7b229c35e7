"""Waiting for several sockets at once: `select` and `Selector`, as in the standard library, and ended by a close here.

A close in this process ends a `select` that has the descriptor in one of its sets with 10004 (CLOSE-21). A `Selector`
takes a descriptor out by itself, before its number stops being that socket: an epoll set that still knew the number
would go on reporting a socket that another process holds, and could never be told to forget it (rule 6, F-57). Its
waiting `select()` is woken by such a close and returns without that key.

Other processes: unaffected; a close there ends nothing here. Ready is a hint: a sharer may be faster (SELECT-5), so
the next call on the socket may wait, or say 10035 with timeout 0. Nothing here disturbs a socket (SELECT-4).
"""

from __future__ import annotations

import errno
import itertools
import math
import select as _select
import selectors
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import ref

from sharedsock.descriptors import table, transfer
from sharedsock.descriptors.descriptor import Descriptor
from sharedsock.kernel import numbers, operations, polling, system
from sharedsock.kernel.teardown import silent_once_emptied
from sharedsock.kernel.waiting import waker_of
from sharedsock.model import trace
from sharedsock.model.errors import ForkedDescriptor, NotASocket, SharedSocketError, from_errno, wsa_number

if TYPE_CHECKING:
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["Selector", "select"]

# What select(2) calls ready, in terms of poll(2); a refused connection is exceptional as well, as Winsock has it.
_READ: Final = _select.POLLIN | _select.POLLHUP | _select.POLLERR
_WRITE: Final = _select.POLLOUT | _select.POLLHUP | _select.POLLERR
_EXCEPTIONAL: Final = _select.POLLPRI | _select.POLLERR
_ASKED: Final = (_select.POLLIN, _select.POLLOUT, _select.POLLPRI)

_kept_of: Final = attrgetter("kept")


class _Refused(SharedSocketError, ValueError):
    """Arguments that select refuses: a `ValueError`, as in the standard library, with Winsock's number (10022)."""

    _errno = errno.EINVAL


def _refuse(message: str) -> NoReturn:
    raise _Refused(message, winerror=wsa_number(errno.EINVAL))


def _resolve(item: Any) -> tuple[int, KernelSocket | None]:
    """Return the file number of anything that has one, and its kernel socket if it is one of ours.

    Raises:
        NotASocket: one of ours that is closed. ValueError, TypeError: no file number.
    """
    if not isinstance(item, int):
        descriptor = item if isinstance(item, Descriptor) else getattr(item, "_descriptor", None)
        if isinstance(descriptor, Descriptor):
            kernel = transfer.require_kernel(descriptor)
            return kernel.number, kernel
        try:
            item = item.fileno()
        except AttributeError:
            item = None
        if not isinstance(item, int):
            raise TypeError("argument must be an int, or have a fileno() method.")
    if item < 0:
        raise ValueError(f"file descriptor cannot be a negative integer ({item})")
    return item, None


def select(
    rlist: Iterable[Any], wlist: Iterable[Any], xlist: Iterable[Any], timeout: float | None = None, /
) -> tuple[list[Any], list[Any], list[Any]]:
    """Wait until something in one of three lists is ready; return the ready ones of each, all empty if time is over.

    As `select.select`, for SharedSockets, descriptors, other objects with fileno(), and numbers of any size. A
    connection attempt that failed is in the third list as well as the second (SELECT-3).

    Args:
        timeout: seconds; None waits for ever, 0 only looks.

    Raises:
        OperationAborted: this process has closed one of the SharedSockets meanwhile (10004).
        NotASocket: one of them is closed already (10038); nothing was waited for.
        ValueError: three empty lists, or no timeout (10022, as Winsock; select(2) would sleep). TypeError.

    Source: LPWSPSELECT; Windows Sockets 1.1 sec. 2.7.
    """
    table.note_fork()
    lists = [list(items) for items in (rlist, wlist, xlist)]
    if timeout is not None and not timeout >= 0:
        _refuse(f"the timeout of select() is {timeout}; it must be None, or seconds, 0 or more")
    found = [[(item, *_resolve(item)) for item in items] for items in lists]
    if not any(found):
        _refuse("select() of three empty lists has nothing to wait for")
    masks: dict[int, int] = {}
    ours: dict[int, KernelSocket] = {}
    for asked, items in zip(_ASKED, found, strict=True):
        for _, number, kernel in items:
            masks[number] = masks.get(number, 0) | asked
            if kernel is not None:
                ours[number] = kernel
    here = polling.Presence(ours.values(), "select")
    try:
        here.enter()
        events = _poll(masks, ours, timeout, [kernel for _, _, kernel in found[0] if kernel is not None])
    finally:
        here.leave()
        here.tell()
    return _sort(found, events)


def _poll(
    masks: dict[int, int], ours: dict[int, KernelSocket], timeout_s: float | None, reading: list[KernelSocket]
) -> dict[int, int]:
    """Wait for any of these numbers, or for the waker of one of our sockets."""
    first = next(iter(ours), -1)
    if trace.hook is not None:
        trace.hit("op.enter", number=first, kind="select")
    for kernel in ours.values():
        if kernel.aborted is not None:
            raise NotASocket(f"select: this process closed a descriptor of its lists in {kernel.aborted}")
    kept = {kernel.number: _select.POLLIN for kernel in reading if kernel.kept}
    poll = system.make_poll()
    for number, mask in masks.items():
        poll.register(number, mask)
    if timeout_s != 0:
        for kernel in ours.values():
            waker = waker_of(kernel)
            if waker is None:
                raise from_errno(errno.EMFILE, "select: no number is left for what lets a close end it")
            poll.register(waker.number, _select.POLLIN)
    if trace.hook is not None:
        trace.hit("op.waiting", number=first, kind="select")
    # What an interrupted receive has taken is there to be read, whatever the kernel says.
    events = dict(poll.poll(0 if kept else None if timeout_s is None else timeout_s * 1000.0))
    if trace.hook is not None:
        trace.hit("op.ready", number=first, kind="select")
    for kernel in ours.values():
        if kernel.aborted is not None:
            raise operations.aborted(kernel, "select")
    for number, asked in kept.items():
        events[number] = events.get(number, 0) | asked
    for number, mask in events.items():
        if mask & _select.POLLNVAL and number in masks:
            raise NotASocket(f"select: {number} is no open file")
    return events


def _sort(
    found: list[list[tuple[Any, int, KernelSocket | None]]], events: dict[int, int]
) -> tuple[list[Any], list[Any], list[Any]]:
    # Loops, not comprehensions: CPython 3.11 leaks what a frame with cells was given if there is no room for a cell.
    elsewhere = set()
    readable, writable, exceptional = [], [], []
    for item, number, _ in found[0]:
        elsewhere.add(number)
        if events.get(number, 0) & _READ:
            readable.append(item)
    for item, number, _ in found[1]:
        elsewhere.add(number)
        if events.get(number, 0) & _WRITE:
            writable.append(item)
    for item, number, _ in found[2]:
        # A hang-up that nobody else asked about: poll reports it unasked, and would report it for ever.
        asked = _EXCEPTIONAL if number in elsewhere else _EXCEPTIONAL | _select.POLLHUP
        if events.get(number, 0) & asked:
            exceptional.append(item)
    return readable, writable, exceptional


class _Polls(polling.PollSet):
    """The set of one selector, which it tells what a close has taken out."""

    __slots__ = ("owner",)

    def __init__(self, owner: Selector) -> None:
        self.owner = ref(owner)
        super().__init__()

    def forget(self, number: int) -> None:
        self.remove(number)
        owner = self.owner()
        if owner is not None:
            owner._lose(number)


class _Keys(Mapping[Any, SelectorKey]):
    """What `Selector.get_map` returns: a live view, by file object or number."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector._keys)

    def __getitem__(self, fileobj: Any) -> SelectorKey:
        return self._selector._keys[self._selector._number_of(fileobj)]

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self._selector._keys))


class Selector(selectors.BaseSelector):
    """As `selectors.DefaultSelector`; a SharedSocket that is closed disappears from it by itself.

    `register` of a closed SharedSocket is `NotASocket` (10038); `unregister` and `modify` of one that was closed while
    registered are KeyError. Other objects with a fileno() are treated as the standard library treats them: unregister
    before you close. Threads may register, close and select at the same time.

    A forked child cannot use its parent's: it gets `ForkedDescriptor`.
    """

    _is_open = False

    def __init__(self) -> None:
        self._era = numbers.current_era()
        self._keys: dict[int, SelectorKey] = {}
        self._kernels: dict[int, KernelSocket] = {}
        # When each key was entered, in steps: an event reported for a number may be its former bearer's.
        self._entered: dict[int, int] = {}
        self._steps = itertools.count(1)
        self._lost = 0
        self._polls = _Polls(self)
        self._is_open = True

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Begin to watch a file object for EVENT_READ, EVENT_WRITE or both; return its key.

        Raises:
            NotASocket: a SharedSocket that is closed. KeyError: registered already. ValueError: no such events or file.
        """
        self._require_open()
        mask = _mask_of(events)
        number, kernel = self._look_up(fileobj)
        if number in self._keys:
            raise KeyError(f"{fileobj!r} (FD {number}) is already registered")
        key = SelectorKey(fileobj, number, events, data)
        if kernel is None:
            self._polls.add(number, mask)
            self._keys[number], self._entered[number] = key, next(self._steps)
            return key
        # Race: a close marks, then takes the number out of every set it finds entered; we enter, then look for the
        # mark. Being present, we keep it from putting the dead file over the number in between.
        here = polling.Presence((kernel,), None)
        try:
            here.enter()
            self._kernels[number], self._keys[number], self._entered[number] = kernel, key, next(self._steps)
            polling.enter(kernel, self._polls)
            if kernel.aborted is None:
                self._polls.add(number, mask)
            if kernel.aborted is not None:
                raise NotASocket(f"register: this process closed the descriptor in {kernel.aborted}")
        except BaseException:
            self._polls.remove(number)
            self._drop(number)
            if kernel.aborted is not None:
                polling.forget(kernel)
            raise
        finally:
            here.leave()
            here.tell()
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Stop watching a file object; return the key it had.

        Raises:
            KeyError: it is not registered, or was closed meanwhile.
        """
        self._require_open()
        key = self._key_of(fileobj)
        self._drop(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watch a registered file object for other events, with other data; return its new key.

        Raises:
            KeyError: it is not registered, or was closed meanwhile. ValueError: no such events.
        """
        self._require_open()
        key = self._key_of(fileobj)
        if events != key.events:
            mask = _mask_of(events)
            here = polling.Presence([self._kernels[key.fd]] if key.fd in self._kernels else (), None)
            try:
                here.enter()
                if self._keys.get(key.fd) is key:
                    self._polls.change(key.fd, mask)
            except BaseException:
                self._drop(key.fd)
                raise
            finally:
                here.leave()
                here.tell()
        changed = key._replace(events=events, data=data)
        if key.fd not in self._keys:
            raise KeyError(f"{fileobj!r} was closed meanwhile")
        self._keys[key.fd] = changed
        return changed

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait until something registered is ready; return [(key, events)], empty if the time is over.

        A close of a registered SharedSocket in this process ends the wait as well; its key is gone then.

        Args:
            timeout: seconds; None waits for ever, 0 or less only looks.
        """
        self._require_open()
        polls, lost = self._polls, self._lost
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            ready = self._look(polls, timeout)
            if ready or self._lost != lost or not self._is_open:
                return ready
            if deadline is not None:
                timeout = deadline - monotonic()
                if timeout <= 0:
                    return ready

    def _look(self, polls: _Polls, timeout_s: float | None) -> list[tuple[SelectorKey, int]]:
        """Wait once; nothing is ready as well when the bell has told of a change."""
        began = next(self._steps)
        kept = [number for number, kernel in self._kernels.items() if kernel.kept] if self._has_kept() else []
        if timeout_s is not None:
            timeout_s = 0.0 if kept else max(math.ceil(timeout_s * 1e3) * 1e-3, 0.0)
        elif kept:
            timeout_s = 0.0
        if trace.hook is not None:
            trace.hit("op.waiting", number=polls.number, kind="select")
        events = dict(polls.wait(timeout_s))
        if trace.hook is not None:
            trace.hit("op.ready", number=polls.number, kind="select")
        for number in kept:
            events[number] = events.get(number, 0) | polling.READABLE
        ready = []
        for number, mask in events.items():
            key = self._keys.get(number)
            if key is None:
                continue
            if self._entered.get(number, 0) > began:
                mask = polling.is_ready(number, _mask_of(key.events))
            found = (mask & ~polling.WRITABLE and EVENT_READ) | (mask & ~polling.READABLE and EVENT_WRITE)
            if found & key.events:
                ready.append((key, found & key.events))
        return ready

    def close(self) -> None:
        """Let go of everything registered, and end the wait of another thread; a second close does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        if self._era == numbers.current_era():
            for number in tuple(self._keys):
                self._drop(number)
            self._polls.bell.signal()
        del self._polls

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """Return a live mapping of file objects to keys; None once closed."""
        return _Keys(self) if self._is_open else None  # type: ignore[return-value]  # as in the standard library

    def fileno(self) -> int:
        """Return the number of the epoll set, ready when `select` is; -1 where there is none."""
        self._require_open()
        return self._polls.number

    @silent_once_emptied
    def __del__(self) -> None:
        self.close()

    def _require_open(self) -> None:
        table.note_fork()
        if self._era != numbers.current_era():
            raise ForkedDescriptor("this selector belongs to the parent process; make one of your own")
        if not self._is_open:
            raise RuntimeError("Selector is closed")

    def _look_up(self, fileobj: Any) -> tuple[int, KernelSocket | None]:
        try:
            return _resolve(fileobj)
        except TypeError:
            raise ValueError(f"Invalid file object: {fileobj!r}") from None

    def _number_of(self, fileobj: Any) -> int:
        """Return the number under which a file object is registered; one that is closed is found by identity."""
        try:
            return self._look_up(fileobj)[0]
        except (ValueError, NotASocket):
            for key in tuple(self._keys.values()):
                if key.fileobj is fileobj:
                    return key.fd
            raise KeyError(f"{fileobj!r} is not registered") from None

    def _key_of(self, fileobj: Any) -> SelectorKey:
        key = self._keys.get(self._number_of(fileobj))
        if key is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return key

    def _has_kept(self) -> bool:
        # At the speed of C: this is asked at every select(), and true after an interrupted receive only.
        return any(map(_kept_of, tuple(self._kernels.values())))

    def _drop(self, number: int) -> None:
        kernel = self._kernels.get(number)
        keys: list[SelectorKey | None] = []
        try:
            keys.extend(map(self._keys.pop, (number,), (None,)))
            if keys[0] is not None:  # else a close was faster; the number may be another's by now
                self._take_out(number, kernel)
        except BaseException:
            if any(keys):  # cut short: taken out all the same
                self._take_out(number, kernel)
            raise

    def _take_out(self, number: int, kernel: KernelSocket | None) -> None:
        self._entered.pop(number, None)
        if kernel is None:
            self._polls.remove(number)
            return
        self._kernels.pop(number, None)
        polling.leave(kernel, self._polls)
        here = polling.Presence((kernel,), None)
        try:
            here.enter()
            if not kernel.is_buried:
                self._polls.remove(number)
        finally:
            here.leave()
            here.tell()

    def _lose(self, number: int) -> None:
        """A close has taken a number out of the set; wake whoever waits."""
        if self._kernels.pop(number, None) is not None:
            self._keys.pop(number, None)
            self._entered.pop(number, None)
            self._lost += 1
            self._polls.bell.signal()


def _mask_of(events: int) -> int:
    if not events or events & ~(EVENT_READ | EVENT_WRITE):
        raise ValueError(f"Invalid events: {events!r}")
    return (events & EVENT_READ and polling.READABLE) | (events & EVENT_WRITE and polling.WRITABLE)
