"""CPython's own socket tests, with SharedSocket for socket.socket: a part here, and in the campaign all of them."""

from __future__ import annotations

from collections import Counter

import pytest

from tools import cpython_socket_tests
from tools.cpython_socket_tests import DEVIATIONS, Outcome, compare, main, run

PARTS = 10

QUICK = (
    "BasicTCPTest.",
    "BasicUDPTest.",
    "BasicSocketPairTest.",
    "BufferIOTest.",
    "ContextManagersTest.",
    "CreateServerTest.",
    "NetworkConnectionNoServer.",
    "NonBlockingTCPTests.",
    "NonblockConstantTest.",
    "TestExceptions.",
)


def test_a_part_of_test_socket_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of these passes with the plain class, and with ours, or is listed with the rule that forbids it."""
    assert main(QUICK) == 0, capsys.readouterr().out
    assert "0 not" in capsys.readouterr().out


@pytest.mark.rule("DUP-1", "DUP-2", "DUP-4", "DUP-11", "DUP-12")
def test_windows_own_sharing_tests_pass_here(capsys: pytest.CaptureFixture[str]) -> None:
    """TestSocketSharing, Windows only: share() to a multiprocessing child, fromshare(), damaged bytes, every type."""
    assert main(["TestSocketSharing."]) == 0, capsys.readouterr().out
    assert "passed           4 of 4" in capsys.readouterr().out


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_all_of_test_socket_passes(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--part", f"{part}/{PARTS}"]) == 0, capsys.readouterr().out


PASSED, SKIPPED, FAILED = Outcome("passed"), Outcome("skipped"), Outcome("failed", "because")


def test_what_the_plain_class_does_not_pass_does_not_count() -> None:
    plain = {"A.skipped": SKIPPED, "A.failed": FAILED, "A.hung": Outcome("hung"), "A.passed": PASSED}
    verdict = compare(plain, dict.fromkeys(plain, FAILED) | {"A.passed": PASSED})
    assert verdict.passed == ["A.passed"]
    assert not verdict.unlisted
    assert verdict.uncounted == Counter(skipped=1, failed=1, hung=1)


@pytest.mark.parametrize("outcome", [FAILED, SKIPPED, Outcome("hung"), Outcome("crashed"), None])
def test_any_other_end_than_a_pass_is_a_deviation(outcome: Outcome | None) -> None:
    """Skipped and missing as well: a test that silently does not run has not passed."""
    shared = {} if outcome is None else {"A.one": outcome}
    verdict = compare({"A.one": PASSED}, shared)
    assert verdict.unlisted == [("A.one", outcome or Outcome("absent"))]


def test_a_listed_deviation_that_passes_is_stale() -> None:
    row = DEVIATIONS[0]
    assert compare({row.test: PASSED}, {row.test: FAILED}).listed == [(row.test, row, FAILED)]
    assert compare({row.test: PASSED}, {row.test: PASSED}).stale == [row]


def test_windows_own_tests_have_to_pass_although_the_plain_class_skips_them() -> None:
    verdict = compare({"TestSocketSharing.testShare": SKIPPED}, {"TestSocketSharing.testShare": SKIPPED})
    assert verdict.unlisted == [("TestSocketSharing.testShare", SKIPPED)]


def test_an_unlisted_difference_exits_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen once with the table emptied."""
    monkeypatch.setattr(cpython_socket_tests, "DEVIATIONS", ())
    assert main(["NonblockConstantTest."]) == 1
    assert "NOT LISTED NonblockConstantTest.test_SOCK_NONBLOCK" in capsys.readouterr().out


def test_a_hung_test_costs_one_worker() -> None:
    """The next worker goes on behind it, and the stacks say where it hung. This one is silent for 3 seconds."""
    hung, last = "NetworkConnectionBehaviourTest.testInsideTimeout", "TestExceptions.testExceptionTree"
    outcomes = run("plain", [hung, last], stall_s=1.0)
    assert outcomes[hung].kind == "hung"
    assert "testInsideTimeout" in outcomes[hung].detail
    assert outcomes[last] == PASSED


def test_each_rule_named_is_one() -> None:
    """A deviation without a rule of the specification is a bug."""
    assert {row.rule for row in DEVIATIONS} <= {"DUP-1", "DUP-17"}
