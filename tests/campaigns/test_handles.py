"""Random histories of sockets that three processes share, against a model that knows every reference and every byte.

The model is a few lines: who has which descriptor, which tickets are out, which bytes are on their way. After each step
the registry's count is the model's (I2), each peer sees the end if, and only if, the last reference is gone (I3), and
no call that waits in one process has been ended by another (I4); each received byte is the next one sent (I1); a ticket
yields one descriptor, where it was made for (I8).

Source: "Shared Sockets in the SPI", "Closing Sockets"; spec/fault-catalogue.md, B.3, "handle API".
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from hypothesis.strategies import randoms

import sharedsock as ss
from sharedsock.testing import Aborted, Actor, ActorRaised, Actors, Pending, Received
from tests.campaigns.conftest import Run
from tests.descriptors import kinds, sharers

SEQUENCES: Final = 200
PARTS: Final = 4
SMALL: Final = 12
STEPS: Final = 40
COMPANY: Final = 3
KINDS: Final = ("tcp4", "unix-stream")
WSAEINVAL: Final = 10022
_names: Final = itertools.count(1)


def _new_name() -> str:
    """Return a name for a descriptor; they sort as they were made, so that a choice is the same when it is replayed."""
    return f"s{next(_names):08}"


@dataclass(eq=False)
class Out:
    """A ticket that is out."""

    info: bytes
    issuer: Actor
    target: Actor


@dataclass(eq=False)
class Known:
    """One socket, as the model knows it."""

    pair: AbstractContextManager[kinds.Pair]
    peer: socket.socket
    descriptors: set[tuple[Actor, str]] = field(default_factory=set)
    tickets: list[Out] = field(default_factory=list)
    on_the_way: bytes = b""
    waiting: tuple[Actor, str, Pending] | None = None
    is_over: bool = False

    @property
    def count(self) -> int:
        return len(self.descriptors) + len(self.tickets)


class History:
    """One random sequence: a rule does something for real and to the model; `check` compares."""

    def __init__(self, actors: Actors, dice: random.Random) -> None:
        self._actors = actors
        self._dice = dice
        self._known: list[Known] = []
        self._used: list[Out] = []
        self.patience_s = 60.0

    def _company(self) -> list[Actor]:
        alive = [actor for actor in self._actors if actor.is_alive]
        missing = COMPANY - len(alive)
        return [*alive, *self._actors.start(*(f"actor-{next(_names)}" for _ in range(missing)))] if missing else alive

    def _some_descriptor(self) -> tuple[Known, Actor, str] | None:
        found = [(known, *one) for known in self._known for one in sorted(known.descriptors, key=lambda row: row[1])]
        return self._dice.choice(found) if found else None

    # -- the rules ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open a socket, and give it to one actor."""
        if len([known for known in self._known if not known.is_over]) >= 3:
            return
        actor, name = self._dice.choice(self._company()), _new_name()
        pair = kinds.pair_of(self._dice.choice(KINDS))
        made = pair.__enter__()
        actor.do("take", made.local.share(actor.pid), on=name)
        made.local.close()
        self._known.append(Known(pair, made.peer, {(actor, name)}))

    def share(self) -> None:
        """Issue a ticket for some actor, its own issuer perhaps."""
        found = self._some_descriptor()
        if found is not None:
            known, actor, name = found
            target = self._dice.choice(self._company())
            known.tickets.append(Out(actor.do("share", target.pid, on=name), actor, target))

    def redeem(self) -> None:
        """Redeem a ticket where it was made for; first, now and then, where it was not."""
        known, out = self._some_ticket()
        if known is None or out is None:
            return
        if self._dice.random() < 0.3:
            for other in self._company():
                if other is not out.target:
                    self._refused(other, out)
        name = _new_name()
        out.target.do("take", out.info, on=name)
        known.tickets.remove(out)
        known.descriptors.add((out.target, name))
        self._used.append(out)

    def redeem_again(self) -> None:
        """A ticket that was used, revoked, or whose issuer or target is dead, is none."""
        if self._used:
            out = self._dice.choice(self._used)
            self._refused(self._dice.choice(self._company()), out)

    def revoke(self) -> None:
        """Take a ticket back, where it was issued."""
        known, out = self._some_ticket()
        if known is not None and out is not None and out.issuer.is_alive:
            assert out.issuer.call(ss.revoke, out.info)
            known.tickets.remove(out)
            self._used.append(out)

    def close(self) -> None:
        """Close a descriptor; a second time, which does nothing."""
        found = self._some_descriptor()
        if found is None:
            return
        known, actor, name = found
        actor.close(on=name)
        actor.close(on=name)
        known.descriptors.discard((actor, name))
        self._after_the_close_of(known, actor, name)

    def kill(self) -> None:
        """SIGKILL an actor."""
        if self._dice.random() < 0.6:
            return
        actor = self._dice.choice(self._company())
        actor.kill()
        for known in self._known:
            known.descriptors = {row for row in known.descriptors if row[0] is not actor}
            self._used += [out for out in known.tickets if out.target is actor]
            known.tickets = [out for out in known.tickets if out.target is not actor]
            if known.waiting is not None and known.waiting[0] is actor:
                known.waiting = None

    def send(self) -> None:
        """The peer sends; a call that waits gets it."""
        known = self._some_open()
        if known is None:
            return
        data = b"<%d>" % next(_names)
        known.peer.sendall(data)
        known.on_the_way += data
        if known.waiting is not None:
            _, _, pending = known.waiting
            known.waiting = None
            self._received(known, pending.outcome())

    def receive(self) -> None:
        """Some holder receives what there is."""
        found = self._some_descriptor()
        if found is not None and found[0].on_the_way:
            known, actor, name = found
            self._received(known, Received(actor.recv(self._dice.randrange(1, 16), on=name)))

    def answer(self) -> None:
        """Some holder sends to the peer."""
        found = self._some_descriptor()
        if found is not None:
            known, actor, name = found
            data = b"[%d]" % next(_names)
            actor.sendall(data, on=name)
            known.peer.settimeout(kinds.PEER_TIMEOUT_S)
            assert known.peer.recv(len(data), socket.MSG_WAITALL) == data

    def wait(self) -> None:
        """Some holder receives, and has to wait."""
        found = self._some_descriptor()
        if found is not None and not found[0].on_the_way and found[0].waiting is None:
            known, actor, name = found
            thread = f"reader-{next(_names)}"
            pending = actor.thread(thread).recv(64, on=name)
            actor.wait_until_blocked(thread)
            known.waiting = actor, name, pending

    # -- the model's own reckoning ------------------------------------------------------------------------------------

    def _some_ticket(self) -> tuple[Known | None, Out | None]:
        found = [(known, out) for known in self._known for out in known.tickets]
        return self._dice.choice(found) if found else (None, None)

    def _some_open(self) -> Known | None:
        found = [known for known in self._known if known.count]
        return self._dice.choice(found) if found else None

    def _refused(self, actor: Actor, out: Out) -> None:
        with pytest.raises(ActorRaised) as refused:
            actor.do("take", out.info, on=_new_name())
        assert refused.value.outcome.winerror == WSAEINVAL

    def _received(self, known: Known, outcome: object) -> None:
        assert isinstance(outcome, Received), outcome
        assert outcome.data, "no end before the last reference is gone"
        assert known.on_the_way.startswith(outcome.data), "I1"
        known.on_the_way = known.on_the_way[len(outcome.data) :]

    def _after_the_close_of(self, known: Known, actor: Actor, name: str) -> None:
        if known.waiting is not None and known.waiting[:2] == (actor, name):
            assert known.waiting[2].outcome() == Aborted(10004)
            known.waiting = None

    def carry_out(self, name: str, dice: random.Random) -> None:
        """Carry out one rule, and compare."""
        self._dice = dice
        getattr(self, name)()
        self.check()

    def check(self) -> None:
        """Compare the world with the model; deaths are counted within T_reap, so the count is waited for."""
        for known in self._known:
            if known.is_over:
                continue
            if not known.count:
                kinds.wait_event(known.peer, timeout_s=self.patience_s)
                known.pair.__exit__(None, None, None)
                known.is_over = True
                continue
            assert kinds.is_quiet(known.peer), "I3: the end has come before the last reference's"
            if known.waiting is not None:
                assert not known.waiting[2].is_done(), "I4"
            for actor, name in itertools.islice(known.descriptors, 1):
                is_counted = partial(self._is_counted, known, actor, name)
                sharers.wait_until(is_counted, f"I2: {known.count} references", self.patience_s)

    def _is_counted(self, known: Known, actor: Actor, name: str) -> bool:
        return bool(actor.do("references", on=name) == known.count)

    def end(self) -> None:
        """Close everything that is open, and compare once more."""
        for known in self._known:
            for actor, name in list(known.descriptors):
                actor.close(on=name)
                known.descriptors.discard((actor, name))
                self._after_the_close_of(known, actor, name)
            for out in list(known.tickets):
                name = _new_name()
                out.target.do("take", out.info, on=name)
                out.target.close(on=name)
                known.tickets.remove(out)
        self.check()

    def abandon(self) -> None:
        """Leave nothing behind, whatever is true."""
        for actor in self._actors:
            if actor.is_alive:
                actor.kill()
        for known in self._known:
            if not known.is_over:
                known.pair.__exit__(None, None, None)


