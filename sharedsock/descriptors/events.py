"""Network events: the one registration a socket has, and the record of what has happened since the last look.

Whoever registers last, through any descriptor in any process, has the registration; it is a word of the common page,
so every recorder sees without a call whether it still holds (EVENT-1). Each process has one recorder thread while it
has registrations. It waits on all of them in one level-triggered set, records an event once, and then does not ask for
it again until a call re-enables it (EVENT-7): a receive, an accept, a send that found no room.

A call in another process re-enables as well (EVENT-10): it rings the owner's bell, a datagram to a name made of its
pid, which also tells an owner that its registration has been taken over. Anybody may ring: all it can do is have a
recorder look at what is there. A close takes the number out of the set before it stops being that socket (rule 6).

Source: LPWSPEVENTSELECT, LPWSPENUMNETWORKEVENTS, WSAEventSelect; "Multiple Handles to a Single Socket".
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import struct
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

from sharedsock.descriptors import options, transfer
from sharedsock.kernel import numbers, operations, polling, system
from sharedsock.model.errors import NotASocket, RegistryGone, wsa_number
from sharedsock.model.winsock import (
    FD_ACCEPT,
    FD_CLOSE,
    FD_CONNECT,
    FD_OOB,
    FD_READ,
    FD_WRITE,
    WSAECONNABORTED,
    WSAECONNRESET,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.model.identity import SocketId

__all__ = [
    "cancel",
    "inherit",
    "is_registered",
    "look_again",
    "note_closed",
    "reenable",
    "register",
    "registration_of",
    "take",
]

NAME: Final = "sharedsock-events"

_MASK_BITS: Final = 6
_TCP_CLOSE: Final = 7
_TCP_SYN_SENT: Final = 2
_RING: Final = struct.Struct("<16sI")
_RING_TIMEOUT_S: Final = 0.1
_RDHUP: Final = int(getattr(select, "POLLRDHUP", 0))
_ENDS: Final = select.POLLHUP | select.POLLERR


class _Registration:
    """One socket's registration in this process, and its record.

    Attributes:
        value: the word of the common page that says it is in force.
        enabled: the events that would be recorded if they happened now.
        notify: called after something has been recorded.
    """

    def __init__(self, descriptor: Descriptor, mask: int, notify: Callable[[], object]) -> None:
        self.descriptor = descriptor
        self.kernel = transfer.require_kernel(descriptor)
        self.mask = mask
        self.value = os.getpid() << _MASK_BITS | mask
        self.enabled = mask
        self.notify = notify
        self.recorded = 0
        self.errors: dict[int, int] = {}
        self.lock = threading.Lock()
        self.is_watched = False

    def is_in_force(self) -> bool:
        """Whether no later registration, in any process, has taken its place."""
        with suppress(RegistryGone):
            return options.common(self.descriptor).events == self.value
        return self.descriptor.local.events == self.value

    def found(self, ready: int) -> dict[int, int]:
        """Return what has happened, event -> error, of what is enabled."""
        happened: dict[int, int] = {}
        kernel = self.kernel
        if self.descriptor.type not in options.STREAMS:
            if ready & select.POLLIN:
                happened[FD_READ] = 0
            if ready & select.POLLOUT:
                happened[FD_WRITE] = 0
            return happened
        if kernel.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            if ready & select.POLLIN:
                happened[FD_ACCEPT] = 0
            return happened
        if self.enabled & FD_CONNECT and ready & (select.POLLOUT | _ENDS):
            try:
                operations.connect_outcome(kernel)
            except BlockingIOError:
                return happened
            except OSError as error:
                return {FD_CONNECT: wsa_number(error.errno or errno.EIO)}
            happened[FD_CONNECT] = 0
        if ready & select.POLLPRI:
            happened[FD_OOB] = 0
        # The peer's end makes a stream readable as well: that is FD_CLOSE, and never FD_READ (EVENT-9).
        if ready & select.POLLIN and (kernel.kept or system.has_unread(kernel.number)):
            happened[FD_READ] = 0
        if ready & (_RDHUP | _ENDS):
            happened[FD_CLOSE] = self._end_code()
        elif ready & select.POLLOUT:
            happened[FD_WRITE] = 0
        return happened

    def _end_code(self) -> int:
        """Return how the connection has ended: 0 gracefully, 10054 by a reset, 10053 for want of an answer."""
        state = options.common(self.descriptor)
        code = self.kernel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code or (system.tcp_state(self.kernel) == _TCP_CLOSE and not state.shut_send) or state.reset_seen:
            with suppress(RegistryGone):  # reading SO_ERROR has consumed it: later receives find it on record
                options.change_common(self.descriptor, reset_seen=True)
            return WSAECONNRESET if code in (0, errno.ECONNRESET, errno.EPIPE) else WSAECONNABORTED
        return 0

    def wanted(self) -> int:
        """Return what the set is to wait for."""
        kernel, enabled = self.kernel, self.enabled
        mask = 0
        if self.descriptor.type in options.STREAMS:
            if kernel.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return select.POLLIN if enabled & FD_ACCEPT else 0
            if not _is_begun(kernel):  # an unconnected stream is hung up from the beginning
                return 0
            if enabled & FD_CONNECT:
                mask |= select.POLLOUT
            if enabled & FD_CLOSE:
                mask |= _RDHUP
            if enabled & FD_OOB:
                mask |= select.POLLPRI
        if enabled & FD_READ and not self._is_at_end():
            mask |= select.POLLIN
        if enabled & FD_WRITE:
            mask |= select.POLLOUT
        return mask

    def _is_at_end(self) -> bool:
        """Whether nothing more will come: a stream behind the peer's FIN is readable for ever."""
        if self.descriptor.type not in options.STREAMS or system.has_unread(self.kernel.number):
            return False
        return bool(polling.is_ready(self.kernel.number, _RDHUP) & (_RDHUP | _ENDS))


