"""Identities and facts: frozen, hashable, picklable. The probe: named points, nothing when no hook is installed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from sharedsock.model import identity, trace, winsock
from sharedsock.model.identity import DescriptorFacts, DescriptorId, HolderId, ProcessId, SocketFacts, SocketId

VALUES = [
    ProcessId(1234, 99),
    HolderId(ProcessId(1234, 99), b"n" * 16),
    SocketFacts(SocketId(7), 2, 1, 6),
    DescriptorFacts(DescriptorId(3), "a.py:1 in f", 1.5),
    identity.Holder(1, "python", DescriptorId(3), "descriptor", "a.py:1 in f", 1.5),
    identity.PendingOperation("reader", 77, "recv", 1.5),
    identity.RegistryStatistics(1, 2, 3, 4, 5, 6, 7),
    identity.Statistics(1, 2, 3, 4),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_frozen_hashable_and_picklable(value: Any) -> None:
    first = type(value).__match_args__[0]
    with pytest.raises(AttributeError if isinstance(value, tuple) else FrozenInstanceError):
        setattr(value, first, None)
    twin = pickle.loads(pickle.dumps(value))
    assert twin == value
    assert hash(twin) == hash(value)


def test_a_reused_pid_is_another_process() -> None:
    """Rule 9: a holder is a process instance; within one clock tick the nonce tells."""
    assert ProcessId(5, 100) != ProcessId(5, 101)
    assert HolderId(ProcessId(5, 100), b"a" * 16) != HolderId(ProcessId(5, 100), b"b" * 16)


def test_a_point_is_reported_only_to_an_installed_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In production the hook is None, and no environment variable sets it."""
    seen: list[tuple[str, Mapping[str, Any]]] = []
    assert trace.hook is None
    trace.hit("op.enter", kind="recv")
    monkeypatch.setattr(trace, "hook", lambda point, context: seen.append((point, context)))
    trace.hit("op.enter", kind="recv")
    assert seen == [("op.enter", {"kind": "recv"})]


def test_the_constants_have_winsocks_values() -> None:
    """winsock2.h; SO_DONTLINGER is the complement of SO_LINGER."""
    assert winsock.SO_DONTLINGER == ~winsock.SO_LINGER == -129
    assert (winsock.SD_RECEIVE, winsock.SD_SEND, winsock.SD_BOTH) == (0, 1, 2)
    assert winsock.XP1_IFS_HANDLES == 0x20000
    assert winsock.XP1_GRACEFUL_CLOSE == 0x20
    assert winsock.FROM_PROTOCOL_INFO == -1
    assert len(set(winsock.__all__)) == len(winsock.__all__)
