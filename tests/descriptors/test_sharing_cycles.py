"""Unix sockets that refer to each other: no reference outlives the tickets (F-28).

A descriptor in flight inside the other end of its own pair is a cycle that only the kernel's collector finds. A ticket
is bytes, and its socket is in custody, where nothing is in flight.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import pytest

import sharedsock as ss
from sharedsock.testing import Actors
from tests.descriptors.sharers import skewed_registry, wait_until

KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)


def inodes_of(*ends: ss.SharedSocket) -> set[str]:
    return {str(os.fstat(end.fileno()).st_ino) for end in ends}


def are_open(inodes: set[str]) -> bool:
    """Whether the kernel still has one of these Unix sockets, whoever refers to it."""
    with open("/proc/net/unix") as file:
        return any(line.split()[6] in inodes for line in file)


@pytest.mark.fault("F-28", "F-18")
@pytest.mark.rule("DUP-13")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_whose_tickets_lie_in_each_other_goes_with_the_target(
    registry: ss.Registry, actors: Actors, kind: int
) -> None:
    """Each end's ticket is queued in the other end: only the target could ever have read them."""
    (target,) = actors.start("target")
    left, right = ss.socketpair(socket.AF_UNIX, kind)
    inodes = inodes_of(left, right)
    left.send(right.share(target.pid))
    right.send(left.share(target.pid))
    left.close()
    right.close()
    assert registry.client.statistics().custody == 2
    assert are_open(inodes), "the tickets are references"
    target.kill()
    wait_until(lambda: not are_open(inodes), "the kernel to have let go")
    wait_until(lambda: registry.client.statistics().custody == 0, "custody to be empty")
    assert registry.client.sockets() == ()


@pytest.mark.fault("F-28", "F-20")
def test_a_pair_whose_tickets_lie_in_each_other_goes_with_their_time() -> None:
    """Tickets for whoever comes first, which nobody can read any more."""
    with skewed_registry() as (handle, clocks):
        left, right = ss.socketpair()
        inodes = inodes_of(left, right)
        left.send(right.share(None))
        right.send(left.share(None))
        left.close()
        right.close()
        clocks.monotonic_s += 50.0
        assert handle.client.statistics().custody == 2
        assert are_open(inodes)
        clocks.monotonic_s += 10.1
        wait_until(lambda: handle.client.statistics().custody == 0, "custody to be empty")
        wait_until(lambda: not are_open(inodes), "the kernel to have let go")


@pytest.mark.fault("F-28")
@pytest.mark.rule("REF-5")
def test_a_pair_shared_both_ways_goes_with_its_last_holder(registry: ss.Registry, actors: Actors) -> None:
    """Both processes hold both ends, each end's ticket having come through the other; then all is dropped."""
    (other,) = actors.start("other")
    left, right = ss.socketpair()
    inodes = inodes_of(left, right)
    left.sendall(right.share(other.pid))
    other.do("take", left.share(other.pid), on="left")
    other.do("take", right.recv(4096), on="right")
    other.sendall(left.share(None), on="left")
    with ss.fromshare(right.recv(4096)) as again:
        assert again.references() == 3
    left.close()
    right.close()
    assert are_open(inodes)
    other.kill()
    wait_until(lambda: not are_open(inodes), "the kernel to have let go")
    wait_until(lambda: registry.client.sockets() == (), "every reference to go")