def _is_begun(kernel: KernelSocket) -> bool:
    """Whether a stream is connected, connecting, or has been."""
    state = system.tcp_state(kernel)
    if state == _TCP_SYN_SENT:
        return True
    with suppress(OSError):
        kernel.getpeername()
        return True
    return bool(polling.is_ready(kernel.number, 0) & select.POLLERR)


class _Polls(polling.PollSet):
    """The recorder's set; a close of a socket ends its registration."""

    __slots__ = ()

    def forget(self, number: int) -> None:
        self.remove(number)
        _drop_number(number)
        self.bell.signal()


class _Recorder:
    """The thread, its set, and the name others ring."""

    def __init__(self) -> None:
        self.era = numbers.current_era()
        self.polls = _Polls()
        self.rings = _socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.rings.setblocking(False)
            with suppress(OSError):  # a stranger has the name: what other processes do is seen a little later
                self.rings.bind(_name_of(os.getpid()))
            self.polls.add(self.rings.fileno(), polling.READABLE)
            self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)
            self.thread.start()
        except BaseException:
            self.rings.close()
            raise

    def _run(self) -> None:
        while True:
            for number, ready in self.polls.wait(None):
                if number == self.rings.fileno():
                    self._answer_rings()
                else:
                    _look(number, ready)
            with _lock:
                if not _by_socket:
                    global _recorder
                    _recorder = None
                    break
        self.polls.remove(self.rings.fileno())
        self.rings.close()

    def _answer_rings(self) -> None:
        with suppress(OSError):
            while True:
                data = self.rings.recv(64)
                if len(data) == _RING.size:
                    cookie, bits = _RING.unpack(data)
                    found = _by_socket.get(int.from_bytes(cookie, "little"))  # type: ignore[call-overload]
                    if found is not None:
                        _enable(found, bits)


_lock = threading.RLock()
_recorder: _Recorder | None = None
_by_socket: dict[SocketId, _Registration] = {}


def _socket_of(descriptor: Descriptor) -> SocketId:
    return descriptor.socket_facts().socket


def is_registered(descriptor: Descriptor) -> bool:
    """Whether some process has an event registration on the socket; without a system call."""
    client = descriptor.client
    state = descriptor.local if client is None else client.common(descriptor.slot)
    return bool(state.events)


def register(descriptor: Descriptor, mask: int, notify: Callable[[], object]) -> None:
    """Record these events from now on, in a new record; 0 ends that. The socket is nonblocking then, for all (EVENT-2).

    Other processes: a registration of theirs ends (EVENT-1).

    Args:
        notify: called, in the recorder's thread, after something has been recorded.

    Raises:
        NotASocket: closed. RegistryGone: the socket is shared, and its registry cannot be reached; nothing changed.
    """
    transfer.require_kernel(descriptor)
    fresh = _Registration(descriptor, mask, notify)
    before = options.common(descriptor).events
    options.change_common(descriptor, nonblocking=True, events=fresh.value if mask else 0)
    with _lock:
        earlier = _by_socket.pop(_socket_of(descriptor), None)
        if earlier is not None:
            _unwatch(earlier)
        if mask:
            _by_socket[_socket_of(descriptor)] = fresh
    if before and before >> _MASK_BITS != os.getpid():
        _ring(before >> _MASK_BITS, _socket_of(descriptor), 0)
    if mask:
        _watch(fresh)
    elif _recorder is not None:
        _recorder.polls.bell.signal()


def inherit(listener: Descriptor, client: Descriptor) -> None:
    """Give an accepted client its listener's registration, if that is this process's (CLOSE-41)."""
    found = _by_socket.get(_socket_of(listener)) if is_registered(listener) else None
    if found is not None:
        register(client, found.mask, found.notify)


def cancel(descriptor: Descriptor) -> None:
    """End the registration; the socket stays nonblocking."""
    register(descriptor, 0, lambda: None)


def take(descriptor: Descriptor) -> tuple[int, dict[int, int]]:
    """Return and clear the record: FD_* bits, and the error of each; nothing where another process has it."""
    transfer.require_kernel(descriptor)
    found = _by_socket.get(_socket_of(descriptor))
    if found is None:
        return 0, {}
    with found.lock:
        recorded, found.recorded = found.recorded, 0
        errors, found.errors = found.errors, {}
    return recorded, errors