RULES: Final = (
    "open",
    "share",
    "redeem",
    "redeem_again",
    "revoke",
    "close",
    "kill",
    "send",
    "receive",
    "answer",
    "wait",
)


@pytest.fixture
def actors() -> Iterator[Actors]:
    with Actors("fork") as company:
        yield company


class Histories(RuleBasedStateMachine):
    """Every rule of a history, chosen by hypothesis, which makes a failing history as short as it can.

    Attributes:
        actors: the company of the test; set in a class of its own.
    """

    actors: Actors

    def __init__(self) -> None:
        super().__init__()
        self._history = History(self.actors, random.Random(0))
        self._has_failed = False

    def _do(self, name: str, dice: random.Random) -> None:
        try:
            self._history.carry_out(name, dice)
        except BaseException:
            self._has_failed = True
            raise

    @initialize(dice=randoms(use_true_random=False))
    def first(self, dice: random.Random) -> None:
        """Without a socket most rules do nothing."""
        self._do("open", dice)

    def teardown(self) -> None:
        """Close everything, and compare once more; behind a failure only clean up for the next try."""
        if self._has_failed:
            self._history.abandon()
        else:
            self._history.end()


def _rule_named(name: str) -> Any:
    def carry_out(self: Histories, dice: random.Random) -> None:
        self._do(name, dice)

    carry_out.__name__ = name  # as it is told of a history that fails
    return rule(dice=randoms(use_true_random=False))(carry_out)


