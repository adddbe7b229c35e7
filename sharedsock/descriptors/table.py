"""This process's descriptor table: who is open here, and what a fork does to all of them.

A forked child owns nothing (rule 11): before anything else runs there, every inherited number is closed and every
descriptor of the parent answers `ForkedDescriptor`. Around the fork the locks that guard openings and the registry
channels are held, so that the child finds no half-made thing. A fork that ran no hooks is noticed by the page the
kernel wipes (`kernel.numbers`), and treated the same way at the first call.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sharedsock.descriptors import lending, options
from sharedsock.descriptors.providing import spelled
from sharedsock.kernel import numbers, operations, sockets
from sharedsock.model import trace
from sharedsock.model.errors import NotASocket, RegistryGone
from sharedsock.model.identity import Holder, Statistics

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.model.identity import DescriptorId
    from sharedsock.registry.client import Client

__all__ = [
    "abandon",
    "announce_again",
    "begin_leaving",
    "end_leaving",
    "enter",
    "find",
    "flush_abandoned",
    "leave",
    "note_fork",
    "open_descriptors",
    "own_holder",
    "post_abandoned",
    "statistics",
]

# Weak: a descriptor that an interrupted call has made and nobody got must go. A WeakValueDictionary would take that out
# at once, and cost five times as much for each opening and closing; here it stays as an empty reference for a while.
_open: dict[DescriptorId, weakref.ref[Descriptor]] = {}
_REGISTRIES: Final = "sharedsock.registry.connect"
# The channels to registries whose locks the fork on its way has taken, if there are any.
_forking: list[Any] = []

_leaving: dict[DescriptorId, Descriptor] = {}
# References of descriptors that were collected without close: the collector makes no registry call (F-114). The service
# gives them back soon, and the next call that talks to a registry does so first.
_abandoned: deque[tuple[Client, DescriptorId]] = deque()


def enter(descriptor: Descriptor) -> Descriptor:
    """Enter an opened descriptor; return it."""
    _open[descriptor.id] = weakref.ref(descriptor)
    return descriptor


def find(descriptor: DescriptorId) -> Descriptor | None:
    """Return an open descriptor of this process by its number."""
    found = _find(descriptor)
    return None if found is None or found.is_closed else found


def _find(descriptor: DescriptorId) -> Descriptor | None:
    reference = _open.get(descriptor)
    return None if reference is None else reference()


def _all() -> list[Descriptor]:
    found = []
    for identity, reference in tuple(_open.items()):
        descriptor = reference()
        if descriptor is None:
            _open.pop(identity, None)
        else:
            found.append(descriptor)
    return found


def leave(descriptor: Descriptor) -> None:
    """Take a closed descriptor out."""
    _open.pop(descriptor.id, None)


def open_descriptors() -> list[Descriptor]:
    """Return the descriptors open in this process now."""
    return [descriptor for descriptor in _all() if not descriptor.is_closed]


def abandon(client: Client, descriptor: DescriptorId) -> None:
    """Leave a reference to be given back by the next registry call, or the service; safe while the collector runs."""
    _abandoned.append((client, descriptor))


def flush_abandoned() -> None:
    """Give back the references of descriptors that were collected without close, or whose counting was cut short.

    A registry that has died counts nothing. One that hangs is asked once, not once for each of them: the rest waits.
    """
    while _abandoned:
        try:
            client, descriptor = _abandoned.popleft()
        except IndexError:  # another thread was faster
            return
        found = _find(descriptor)
        if found is not None and found.client is client:
            continue  # its next share() has counted it after all
        try:
            client.begin_close(descriptor)
            client.end_close(descriptor)
        except NotASocket:
            continue
        except RegistryGone:
            if client.is_alive:
                _abandoned.appendleft((client, descriptor))
                return


def post_abandoned() -> None:
    """Give back the references of collected descriptors without waiting for anybody: the service's part.

    What cannot be sent now is left to the next call. So is what this process may announce yet: a `share()` that was cut
    short can be tried again in another thread, and then counts.
    """
    # Race: this against a call that flushes. An entry stays until it has been sent: who finds none left is behind it.
    # One that both give back is given back once: a number is never announced again, so the later one is refused.
    for client, descriptor in _abandoned.copy():
        with suppress(OSError, ValueError):  # no room for a channel; the other was faster
            if _find(descriptor) is None and client.post_close(descriptor, renews=False):
                _abandoned.remove((client, descriptor))


def announce_again(client: Client) -> None:
    """Announce this process's shared descriptors to a registry that has taken the place of a dead one.

    Those whose close has not been answered yet are among them: the new registry answers it. What the sharers agreed on
    travels along, as the dead registry's page still shows it and with what this process could not tell it any more.
    What this process has lent is told with them: through a descriptor that has been closed, by opening it once more.
    """
    known: set[DescriptorId] = set()
    for descriptor in (*open_descriptors(), *_leaving.values()):
        if descriptor.client is client:
            _recover(client, descriptor)
            known.add(descriptor.id)
    for loan in lending.loans_of(client):
        descriptor = loan.descriptor
        if descriptor.id in known:
            lending.lend_again(client, loan)
            continue
        try:
            _recover(client, descriptor)
            lending.lend_again(client, loan)
        finally:
            if not client.post_close(descriptor.id):
                abandon(client, descriptor.id)


def _recover(client: Client, descriptor: Descriptor) -> None:
    state = options.last_known(descriptor)
    descriptor.slot = client.recover(descriptor.socket_facts(), descriptor.facts(), state, spelled(descriptor.chain))


def begin_leaving(descriptor: Descriptor) -> None:
    """A descriptor closes, and its registry is still to be asked: count it with the open ones until it has answered."""
    _leaving[descriptor.id] = descriptor


def end_leaving(descriptor: Descriptor) -> None:
    """Its registry has answered, or can not. Doubled: no effect."""
    _leaving.pop(descriptor.id, None)


def statistics() -> Statistics:
    """Count what this process has: open descriptors, shared ones, pending operations, numbers on their way out."""
    from sharedsock.descriptors import service  # it needs this module first: its fork hooks come before ours

    descriptors = open_descriptors()
    return Statistics(
        descriptors=len(descriptors),
        shared=sum(descriptor.client is not None for descriptor in descriptors),
        pending=sum(
            len(operations.pending(descriptor.kernel)) + len(service.pending(descriptor.kernel))
            for descriptor in descriptors
        ),
        retiring=sockets.retiring(),
    )


def _own_name() -> str:
    """Return this process's name as the registry sees it."""
    try:
        with open("/proc/self/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:  # no /proc
        return os.path.basename(sys.argv[0])


def own_holder(descriptor: Descriptor) -> Holder:
    """Return the one holder of a socket that was never shared: this process."""
    return Holder(os.getpid(), _own_name(), descriptor.id, "descriptor", descriptor.opened_at, descriptor.opened_s)


def note_fork() -> None:
    """Drop what a fork without hooks has left behind, if this is such a child; cheap where it is not."""
    if numbers.is_forked():
        _after_in_child()


def _channels() -> Any:
    """Return the module of the channels to registries, None while nobody has imported it: then there is no channel.

    It takes a good part of the time of a first socket, which may never be shared.
    """
    module = sys.modules.get(_REGISTRIES)
    return module if hasattr(module, "after_fork_in_child") else None  # not while another thread imports it


def _before() -> None:
    try:
        if trace.hook is not None:
            trace.hit("fork.before")
    finally:  # a fork goes on, whatever its hooks raise
        channels = _channels()
        if channels is not None:
            channels.fork_lock_acquire()
        numbers.gate.acquire()
        _forking.append(channels)


def _after_in_parent() -> None:
    channels = _forking.pop()
    numbers.gate.release()
    if channels is not None:
        channels.fork_lock_release()
    if trace.hook is not None:
        trace.hit("fork.parent")


def _after_in_child() -> None:
    numbers.drop_inherited()
    sockets.forget_retiring()
    _forking.clear()
    channels = _channels()
    if channels is not None:
        channels.after_fork_in_child()
    _abandoned.clear()
    _leaving.clear()
    lending.forget_all()
    for descriptor in _all():
        descriptor.swap_for_forked()
    _open.clear()
    if trace.hook is not None:
        trace.hit("fork.child")


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
