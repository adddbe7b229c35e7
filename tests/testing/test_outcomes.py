"""Outcomes are values: what a promise speaks of is compared, the rest is carried along."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from sharedsock.model.errors import NotASocket, OperationAborted
from sharedsock.testing import Aborted, Accepted, ActorRaised, Outcome, Raised, Received, Returned
from sharedsock.testing.outcomes import describe_exit, from_error, value_of


def test_an_aborted_operation_equals_its_number_whatever_its_text() -> None:
    assert from_error(OperationAborted("recv ended")) == Aborted(10004)
    assert from_error(OperationAborted("read ended", winerror=995)) == Aborted(995)
    assert Aborted(10004) != Aborted(995)


def test_any_other_error_is_its_class_and_its_two_numbers() -> None:
    assert from_error(NotASocket("closed")) == Raised("NotASocket", 10038, errno.EBADF)
    assert from_error(ConnectionResetError(errno.ECONNRESET, "reset")) == Raised(
        "ConnectionResetError", None, errno.ECONNRESET
    )
    assert from_error(KeyError("x")) == Raised("KeyError")


@pytest.mark.parametrize(
    ("outcome", "value"), [(Received(b"ab"), b"ab"), (Accepted(("::1", 5)), ("::1", 5)), (Returned(7), 7)]
)
def test_the_value_of_a_success_is_what_the_call_returned(outcome: Outcome, value: object) -> None:
    assert value_of("a", outcome) == value


def test_the_value_of_a_failure_raises_with_the_place_it_came_from() -> None:
    try:
        os.environ.copy()["missing"]
    except KeyError as error:
        outcome = from_error(error)
    with pytest.raises(ActorRaised, match=r"actor a: KeyError: 'missing'(.|\n)*test_outcomes\.py") as caught:
        value_of("a", outcome)
    assert caught.value.outcome == Raised("KeyError")


@pytest.mark.parametrize(
    "outcome", [Received(b"x"), Accepted(("127.0.0.1", 1)), Aborted(10004, "text"), Raised("OSError", 1, 2), Returned()]
)
def test_outcomes_cross_a_pipe(outcome: Outcome) -> None:
    assert pickle.loads(pickle.dumps(outcome)) == outcome
    assert str(outcome)


@pytest.mark.parametrize(
    ("status", "text"), [(None, "ended"), (0, "exited with 0"), (-9, "killed by SIGKILL"), (-64, "killed by SIGRTMAX")]
)
def test_an_exit_status_is_said_in_words(status: int | None, text: str) -> None:
    assert describe_exit(status) == text
