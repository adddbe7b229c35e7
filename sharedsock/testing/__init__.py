"""INSTRUMENTS for tests of programs with many processes: actors, leases, leak checks, hangs. No pytest in here.

An *actor* is a real process with named threads that do what they are told; *choreography* makes who waits for whom
a fact instead of a delay; *faults* make an actor fail at a named point; *outcomes* are values to compare with.
A *lease* is a listening socket handed over instead of a port number; *leaks* says what code leaves behind, and who made
it; a *run* is all processes of a test session, and its *warden* ends it when it hangs.
"""

from sharedsock.testing.actors import Actor
from sharedsock.testing.choreography import Barrier, in_order
from sharedsock.testing.company import Actors
from sharedsock.testing.faults import Fault, Kill, Raise
from sharedsock.testing.leaks import Checkers, LeakError, no_leaks
from sharedsock.testing.leases import Lease, TcpLease, UnixLease, activated, lease_tcp, lease_unix
from sharedsock.testing.outcomes import Aborted, Accepted, ActorRaised, Outcome, Raised, Received, Returned
from sharedsock.testing.pending import ActorDied, ActorThread, ActorTimeout, Event, Pending

__all__ = [
    "Aborted",
    "Accepted",
    "Actor",
    "ActorDied",
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
