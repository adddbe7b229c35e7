"""The stories that are told in every order, and one for orders from a seed."""

from __future__ import annotations

from sharedsock.model.identity import DescriptorFacts
from tests.schedules.threads import Choreography
from tests.schedules.world import SOCKET, Handle, World

__all__ = ["LARGE", "LONG", "SMALL", "Stage"]


class Stage:
    """Makes worlds; a broken variant has another world, or another choreography."""

    world: type[World] = World
    choreography: type[Choreography] = Choreography

    def _set(self, names: str, linger_s: int | None = None) -> tuple[World, Choreography]:
        world = self.world(names, linger_s)
        return world, self.choreography(world)

    def _shared(self, names: str, linger_s: int | None = 0) -> tuple[World, Choreography, list[Handle]]:
        """Each of some processes has a descriptor that the registry counts."""
        world, threads = self._set(names, linger_s)
        handles = []
        for name in names:
            process = world.processes[name]
            handle = world.open(process)
            world.ledger.announce(process.holder, SOCKET, DescriptorFacts(handle.identity, "", 0.0))
            handle.is_shared = handle.is_counted = True
            handles.append(handle)
        if linger_s is not None:
            world.ledger.set_common(process.holder, SOCKET.socket, {"linger_s": linger_s})
        world.ledger.take_effects()
        return world, threads, handles

    def two_closers(self) -> World:
        """Both are the last to begin, and exactly one is the last."""
        world, threads, (a, b) = self._shared("AB")
        one, two = world.processes.values()
        world.start("A", one, threads.closes(one, a))
        world.start("B", two, threads.closes(two, b))
        return world

    def a_closer_is_killed(self) -> World:
        """At any step of its close; the other closes too."""
        world = self.two_closers()
        world.start("kill", None, self.choreography(world).kills(world.processes["A"]))
        return world

    def a_close_ends_a_receive(self) -> World:
        """In A a thread receives and another closes; B keeps the socket; the peer sends one record."""
        world, threads, (a, _) = self._shared("AB", None)
        one = world.processes["A"]
        world.start("reader", one, threads.receives(one, a, "A"))
        world.start("closer", one, threads.closes(one, a))
        world.start("peer", None, threads.sends(1))
        return world

    def a_receive_that_is_served(self) -> World:
        """Two processes receive, and nobody closes: the peer sends each of them a record."""
        world, threads, handles = self._shared("AB", None)
        for process, handle in zip(world.processes.values(), handles, strict=True):
            world.start(process.name, process, threads.receives(process, handle, process.name))
        world.start("peer", None, threads.sends(2))
        return world

    def a_number_is_reused(self) -> World:
        """A third thread opens a file, and may get the number that the close frees."""
        world, threads = self._set("A")
        process = world.processes["A"]
        handle = world.open(process)
        world.start("reader", process, threads.receives(process, handle, "A"))
        world.start("closer", process, threads.closes(process, handle))
        world.start("other", process, threads.opens_another(process))
        return world

    def a_sharer_closes_at_once(self) -> World:
        """A shares with B and closes; B redeems (DUP-12)."""
        world, threads = self._set("AB", 0)
        one, two = world.processes.values()
        handle = world.open(one)
        both = threads.one_after_the_other(threads.shares(one, handle, "t", two, None), threads.closes(one, handle))
        world.start("A", one, both)
        world.start("B", two, threads.redeems(two, "t"))
        return world

    def the_target_is_killed(self) -> World:
        """At any step of its receipt: the ticket is void, or its descriptor goes with it."""
        world = self.a_sharer_closes_at_once()
        world.start("kill", None, self.choreography(world).kills(world.processes["B"]))
        return world

    def the_sharer_is_killed(self) -> World:
        """At any step: a ticket that is issued stays good, one that is not leaves nothing."""
        world = self.a_sharer_closes_at_once()
        # B waits for a ticket that may never come: it is told so.
        threads = self.choreography(world)
        world.start("kill", None, threads.kills(world.processes["A"]))
        world.is_told_of_death["t"] = world.processes["A"]
        return world

    def two_claim_one_ticket(self) -> World:
        """A claim-once ticket, two that redeem it, and one that takes it back."""
        world, threads, (handle, _) = self._shared("AB", None)
        one, two = world.processes.values()
        world.start("A", one, threads.shares(one, handle, "t", None, None))
        world.start("B", two, threads.redeems(two, "t"))
        world.start("A2", one, threads.redeems(one, "t"))
        world.start("revoke", one, threads.revokes(one, "t"))
        return world

    def a_ticket_expires(self) -> World:
        world, threads, (handle,) = self._shared("A", 0)
        process = world.processes["A"]
        world.start(
            "A",
            process,
            threads.one_after_the_other(
                threads.shares(process, handle, "t", None, 5.0), threads.closes(process, handle)
            ),
        )
        world.start("redeem", process, threads.redeems(process, "t"))
        world.start("clock", None, threads.waits(10.0))
        return world

    def the_registry_is_killed(self) -> World:
        """While two close; a new one takes its place, and knows for whom to wait."""
        world = self.two_closers()
        world.start("registry", None, self.choreography(world).kills_the_registry())
        return world

    def many_closers_and_a_new_registry(self) -> World:
        """Four close, one is killed, and so is the registry; after a while it waits for nobody any more."""
        world, threads, handles = self._shared("ABCD")
        for process, handle in zip(world.processes.values(), handles, strict=True):
            world.start(process.name, process, threads.closes(process, handle))
        world.start("kill", None, threads.kills(world.processes["B"]))
        world.start("registry", None, threads.kills_the_registry())
        world.start("clock", None, threads.waits(1.0))
        return world

    def many(self) -> World:
        """Three processes receive, share, redeem and close; one is killed, and the registry, and time passes."""
        world, threads, handles = self._shared("ABC", 0)
        processes = list(world.processes.values())
        for process, handle in zip(processes, handles, strict=True):
            n = process.name
            nxt = processes[(processes.index(process) + 1) % 3]
            world.start(f"{n}reader", process, threads.receives(process, handle, n))
            world.start(
                f"{n}closer",
                process,
                threads.one_after_the_other(
                    threads.shares(process, handle, f"t{n}", nxt, None), threads.closes(process, handle)
                ),
            )
            world.start(f"{n}redeems", nxt, threads.redeems(nxt, f"t{n}"))
            world.is_told_of_death[f"t{n}"] = process
        world.start("peer", None, threads.sends(4))
        world.start("kill", None, threads.kills(processes[2]))
        world.start("clock", None, threads.waits(3.0))
        return world


SMALL = (
    "two_closers",
    "a_closer_is_killed",
    "a_close_ends_a_receive",
    "a_number_is_reused",
    "a_sharer_closes_at_once",
    "the_target_is_killed",
    "the_sharer_is_killed",
    "two_claim_one_ticket",
)
LONG = ("a_ticket_expires",)
LARGE = ("the_registry_is_killed", "many", "many_closers_and_a_new_registry")
