"""The kit finds what is broken, and says so; and finds nothing where nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import sharedsock as ss
from sharedsock import spi
from sharedsock.testing import conformance
from sharedsock.testing.conformance import PROMISES, NotConforming, check_provider, stage
from tests.testing import broken_providers as broken

EVERY_RULE = {rule for promise in PROMISES for rule in promise.rules}


@pytest.fixture(scope="module", autouse=True)
def registry() -> Iterator[ss.Registry]:
    with ss.Registry() as registry:
        yield registry


@pytest.mark.parametrize(
    ("provider", "parameters"),
    [
        (spi.BaseProvider, {}),
        ("sharedsock.spi.layered:LayeredProvider", {}),
        (spi.Tracing, {"logger": "quiet"}),
        (spi.Throttling, {"latency_s": 0.0001, "most_bytes": 1 << 20, "seed": 4}),
        (spi.Chaos, {"stall": 0.1, "stall_s": 0.0001, "seed": 4}),
    ],
    ids=["base", "layered", "tracing", "throttling", "chaos"],
)
def test_ours_conform(provider: Any, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "QUICK_S", 5.0)  # a bound: what comes is not waited for any longer
    before = spi.WSCEnumProtocols()
    assert check_provider(provider, **parameters) == tuple(promise.name for promise in PROMISES)
    assert spi.WSCEnumProtocols() == before


GIVEN_BACK = "each_handle_is_given_back_exactly_once"
HARD = "a_lingering_close_ends_hard_when_its_time_is_over"
REFUSED = "a_refused_close_has_changed_nothing"
FINDINGS: list[tuple[type[spi.Provider], dict[str, str]]] = [
    (broken.ForgetsToGiveBack, {GIVEN_BACK: "WPUCloseSocketHandle was called 0 times"}),
    (broken.GivesBackTwice, {GIVEN_BACK: "WPUCloseSocketHandle was called 2 times"}),
    (broken.GivesBackTheLastOnly, {GIVEN_BACK: "called 0 times at a close that was not the last"}),
    (broken.GivesBackOnARefusal, {REFUSED: "WPUCloseSocketHandle was called on a refused close"}),
    (broken.NeverRefuses, {REFUSED: "WSPCloseSocket in A: success, None, not WSAEWOULDBLOCK"}),
    (broken.DecrementsBeforeItRefuses, {REFUSED: "WSPRecv in A: WSAENOTSOCK, not WSAEWOULDBLOCK"}),
    (broken.CountsAtTheClaim, {"an_info_is_a_reference_from_the_moment_it_is_made": "the connection has ended"}),
    (
        broken.AbortsTheOtherProcess,
        # Its shutdown reaches B and the peer; the one or the other is seen first.
        {"a_close_leaves_the_other_process_and_the_peer_alone": " A's close"},
    ),
    (broken.DropsQueuedData, {"a_graceful_close_delivers_what_is_queued": "then reset"}),
    (broken.LingersForEver, {HARD: "waited in vain"}),
    (broken.ClosesInTheBackground, {HARD: "with LINGER(1) and bytes unsent the close took 0."}),
    (broken.DeliversAfterTheExpiry, {HARD: "when the time was over the connection was FIN"}),
    (broken.KeepsAReference, {"the_connection_ends_with_the_last_close_in_whatever_order": "the connection is open"}),
    (broken.LeavesAWaiterBlocked, {"a_close_ends_the_own_process_s_blocked_call": "waited in vain"}),
    (broken.EndsWaitersWithAnotherCode, {"a_close_ends_the_own_process_s_blocked_call": "WSAENOTSOCK, not WSAEINTR"}),
    (broken.AnswersAfterTheClose, {"a_closed_handle_is_10038_from_every_call": "success, 1, not WSAENOTSOCK"}),
    (broken.ReusesNumbers, {"no_handle_is_given_out_twice": "was given out again"}),
    (
        broken.ReadsAhead,
        {"what_one_descriptor_has_not_received_is_there_for_the_other": "waited in vain"},
    ),
    (broken.KeepsTheModeToItself, {"the_blocking_mode_is_common": "waited in vain"}),
    (
        broken.CompletesTwice,
        {
            "a_close_completes_a_request_exactly_once_with_995": "[(995, 0), (995, 0)]",
            "a_request_completes_exactly_once_with_its_bytes": "[(0, 3), (0, 3)]",
        },
    ),
    (broken.NeverTellsOfAnAbort, {"a_close_completes_a_request_exactly_once_with_995": "its completions are []"}),
    (broken.CompletesAtOnce, {"a_request_completes_exactly_once_with_its_bytes": "its completions are [(0, 0)]"}),
    (broken.InfoForEver, {"an_info_is_good_once_and_for_its_target_only": "the second use of an info came to success"}),
    (
        broken.ForgetsItsSocketsAtCleanup,
        {"the_last_cleanup_ends_this_process_s_references_only": "A's cleanup has kept a reference"},
    ),
]


@pytest.mark.parametrize(("provider", "findings"), FINDINGS, ids=[kind.__name__ for kind, _ in FINDINGS])
def test_a_broken_provider_is_failed_for_what_it_breaks(
    provider: type[spi.Provider], findings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "QUICK_S", 0.3)
    # It takes a second: for those who break it, and for ours.
    quick = [promise for promise in PROMISES if promise.name != HARD or HARD in findings]
    monkeypatch.setattr(conformance, "PROMISES", quick)
    with pytest.raises(NotConforming) as failed:
        check_provider(provider)
    found = {failure.promise: failure.reason for failure in failed.value.failures}
    for promise, reason in findings.items():
        assert reason in found.get(promise, "kept"), found
    assert provider.__name__ in str(failed.value)
    assert all(failure.rules and set(failure.rules) <= EVERY_RULE for failure in failed.value.failures)


def test_the_kit_has_been_proved_on_fifteen_at_least() -> None:
    assert len(FINDINGS) >= 15
