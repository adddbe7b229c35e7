"""The story holds on real processes, for every option; and a player that misbehaves breaks the promise it should."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from sharedsock.simulator.checks import wait_reports
from sharedsock.simulator.closing_sockets import RECORDS
from sharedsock.simulator.invariants import T_ABORT, bound_under
from sharedsock.simulator.player import record
from sharedsock.simulator.runner import SCENARIOS, Intervention, play
from sharedsock.simulator.scenario import Finding, Options, Promise, Report, Standing, Verdict
from sharedsock.simulator.stage import PEER, Stage, StageError
from sharedsock.simulator.timeline import Mark
from sharedsock.simulator.transports import Transport
from sharedsock.testing.commands import Belongings
from sharedsock.testing.observation import ThreadFacts, thread_facts

STORY = SCENARIOS["closing-sockets"]


def standings(report: Report) -> dict[str, str]:
    return {verdict.promise.name: verdict.standing.value for verdict in report.verdicts}


def reasons(report: Report) -> str:
    return "; ".join(f"{verdict.promise.name}: {verdict.reason}" for verdict in report.broken)


@pytest.mark.rule("CLOSE-2", "CLOSE-20", "CLOSE-28", "CLOSE-31", "CLOSE-42", "CLOSE-43", "DUP-2", "DUP-14", "DUP-15")
@pytest.mark.rule("EXIT-1", "LINGER-2", "LINGER-13", "REF-1", "REF-2", "REF-4")
@pytest.mark.fault("F-38", "F-64", "F-88")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_promise_holds_under_every_start_method(method: str) -> None:
    report = play(STORY, Options(start_method=method))
    assert set(standings(report).values()) == {"ok"}, reasons(report)
    assert report.holds


@pytest.mark.rule("LINGER-3", "LINGER-13", "DUP-16", "LINGER-12")
@pytest.mark.fault("F-62", "F-66")
@pytest.mark.parametrize("processes", [2, 4])
def test_with_linger_0_the_last_close_resets_and_no_other_does(processes: int) -> None:
    report = play(STORY, Options(processes=processes, threads=1, linger="0"))
    assert report.holds, reasons(report)
    last = next(verdict for verdict in report.verdicts if verdict.promise.name == "last-close")
    observed = {finding.what: finding.observed for finding in last.findings}
    assert observed["the peer sees"] == "reset"
    assert observed["queued data is discarded"].endswith("then 10054")


def test_two_processes_have_none_to_spare_for_a_kill_and_each_promise_is_told_before_and_after() -> None:
    told: list[tuple[str, Standing | None]] = []

    def tell(promise: Promise, verdict: Verdict | None) -> None:
        told.append((promise.name, None if verdict is None else verdict.standing))

    report = play(STORY, Options(processes=2, threads=2), progress=tell)
    assert told == [(one.promise.name, standing) for one in report.verdicts for standing in (None, one.standing)]
    assert standings(report)["kill"] == "n/a"
    assert report.holds, reasons(report)
    kill = next(verdict for verdict in report.verdicts if verdict.promise.name == "kill")
    assert not kill.findings, "a promise without meaning has observed nothing"
    assert "none can be spared" in kill.reason


@pytest.mark.rule("REF-5", "LINGER-13")
def test_with_more_processes_every_close_but_the_last_leaves_the_rest_undisturbed() -> None:
    report = play(STORY, Options(processes=5, threads=1))
    assert report.holds, reasons(report)
    last = next(verdict for verdict in report.verdicts if verdict.promise.name == "last-close")
    assert [finding.what for finding in last.findings if "throughout" in finding.what] == [
        "blocked in D, E throughout",
        "blocked in E throughout",
    ]


def findings(report: Report, name: str = "last-close") -> dict[str, Finding]:
    verdict = next(verdict for verdict in report.verdicts if verdict.promise.name == name)
    return {finding.what: finding for finding in verdict.findings}


@pytest.mark.rule("LINGER-6", "LINGER-7", "LINGER-8", "LINGER-12")
def test_with_linger_t_the_last_close_waits_for_a_reader_and_resets_a_peer_that_is_none() -> None:
    report = play(STORY, Options(threads=1, linger="1"))
    assert report.holds, reasons(report)
    found = findings(report)
    waited = found["it returns once the peer has read"]
    assert found["the last close, with the peer not reading"].observed == "waits"
    assert waited.measured_s is not None
    assert waited.measured_s < 1.0, "it returns when all is acknowledged, not after the full time"
    assert found["then"].observed == "FIN"
    hard = found["the close of the unread stream returns"]
    assert hard.measured_s is not None
    assert hard.measured_s >= 1.0
    assert hard.bound_s is not None
    assert hard.bound_s <= 1.0 + bound_under(4, T_ABORT), "it is for what comes beyond t, under load too"
    assert found["the peer sees"].observed == "reset"
    lanes = {(lane.process, lane.thread): [moment.mark for moment in lane.moments] for lane in report.timeline.lanes}
    assert lanes["C", "main"].count(Mark.LINGERS) >= 2, "and on a loaded machine whatever else takes a close 2 ms"
    assert lanes["peer", "main"] == [Mark.FIN, Mark.RESET]


@pytest.mark.rule("EXIT-1", "REF-2")
@pytest.mark.parametrize(("linger", "end"), [("off", "FIN"), ("0", "reset"), ("1", "FIN")])
def test_a_kill_in_the_place_of_the_last_close_is_the_kernels_rule(linger: str, end: str) -> None:
    """The kernel sends on in the background, or resets where LINGER(0) stands on its socket; it never waits."""
    report = play(STORY, Options(threads=1, linger=linger, kill="C"))
    assert report.holds, reasons(report)
    assert standings(report)["kill"] == "n/a"
    found = findings(report)
    assert found["references after SIGKILL of C"].observed == "none"
    assert ("then" in found, "the peer sees" in found) == (end == "FIN", end == "reset")
    assert ("C is killed; the kernel sends on" in found) is (end == "FIN")
    lanes = {(lane.process, lane.thread): [moment.mark for moment in lane.moments] for lane in report.timeline.lanes}
    assert lanes["C", "main"] == [Mark.KILLED]
    assert lanes["peer", "main"] == [Mark.FIN if end == "FIN" else Mark.RESET]


@pytest.mark.rule("REF-5")
def test_the_close_order_is_who_closes_when() -> None:
    report = play(STORY, Options(threads=1, close_order=("C", "B", "A"), kill="none"))
    assert report.holds, reasons(report)
    closed = {
        lane.process: next(moment.at_s for moment in lane.moments if moment.mark in (Mark.CLOSED, Mark.LAST_CLOSE))
        for lane in report.timeline.lanes
        if lane.thread == "main" and lane.process != PEER
    }
    assert sorted(closed, key=closed.__getitem__) == ["C", "B", "A"]
    assert not [one for lane in report.timeline.lanes for one in lane.moments if one.mark is Mark.KILLED]


@pytest.mark.rule("REF-3")
@pytest.mark.fault("F-72")
def test_the_path_of_a_unix_listener_goes_with_its_last_close_and_the_directory_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    closed = play(STORY, Options(processes=2, threads=1, transport="unix"))
    killed = play(STORY, Options(processes=2, threads=1, transport="unix", kill="B"))
    assert (closed.holds, killed.holds) == (True, True), reasons(closed) + reasons(killed)
    assert findings(closed)["the listener's path"].observed == "removed"
    assert findings(killed)["the listener's path"].observed == "stays, as the kernel has it"
    assert not list(tmp_path.iterdir())


def test_a_transport_this_machine_has_not_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transport, "is_available", lambda transport: False)
    monkeypatch.setattr("sharedsock.simulator.stage.Actors", None)
    with pytest.raises(StageError, match="this machine has no TCP over IPv6 on loopback"):
        play(STORY, Options(transport="tcp6"))


def test_a_directory_without_room_for_a_path_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr("sharedsock.simulator.stage.Actors", None)
    with pytest.raises(StageError, match="TMPDIR is too long for the path of a Unix socket"):
        play(STORY, Options(transport="unix"))
    assert not list(deep.iterdir())


def _keep_a_second_descriptor(has: Belongings) -> None:
    has.sockets["second"] = has.shared("stream").dup()


def _open_a_socket(has: Belongings) -> None:
    has.sockets["left over"] = socket.socket()


def _leave_a_thread(has: Belongings) -> None:
    import threading

    threading.Thread(target=threading.Event().wait, daemon=True).start()


def _second_descriptor(stage: Stage) -> None:
    stage["A"].do("call_with", _keep_a_second_descriptor)


def _record_twice(stage: Stage) -> None:
    stage.peer.sendall(record(7, 64), on="stream")

    def is_seen() -> bool:
        return any(event.kind == "record" for actor in stage.actors for event in actor.events)

    stage.actors.wait_for(is_seen, "the record")


def _receiver_dies(stage: Stage) -> None:
    stage["C"].kill()


def _linger_0(stage: Stage) -> None:
    stage["C"].do("set_linger", True, 0, on="stream")


def _leak_a_socket(stage: Stage) -> None:
    stage["A"].do("call_with", _open_a_socket)


def _leak_a_thread(stage: Stage) -> None:
    stage[PEER].do("call_with", _leave_a_thread)


def _linger_1(stage: Stage) -> None:
    stage["C"].do("set_linger", True, 1, on="stream")


def _linger_longer(stage: Stage) -> None:
    stage["C"].do("set_linger", True, 2, on="unread")


def _peer_is_told(stage: Stage) -> None:
    stage["B"].sendall(b"hello", on="stream")
    stage.facts["watch"].value()


def _leak_here(stage: Stage) -> None:
    stage.facts["leak"] = os.dup(0)


@pytest.mark.parametrize(
    ("promise", "misbehave", "reason"),
    [
        ("close", _second_descriptor, "the registry counts 3, there are 2"),
        ("deliver", _record_twice, "0 missing, 1 too many"),
        ("kill", _receiver_dies, "ActorDied: actor C killed by SIGKILL"),
        ("last-close", _linger_0, "the last close returns: at once, 0.0 KiB still unsent"),
        ("residue", _leak_a_socket, "A holds 1 more sockets, inodes"),
        ("residue", _leak_a_thread, "peer has 1 more threads"),
    ],
)
def test_a_player_that_misbehaves_breaks_its_promise(promise: str, misbehave: Intervention, reason: str) -> None:
    report = play(STORY, Options(threads=1), before={promise: misbehave})
    assert not report.holds
    assert [verdict.promise.name for verdict in report.broken] == [promise]
    assert reason in report.broken[0].reason
    names = [one.name for one in STORY.promises]
    after = [standings(report)[name] for name in names[names.index(promise) + 1 :]]
    assert set(after) <= {"not run"}, "what follows a broken promise is not judged"


@pytest.mark.parametrize(
    ("options", "promise", "misbehave", "reason"),
    [
        (Options(threads=1, linger="0"), "last-close", _linger_1, "the last close returns: took"),
        (Options(threads=1, linger="1"), "last-close", _linger_0, "with the peer not reading: does not wait"),
        (Options(threads=1, linger="1"), "last-close", _linger_longer, "the close of the unread stream returns: took"),
        (Options(threads=1, transport="udp"), "kill", _peer_is_told, "the far peer: has an event, mask 1"),
        (Options(threads=1, transport="unix"), "deliver", _record_twice, "0 missing, 1 too many"),
        (Options(threads=1, kill="A"), "deliver", _record_twice, "0 missing, 1 too many"),
    ],
)
def test_so_does_one_with_other_options(options: Options, promise: str, misbehave: Intervention, reason: str) -> None:
    report = play(STORY, options, before={promise: misbehave})
    assert [verdict.promise.name for verdict in report.broken] == [promise], reasons(report)
    assert reason in report.broken[0].reason


def test_who_was_woken_in_vain_has_waited_again_before_more_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """B finds a record taken, but late: held between wake-up and try, it would take one of those meant for C."""
    released: list[bool] = []

    def be_late(stage: Stage) -> None:
        late, prompt = (stage[name].hold_at("op.ready", "recv-1") for name in "BC")
        stage.peer.sendall(record(RECORDS, 64), on="stream")
        late.wait_reached()
        prompt.wait_reached()
        prompt.release()
        wait_reports(stage, ("C",), 1, 0)
        stage.facts["had"] = {"B": (0, 0), "C": (1, 0)}
        wait_all_blocked = stage.wait_all_blocked

        def release(names: Collection[str]) -> dict[tuple[str, str], ThreadFacts]:
            late.release()
            released.append(True)
            return wait_all_blocked(names)

        monkeypatch.setattr(stage, "wait_all_blocked", release)

    report = play(STORY, Options(threads=1), before={"deliver": be_late})
    assert report.holds, reasons(report)
    assert released


@pytest.mark.parametrize("promise", ["close", "kill"])
def test_an_event_at_the_peer_is_told_as_one_however_late_it_is_heard_of(
    promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far peer wakes right after a look that found it asleep, and before it has said so."""

    def be_told(stage: Stage) -> None:
        wait_all_blocked = stage.wait_all_blocked

        def tell(names: Collection[str]) -> dict[tuple[str, str], ThreadFacts]:
            monkeypatch.undo()
            stage["C"].sendall(b"hello", on="stream")
            tid = stage.peer.tid("watch")
            stage.wait_until(lambda: thread_facts(stage.peer.pid, tid).is_waiting, False, 10.0)
            return wait_all_blocked(names)

        monkeypatch.setattr(stage, "wait_all_blocked", tell)

    report = play(STORY, Options(threads=1), before={promise: be_told})
    assert [verdict.promise.name for verdict in report.broken] == [promise], reasons(report)
    assert report.broken[0].reason == "the far peer: has an event, mask 1"


def test_a_leak_in_the_controller_is_found_too() -> None:
    held: dict[str, Any] = {}

    def leak(stage: Stage) -> None:
        _leak_here(stage)
        held.update(stage.facts)

    report = play(STORY, Options(processes=2, threads=1), before={"residue": leak})
    os.close(held["leak"])
    assert report.broken[0].reason.startswith("this process: controller holds")


def test_an_interrupted_run_leaves_no_process() -> None:
    pids: list[int] = []

    def interrupt(stage: Stage) -> None:
        pids.extend(actor.pid for actor in stage.actors)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(STORY, Options(processes=2, threads=1), before={"deliver": interrupt})
    assert pids
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_players_that_cannot_start_are_no_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory for the run's registry: the run says so and leaves nothing, but judges no promise."""
    monkeypatch.setattr("sharedsock.simulator.stage.new_directory_name", lambda: "/proc/no-such-place/registry")
    with pytest.raises(StageError, match="the players could not be started: actor A: "):
        play(STORY, Options(processes=2, threads=1))
