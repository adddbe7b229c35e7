"""What a test says of itself: `@pytest.mark.sharedsock(leaks=…, timeout=…, start_method=…)` and
`@pytest.mark.known_leak("sockets", reason=…, strict=True)`.

A word that is none is an error of that test, which lists the words there are.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import pytest

from sharedsock.pytest_plugin.options import kinds_of, seconds_of, start_of

__all__ = [
    "FIXTURES",
    "KnownLeak",
    "Wishes",
    "asks_for_something",
    "declare_marks",
    "has_timeout",
    "known_leaks",
    "wishes_of",
]

FIXTURES: Final = frozenset(
    {"actors", "shared_socket_factory", "tcp_listener", "tcp_listener_factory", "unix_listener"}
)
_WORDS: Final = ("leaks", "timeout", "start_method")


def declare_marks(config: pytest.Config) -> None:
    """Declare the markers, for --markers and --strict-markers."""
    config.addinivalue_line(
        "markers",
        "sharedsock(leaks=KINDS, timeout=SECONDS, start_method=METHOD): check this test for leaks, end it when it "
        "hangs, start its actors so; without a word: check it for all kinds of leak",
    )
    config.addinivalue_line(
        "markers",
        "known_leak(*kinds, reason=TEXT, strict=True): this test leaves these behind; once it does not, it fails "
        "(strict=False: it passes)",
    )


class Wishes(NamedTuple):
    """What a test's markers ask for; None: nothing was said."""

    leaks: frozenset[str] | None = None
    timeout_s: float | None = None
    start_method: str | None = None


class KnownLeak(NamedTuple):
    """Leaks a test is known for."""

    kinds: frozenset[str]
    reason: str
    strict: bool


def wishes_of(item: pytest.Item) -> Wishes:
    """Return what the `sharedsock` markers of a test, its class and its module say; the nearest wins, word by word.

    A marker without a word asks for a check for all kinds of leak.

    Raises:
        ValueError: an unknown word or value; the message lists the known ones.
    """
    said: dict[str, Any] = {}
    for mark in item.iter_markers("sharedsock"):
        if mark.args:
            raise ValueError(f"the marker sharedsock takes words only: {', '.join(f'{word}=…' for word in _WORDS)}")
        for word, value in mark.kwargs.items():
            if word not in _WORDS:
                raise ValueError(f"{word!r} is no word of the marker sharedsock; there are {', '.join(_WORDS)}")
            said.setdefault(word, value)
        if not mark.kwargs:
            said.setdefault("leaks", "all")
    return Wishes(
        leaks=None if said.get("leaks") is None else kinds_of(_joined(said["leaks"])),
        timeout_s=None if said.get("timeout") is None else seconds_of(said["timeout"]),
        start_method=None if said.get("start_method") is None else start_of(said["start_method"]),
    )


def known_leaks(item: pytest.Item) -> list[KnownLeak]:
    """Return what the `known_leak` markers of a test say.

    Raises:
        ValueError: no kind, an unknown kind, an unknown word, or no reason.
    """
    known = []
    for mark in item.iter_markers("known_leak"):
        words = dict(mark.kwargs)
        reason, strict = words.pop("reason", ""), words.pop("strict", True)
        if words:
            raise ValueError(f"{', '.join(words)} is no word of the marker known_leak; there are reason, strict")
        if not reason:
            raise ValueError("the marker known_leak wants a reason=…")
        if not isinstance(strict, bool):
            raise ValueError(f"the marker known_leak wants strict=True or strict=False, not {strict!r}")
        known.append(KnownLeak(kinds_of(_joined(mark.args)), str(reason), strict))
    return known


def asks_for_something(item: pytest.Item) -> bool:
    """Report whether a test uses a fixture or marker of ours."""
    if not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
        return True
    return item.get_closest_marker("sharedsock") is not None or item.get_closest_marker("known_leak") is not None


def has_timeout(item: pytest.Item) -> bool:
    """Report whether a marker of ours gives a test a time."""
    return any(mark.kwargs.get("timeout") for mark in item.iter_markers("sharedsock"))


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list | set | frozenset) else str(value)