for _name in RULES:
    setattr(Histories, _name, _rule_named(_name))


def play_histories(actors: Actors, count: int, seeded: int | None = None) -> int:
    """Play so many histories of STEPS steps at most; return how many there were, those cut short by a choice as well.

    Args:
        seeded: what the choices follow from; None: always the same.
    """
    played: list[None] = []

    class Company(Histories):
        def __init__(self) -> None:
            played.append(None)
            super().__init__()

    Company.actors = actors
    chosen = settings(
        max_examples=count,
        stateful_step_count=STEPS,
        derandomize=seeded is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Company if seeded is None else seed(seeded)(Company), settings=chosen)
    return len(played)


@pytest.mark.rule("DUP-3", "DUP-5", "DUP-12", "DUP-13", "REF-1", "REF-5", "EXIT-1")
@pytest.mark.fault("I1", "I2", "I3", "I4", "I8")
@pytest.mark.parametrize(
    "sequences",
    [
        pytest.param(SMALL, id="small"),
        *(pytest.param(None, id=f"part{part}", marks=pytest.mark.campaign) for part in range(PARTS)),
    ],
)
def test_random_histories(sequences: int | None, actors: Actors, run: Run) -> None:
    if sequences is not None:
        play_histories(actors, sequences)
    else:
        run.note(sequences=play_histories(actors, run.rounds(SEQUENCES // PARTS), run.dice.getrandbits(64)))


@pytest.mark.campaign
def test_a_failing_history_is_made_short(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket that the model forgets is found, and told with the two steps it takes."""
    real = History.share

    def forgetful(history: History) -> None:
        real(history)
        for known in history._known:
            known.tickets.clear()

    monkeypatch.setattr(History, "share", forgetful)
    monkeypatch.setattr(History, "kill", lambda history: None)  # a death is counted a moment later
    monkeypatch.setattr(sharers, "wait_until", _expect_now)
    with pytest.raises(AssertionError, match="I2") as caught:
        play_histories(actors, 20)
    steps = [note for note in caught.value.__notes__ if note.startswith("state.") and "(" in note]
    assert [step.partition("(")[0] for step in steps if "teardown" not in step] == ["state.first", "state.share"]


def _expect_now(condition: Any, what: str, bound_s: float = 0.0) -> None:
    assert condition(), what


def test_the_model_notices(actors: Actors) -> None:
    """A reference that the model does not know of, and one that is not there, are told from the truth."""
    history = History(actors, random.Random(1))
    history.open()
    history.patience_s = 0.05
    known: Any = history._known[0]
    ((actor, name),) = known.descriptors
    known.tickets.append(Out(b"never issued", actor, actor))
    with pytest.raises(AssertionError, match="I2"):
        history.check()
    known.tickets.clear()
    known.descriptors.discard((actor, name))
    with pytest.raises(AssertionError, match="nothing came"):
        history.check()
    history.patience_s = 60.0
    actor.close(on=name)
    history.check()
