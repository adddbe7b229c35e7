"""Bytes of no good origin: the message parser, the handshake and the tickets, by the million.

Two fuzzers over the same targets: one that damages valid messages, everywhere, and atheris, which watches the branches
it reaches, where it is installed (`pip install --group fuzz`). A counterexample becomes a test in tests/registry.

Source: spec/fault-catalogue.md, B.3.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import sharedsock as ss
from tests.campaigns.conftest import Run
from tests.campaigns.mutation import Mutator, corpus
from tests.campaigns.targets import TARGETS

SMALL: Final = 3_000
FULL: Final = {"messages": 1_000_000, "handshake": 500_000, "tickets": 1_000_000}
GUIDED: Final = {"messages": 1_000_000, "handshake": 150_000, "tickets": 500_000}
HANG_S: Final = 0.040  # of processor time: four times what the catalogue allows, and a collection may fall into it
GUIDED_S: Final = 110


def seeds_of(target: str) -> list[bytes]:
    """Return what is damaged: every valid message, or tickets, one of them a real one of a living registry."""
    return [b"SST1" + bytes(52) + path for path in PATHS] if target == "tickets" else corpus()


PATHS: Final = (b"/", b"/tmp", b"/proc/self", b"relative", b"/\xff\xfe", b"/nowhere/at/all", b"/dev/null", b"\0")


def seconds_for(test: Callable[[bytes], object], data: bytes) -> float:
    """Return the processor time of this thread for one input."""
    before_s = time.thread_time()
    test(data)
    return time.thread_time() - before_s


@pytest.mark.fault("F-104", "F-106", "F-107", "F-23")
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("runs", [SMALL, pytest.param(None, marks=pytest.mark.campaign)], ids=["small", "full"])
def test_damaged_bytes_are_refused_or_are_what_they_say(target: str, runs: int | None, run: Run) -> None:
    test = TARGETS[target]
    mutator = Mutator(seeds_of(target), run.dice)
    count = runs or run.rounds(FULL[target])
    worst_s = 0.0
    for seed in seeds_of(target):  # what is imported at first use is no hang
        test(seed)
    for data in itertools.islice(mutator, count):
        took_s = seconds_for(test, data)
        if took_s >= HANG_S:  # what a virtual machine has lost is counted as ours; a hang comes with its bytes
            took_s = min(seconds_for(test, data) for _ in range(3))
        worst_s = max(worst_s, took_s)
    assert worst_s < HANG_S
    run.note(**{target: count, "worst_us": round(worst_s * 1e6)})


@pytest.mark.fault("F-23", "S-09")
@pytest.mark.parametrize("flips", [50, pytest.param(None, marks=pytest.mark.campaign)], ids=["small", "full"])
def test_no_damage_makes_another_ticket_of_a_real_one(flips: int | None, run: Run) -> None:
    """Every single bit, with and without its checksum made right; then the unharmed one is redeemed (F-23)."""
    from tests.campaigns.targets import with_checksum

    ours, peer = ss.socketpair()
    with ours, peer:
        info = ours.share(os.getpid())
        bits = range(len(info) * 8) if flips is None else run.dice.sample(range(len(info) * 8), flips)
        for bit in bits:
            damaged = bytearray(info)
            damaged[bit // 8] ^= 1 << bit % 8
            for one in {bytes(damaged), with_checksum(bytes(damaged))} - {info}:
                with pytest.raises((ss.TicketInvalid, ss.RegistryGone)):
                    ss.fromshare(one)
        run.note(flips=len(bits))
        with ss.fromshare(info) as twin:
            peer.send(b"unharmed")
            assert twin.recv(16) == b"unharmed"


@pytest.mark.campaign
@pytest.mark.fault("F-104")
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_coverage_guided_bytes(target: str, run: Run, tmp_path: Path) -> None:
    """libFuzzer's mutations, steered by the branches of the parser; a crash prints its input."""
    seeds = tmp_path / "corpus"
    seeds.mkdir()
    for number, data in enumerate(seeds_of(target)):
        (seeds / str(number)).write_bytes(data)
    runs = run.rounds(GUIDED[target])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.campaigns.coverage_guided", target, str(seeds)),
            *(f"-runs={runs}", f"-seed={run.seed}", f"-max_total_time={GUIDED_S}", "-timeout=1", "-max_len=4100"),
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    last = done.stderr.rsplit("Done ", 1)[1].split()[0]
    run.note(**{f"guided_{target}": int(last)})
