"""INSTRUMENTS for tests of programs with many processes: actors, leases, leak checks, hangs. No pytest in here.

An *actor* is a real process with named threads that do what they are told; *choreography* makes who waits for whom
a fact instead of a delay; *faults* make an actor fail at a named point; *outcomes* are values to compare with.
A *lease* is a listening socket handed over instead of a port number; *leaks* says what code leaves behind, and who made
it; a *run* is all processes of a test session, and its *warden* ends it when it hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sharedsock.testing.actors import Actor
    from sharedsock.testing.choreography import Barrier, in_order
    from sharedsock.testing.company import Actors
    from sharedsock.testing.faults import Fault, Kill, Raise
    from sharedsock.testing.leaks import Checkers, LeakError, no_leaks
    from sharedsock.testing.leases import Lease, TcpLease, UnixLease, activated, lease_tcp, lease_unix
    from sharedsock.testing.outcomes import Aborted, Accepted, ActorRaised, Outcome, Raised, Received, Returned
    from sharedsock.testing.pending import ActorDied, ActorIdle, ActorThread, ActorTimeout, Event, Pending

__all__ = [
    "Aborted",
    "Accepted",
    "Actor",
    "ActorDied",
    "ActorIdle",
    "ActorRaised",
    "ActorThread",
    "ActorTimeout",
    "Actors",
    "Barrier",
    "Checkers",
    "Event",
    "Fault",
    "Kill",
    "LeakError",
    "Lease",
    "Outcome",
    "Pending",
    "Raise",
    "Raised",
    "Received",
    "Returned",
    "TcpLease",
    "UnixLease",
    "activated",
    "in_order",
    "lease_tcp",
    "lease_unix",
    "no_leaks",
]

# Where each name lives. The plug-in imports modules of this room in sessions that use none of it: they must not pay.
_HOMES: Final = {
    "sharedsock.testing.actors": ("Actor",),
    "sharedsock.testing.choreography": (
        "Barrier",
        "in_order",
    ),
    "sharedsock.testing.company": ("Actors",),
    "sharedsock.testing.faults": (
        "Fault",
        "Kill",
        "Raise",
    ),
    "sharedsock.testing.leaks": (
        "Checkers",
        "LeakError",
        "no_leaks",
    ),
    "sharedsock.testing.leases": (
        "Lease",
        "TcpLease",
        "UnixLease",
        "activated",
        "lease_tcp",
        "lease_unix",
    ),
    "sharedsock.testing.outcomes": (
        "Aborted",
        "Accepted",
        "ActorRaised",
        "Outcome",
        "Raised",
        "Received",
        "Returned",
    ),
    "sharedsock.testing.pending": (
        "ActorDied",
        "ActorIdle",
        "ActorThread",
        "ActorTimeout",
        "Event",
        "Pending",
    ),
}
_home_of: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _home_of.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
