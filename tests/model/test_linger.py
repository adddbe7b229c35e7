"""The close table: every cell, written out once more in the words of the SPI page."""

from __future__ import annotations

from itertools import product

import pytest

from sharedsock.model import winsock
from sharedsock.model.linger import (
    API_CLOSE_CODES,
    CLOSE_TABLE,
    SPI_CLOSE_CODES,
    CloseAction,
    close_action,
)

BOTH = (True, False)


@pytest.mark.rule("LINGER-2")
@pytest.mark.parametrize(("is_blocking", "has_unsent"), list(product(BOTH, BOTH)))
def test_dontlinger_is_graceful_whether_blocking_or_not(is_blocking: bool, has_unsent: bool) -> None:
    """LPWSPCLOSESOCKET: returns at once, never WSAEWOULDBLOCK; queued data is sent if possible."""
    assert close_action(None, is_blocking=is_blocking, has_unsent=has_unsent) is CloseAction.GRACEFUL


@pytest.mark.rule("LINGER-3")
@pytest.mark.parametrize(("is_blocking", "has_unsent"), list(product(BOTH, BOTH)))
def test_a_zero_interval_resets_whether_blocking_or_not(is_blocking: bool, has_unsent: bool) -> None:
    """LPWSPCLOSESOCKET: not blocked even if queued data has not been sent: a hard or abortive disconnect."""
    assert close_action(0, is_blocking=is_blocking, has_unsent=has_unsent) is CloseAction.RESET


@pytest.mark.rule("LINGER-6", "LINGER-7")
@pytest.mark.parametrize("interval_s", [1, 5, 32_767])
def test_an_interval_waits_only_while_something_is_unsent(interval_s: int) -> None:
    """closesocket: blocks until the remaining data has been sent or until the timeout expires."""
    assert close_action(interval_s, is_blocking=True, has_unsent=True) is CloseAction.WAIT
    assert close_action(interval_s, is_blocking=True, has_unsent=False) is CloseAction.GRACEFUL


@pytest.mark.rule("LINGER-4", "CLOSE-9")
@pytest.mark.parametrize("interval_s", [1, 5, 32_767])
def test_a_nonblocking_close_that_would_wait_is_refused(interval_s: int) -> None:
    """LPWSPCLOSESOCKET: WSAEWOULDBLOCK if the close cannot finish at once, and only then (reading F)."""
    assert close_action(interval_s, is_blocking=False, has_unsent=True) is CloseAction.REFUSE
    assert close_action(interval_s, is_blocking=False, has_unsent=False) is CloseAction.GRACEFUL


@pytest.mark.rule("LINGER-5")
def test_each_cure_of_a_refusal_is_one_in_the_table() -> None:
    """Enabling SO_DONTLINGER, LINGER(0), or the data draining: the same nonblocking close is no longer refused."""
    assert close_action(5, is_blocking=False, has_unsent=True) is CloseAction.REFUSE
    assert close_action(None, is_blocking=False, has_unsent=True) is CloseAction.GRACEFUL
    assert close_action(0, is_blocking=False, has_unsent=True) is CloseAction.RESET
    assert close_action(5, is_blocking=False, has_unsent=False) is CloseAction.GRACEFUL


def test_a_negative_interval_is_wrong_use() -> None:
    with pytest.raises(ValueError, match="-1"):
        close_action(-1, is_blocking=True, has_unsent=False)


def test_the_rows_cover_each_cell_once() -> None:
    """Three settings, blocking or not, unsent or not: twelve cells, none claimed by two rows."""
    cells = [
        (row.linger, is_blocking, has_unsent)
        for row in CLOSE_TABLE
        for is_blocking, has_unsent in product(BOTH, BOTH)
        if row.is_blocking in (None, is_blocking) and row.has_unsent in (None, has_unsent)
    ]
    assert len(cells) == len(set(cells)) == 12


@pytest.mark.rule("CLOSE-11")
def test_a_close_may_answer_with_these_codes_and_no_others() -> None:
    """LPWSPCLOSESOCKET and closesocket: the complete lists; a refusal's code is in both."""
    assert (
        frozenset({0, winsock.WSAENETDOWN, winsock.WSAEINPROGRESS, winsock.WSAENOTSOCK, winsock.WSAEWOULDBLOCK})
        == SPI_CLOSE_CODES
    )
    assert {winsock.WSAEINTR, winsock.WSANOTINITIALISED} == API_CLOSE_CODES - SPI_CLOSE_CODES
