"""The registry SIGKILLed again and again while holders share, redeem, read and close: 200 times in the campaign.

All the while every transfer goes on; whoever needs the registry gets an answer or a named error, within a bound, and
the next call that needs one has started another. When it is left alone, and everybody has made one such call, the
counts are true (I2); when all have closed, nothing is counted, and every peer has seen the end (I3).

Source: DESIGN.md, "registry dies"; spec/fault-catalogue.md, F-74 to F-76, F-85.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

import sharedsock as ss
from sharedsock.registry import connect
from tests.campaigns.conftest import Run
from tests.campaigns.holding import Company, outlive
from tests.descriptors import kinds, sharers

SIZE: Final = 4
PARTS: Final = 5
KILLS: Final = 40  # of each part
SMALL: Final = 3
LONGEST_PAUSE_S: Final = 0.03
ECHO_S: Final = 60.0
CALL_S: Final = 4 * 4.0  # T_rpc to notice, as much to start another, four times under load
SETTLED_S: Final = 60.0
_FORK: Final = multiprocessing.get_context("fork")
_never: Final = select.poll()


class Ring:
    """The holders, the sockets they have, and the far ends."""

    def __init__(self, stack: ExitStack, run: Run) -> None:
        self.company = Company(SIZE)
        stack.callback(self.company.close)
        self.shared = stack.enter_context(kinds.pair_of("tcp4"))
        self.echoes = [stack.enter_context(kinds.pair_of("unix-stream")) for _ in range(SIZE)]
        self.controls: list[Connection] = []
        self.holders: list[Any] = []
        for index, echo in enumerate(self.echoes):
            ours, theirs = _FORK.Pipe()
            stack.callback(ours.close)
            seed = run.dice.randrange(1 << 32)
            arguments = (self.company, index, seed, theirs, self.shared.local, echo.local)
            self.holders.append(_FORK.Process(target=outlive, args=arguments, daemon=True))
            self.holders[-1].start()
            stack.callback(_end, self.holders[-1])
            theirs.close()
            echo.local.close()
            self.controls.append(ours)
        # A ticket dies with its registry: all of them have redeemed theirs before the first kill.
        sharers.wait_until(lambda: all(map(self.company.pid_of, range(SIZE))), "the holders")

    def ask(self, word: str) -> list[Any]:
        """Tell all of them, and hear all of them."""
        for control in self.controls:
            control.send(word)
        answers = []
        for control in self.controls:
            assert control.poll(CALL_S), f"a holder hangs: {self.company.complaint()}"
            try:
                answers.append(control.recv())
            except EOFError:
                raise AssertionError(f"a holder has failed: {self.company.complaint()}") from None
        return answers

    def check_transfers(self, number: int) -> float:
        """Have every holder send something back; return how long the slowest took."""
        began_s = time.monotonic()
        for echo in self.echoes:
            echo.peer.send(b"%08d" % number)
        for echo in self.echoes:
            echo.peer.settimeout(ECHO_S)
            assert echo.peer.recv(8, socket.MSG_WAITALL) == b"%08d" % number, self.company.complaint()
        return time.monotonic() - began_s


def _end(holder: Any) -> None:
    holder.kill()
    holder.join()
    holder.close()


def kill_registry(ours: ss.SharedSocket) -> None:
    """SIGKILL whichever registry serves now, after seeing to it that one does."""
    with suppress(ss.RegistryGone):
        ours.references()
    with suppress(ss.RegistryGone):
        sharers.kill(connect.default_client().pid)


@pytest.mark.fault("F-74", "F-75", "F-76", "F-85", "I2", "I3", "I6")
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(SMALL, id="small"),
        *(pytest.param(None, id=f"part{part}", marks=pytest.mark.campaign) for part in range(PARTS)),
    ],
)
def test_a_registry_killed_under_load(kills: int | None, run: Run) -> None:
    count = kills or run.rounds(KILLS)
    slowest_s = 0.0
    with ExitStack() as stack:
        ring = Ring(stack, run)
        ours = ring.shared.local
        for number in range(count):
            _never.poll(run.dice.random() * LONGEST_PAUSE_S * 1000)
            with suppress(ProcessLookupError):  # it has ended by itself meanwhile
                kill_registry(ours)
            slowest_s = max(slowest_s, ring.check_transfers(number))
        met: Counter[str] = Counter()
        longest_s = 0.0
        ring.ask("stop")
        for errors, call_s, *_ in ring.ask("settle"):
            met.update(errors)
            longest_s = max(longest_s, call_s)
        assert longest_s < CALL_S
        wait_true(ours)
        ring.check_transfers(count)
        ours.close()
        ring.ask("close")
        for pair in (ring.shared, *ring.echoes):
            kinds.wait_event(pair.peer)
        sharers.wait_until(lambda: connect.default_client().sockets() == (), "the count to be empty", SETTLED_S)
        assert ring.company.complaint() is None
    run.note(
        kills=count,
        **dict(sorted(met.items())),
        slowest_echo_ms=round(slowest_s * 1e3),
        longest_call_ms=round(longest_s * 1e3),
    )


def wait_true(ours: ss.SharedSocket) -> None:
    """Wait until the registry counts every descriptor there is, and no ticket."""
    client = connect.default_client()

    def is_true() -> bool:
        now = client.statistics()
        # The shared socket has one in each holder and one here, each holder's echo has one.
        return ours.references() == SIZE + 1 and (now.sockets, now.descriptors) == (SIZE + 1, 2 * SIZE + 1)

    sharers.wait_until(is_true, f"true counts; {os.getpid()} sees {client.sockets()}", SETTLED_S)
