"""Options, their twins, and markers: who wins, and what happens to what is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

LEAKING = """
    import os
    def test_leaves_a_pipe():
        os.pipe()
"""


@pytest.mark.parametrize(
    ("ini", "environment", "arguments", "leaks"),
    [
        ("", {}, (), False),
        ("descriptors", {}, (), True),
        ("none", {"SHAREDSOCK_LEAKS": "descriptors"}, (), True),
        ("descriptors", {"SHAREDSOCK_LEAKS": "threads"}, (), False),
        ("none", {"SHAREDSOCK_LEAKS": "none"}, ("--sharedsock-leaks=all",), True),
        ("all", {"SHAREDSOCK_LEAKS": "all"}, ("--sharedsock-leaks=none",), False),
    ],
)
def test_the_command_line_wins_over_the_environment_and_that_over_the_ini_file(
    session: Callable[..., Any],
    sessions: Any,
    ini: str,
    environment: dict[str, str],
    arguments: tuple[str, ...],
    leaks: bool,
) -> None:
    (sessions.directory / "pytest.ini").write_text(
        f"[pytest]\nsharedsock_leaks = {ini}\nsharedsock_leaks_timeout = 0\n"
    )
    done = session(LEAKING, "-q", *arguments, **environment)
    assert (done.code, "leaked" in done.counts()) == (int(leaks), leaks), done.out


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--sharedsock-leaks=sokets",), {}, "--sharedsock-leaks: sokets is no kind of leak; there are refer"),
        (("--sharedsock-leaks=all,sockets",), {}, "--sharedsock-leaks: all is no kind"),
        ((), {"SHAREDSOCK_LEAKS_ACTION": "shout"}, "SHAREDSOCK_LEAKS_ACTION: 'shout' is no action; there are fail, w"),
        (("--sharedsock-leaks-timeout=soon",), {}, "--sharedsock-leaks-timeout: 'soon' is no number of seconds"),
        (("--sharedsock-hang-timeout=-1",), {}, "--sharedsock-hang-timeout: '-1' is no time"),
        (("--sharedsock-start-method=thread",), {}, "'thread' is no start method; there are fork, fork"),
        (("--sharedsock-leaks-baseline=none.jsonl",), {}, "no baseline of leaks at none.jsonl: No such file"),
        (("--sharedsock-report=none/r.jsonl",), {}, "no report can be written to none/r.jsonl: No such file"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_a_usage_error_that_says_where_and_what_there_is(
    session: Callable[..., Any], arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = session("def test_it(): pass", *arguments, **environment)
    assert done.code == pytest.ExitCode.USAGE_ERROR, done.out
    assert message in done.out


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "worker"])
def test_a_marker_that_says_what_is_not_known_fails_its_test(
    session: Callable[..., Any], workers: tuple[str, ...]
) -> None:
    done = session(
        """
        import pytest

        @pytest.mark.sharedsock(leak="sockets")
        def test_word(): pass

        @pytest.mark.sharedsock(leaks="sokets")
        def test_kind(): pass

        @pytest.mark.sharedsock(start_method="thread")
        def test_start_method(): pass

        @pytest.mark.sharedsock("sockets")
        def test_no_word(): pass

        @pytest.mark.known_leak("sokets", reason="r")
        def test_known_kind(): pass

        @pytest.mark.known_leak("sockets")
        def test_no_reason(): pass

        @pytest.mark.sharedsock(leaks="none", timeout=30, start_method="fork")
        def test_good(): pass
        """,
        "--strict-markers",
        *workers,
    )
    counts = done.counts()
    assert (done.code, counts["passed"]) == (1, 1), done.out
    assert counts.get("error", counts.get("errors")) == 6
    for message in (
        "'leak' is no word of the marker sharedsock; there are leaks, timeout, start_method",
        "sokets is no kind of leak; there are references, sockets, descriptors, threads, processes",
        "'thread' is no start method; there are fork, forkserver, spawn, exec",
        "the marker sharedsock takes words only: leaks=…, timeout=…, start_method=…",
        "the marker known_leak wants a reason=…",
    ):
        assert message in done.out


def test_a_session_that_asks_for_nothing_has_no_hook_of_ours_in_its_tests(
    session: Callable[..., Any], sessions: Any
) -> None:
    """P16: nothing is made, nothing of the instruments is imported, and no test pays."""
    sessions.write(
        """
        import os, sys

        def pytest_unconfigure(config):
            ours = [name for name, _ in config.pluginmanager.list_name_plugin() if name.startswith("sharedsock")]
            print("OURS", sorted(ours))
            heavy = ("sharedsock.testing.", "sharedsock.kernel", "sharedsock.descriptors")
            print("IMPORTED", sorted(name for name in sys.modules if name.startswith(heavy)))
            print("NAMED", sorted(name for name in os.environ if name in ("SHAREDSOCK_RUN", "SHAREDSOCK_TREE")))
        """,
        "conftest.py",
    )
    done = session("def test_it(): pass", "-q", "-s", "--sharedsock-report=")
    assert done.code == 0, done.out
    assert "OURS ['sharedsock', 'sharedsock-arming', 'sharedsock-session']" in done.out
    assert "IMPORTED []" in done.out
    assert "NAMED []" in done.out


def test_a_marker_without_a_word_checks_for_every_kind(session: Callable[..., Any]) -> None:
    done = session(
        """
        import os
        import pytest

        @pytest.mark.sharedsock
        def test_bare(): os.pipe()

        @pytest.mark.sharedsock(timeout=60)
        def test_of_a_word(): os.pipe()

        def test_unmarked(): os.pipe()
        """,
        "--sharedsock-leaks-timeout=0.1",
    )
    assert (done.code, done.counts()) == (pytest.ExitCode.TESTS_FAILED, {"passed": 3, "leaked": 1}), done.out
    assert {one["after"] for one in done.findings} == {"test_inner.py::test_bare"}
    assert "made by test_inner.py::test_bare, in process" in done.out