def reenable(descriptor: Descriptor, bits: int) -> None:
    """Have these events recorded again, if they are registered: here, or in the process that has the registration."""
    owner = options.common(descriptor).events >> _MASK_BITS
    if owner == os.getpid():
        found = _by_socket.get(_socket_of(descriptor))
        if found is not None:
            _enable(found, bits)
    elif owner:
        _ring(owner, _socket_of(descriptor), bits)


def look_again(descriptor: Descriptor) -> None:
    """After a connect or a listen: there is something to wait for now."""
    found = _by_socket.get(_socket_of(descriptor))
    if found is not None:
        _watch(found)


def registration_of(descriptor: Descriptor) -> SocketId | None:
    """Return the socket whose registration was made through this descriptor and is in force; None without one."""
    if not is_registered(descriptor):
        return None
    socket_id = _socket_of(descriptor)
    found = _by_socket.get(socket_id)
    return socket_id if found is not None and found.descriptor is descriptor and found.is_in_force() else None


def note_closed(descriptor: Descriptor, registration: SocketId | None) -> None:
    """After a close: the registration made through it ends, also where another descriptor is open here (EVENT-11)."""
    client = descriptor.client
    if registration is not None and client is not None:
        with suppress(NotASocket, RegistryGone):  # no other descriptor of ours: the registry has ended it
            client.set_common(registration, events=0)


def _enable(registration: _Registration, bits: int) -> None:
    with registration.lock:
        registration.enabled |= bits & registration.mask & ~(FD_CONNECT | FD_CLOSE)  # none re-enables these
    _watch(registration)


def _ring(owner: int, socket_id: SocketId, bits: int) -> None:
    """Tell the owner of a registration that something was re-enabled, or that it has been taken over."""
    with suppress(OSError), closing(_socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as bell:
        bell.settimeout(_RING_TIMEOUT_S)
        bell.sendto(_RING.pack(int(socket_id).to_bytes(16, "little"), bits), _name_of(owner))


def _name_of(pid: int) -> str:
    return f"\0sharedsock-events-{os.getuid()}-{pid}"


def _watch(registration: _Registration) -> None:
    """Have the recorder wait for what is enabled; what is there already is recorded at once (EVENT-8)."""
    global _recorder
    with _lock:
        if _by_socket.get(_socket_of(registration.descriptor)) is not registration:
            return
        if _recorder is None or _recorder.era != numbers.current_era():
            _recorder = _Recorder()
        polls = _recorder.polls
        kernel = registration.kernel
        here = polling.Presence((kernel,), None)
        try:
            here.enter()
            # Race: a close marks, then takes the number out of every set it finds entered; we enter, then look.
            polling.enter(kernel, polls)
            if kernel.aborted is None:
                mask = registration.wanted() if registration.is_in_force() else 0
                if mask and registration.is_watched:
                    polls.change(kernel.number, mask)
                elif mask:
                    polls.add(kernel.number, mask)
                else:
                    polls.remove(kernel.number)
                registration.is_watched = bool(mask)
            if kernel.aborted is not None:
                polls.remove(kernel.number)
                polling.forget(kernel)
        except OSError:  # closed behind our back, or no room in the kernel: nothing can be recorded
            registration.is_watched = False
        finally:
            here.leave()
            here.tell()


def _unwatch(registration: _Registration) -> None:
    if _recorder is not None and registration.kernel.aborted is None:
        _recorder.polls.remove(registration.kernel.number)
        polling.leave(registration.kernel, _recorder.polls)
    registration.is_watched = False


def _look(number: int, ready: int) -> None:
    """Record what the set has reported of a socket, and wait on for what is left."""
    registration = next((one for one in tuple(_by_socket.values()) if one.kernel.number == number), None)
    if registration is None:
        return
    kernel = registration.kernel
    here = polling.Presence((kernel,), None)
    has_news = False
    try:
        here.enter()
        if kernel.aborted is None:
            if not registration.is_in_force():
                with _lock:
                    _unwatch(registration)
                    _by_socket.pop(_socket_of(registration.descriptor), None)
                return
            with registration.lock:
                for event, code in registration.found(ready).items():
                    if registration.enabled & event:
                        registration.enabled &= ~event
                        registration.recorded |= event
                        registration.errors[event] = code
                        has_news = True
    except OSError:
        pass
    finally:
        here.leave()
        here.tell()
    _watch(registration)
    if has_news:
        registration.notify()


def _drop_number(number: int) -> None:
    for socket_id, registration in tuple(_by_socket.items()):
        if registration.kernel.number == number:
            _by_socket.pop(socket_id, None)


def _forget_in_child() -> None:
    """The registrations are the parent's, and so are the recorder's numbers, which the table has closed."""
    global _lock, _recorder
    _lock = threading.RLock()
    if _recorder is not None:
        _recorder.rings.close()
    _recorder = None
    _by_socket.clear()


os.register_at_fork(after_in_child=_forget_in_child)
