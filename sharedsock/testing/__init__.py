"""INSTRUMENTS for tests of programs with many processes: actors, choreography, faults. No pytest in here.

An *actor* is a real process with named threads that do what they are told; *choreography* makes who waits for whom
a fact instead of a delay; *faults* make an actor fail at a named point; *outcomes* are values to compare with.
"""

from sharedsock.testing.actors import Actor
from sharedsock.testing.choreography import Barrier, in_order
from sharedsock.testing.company import Actors
from sharedsock.testing.faults import Fault, Kill, Raise
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
    "Event",
    "Fault",
    "Kill",
    "Outcome",
    "Pending",
    "Raise",
    "Raised",
    "Received",
    "Returned",
    "in_order",
]
