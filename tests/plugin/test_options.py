"""Options, their twins, and markers: who wins, and what happens to what is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import _prepareconfig

from sharedsock.model.environment import VARIABLES
from sharedsock.pytest_plugin.options import _OPTIONS, Settings, read_settings


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return what a command line, an environment and an ini file come to, as pytest reads them, without a session."""
    for name in VARIABLES:
        if name.startswith(tuple(option.variable for option in _OPTIONS)):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def read(arguments: tuple[str, ...] = (), environment: dict[str, str] | None = None, ini: str = "") -> Settings:
        (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)
        words = ["-s", "-c", str(tmp_path / "pytest.ini"), "-p", "sharedsock.pytest_plugin", *arguments, str(tmp_path)]
        config = _prepareconfig(words)
        try:
            return read_settings(config)
        finally:
            config._ensure_unconfigure()

    return read


# Each option: a value for each of the three places, and what it comes to.
SAID: dict[str, list[tuple[str, Any]]] = {
    "leaks": [("sockets", {"sockets"}), ("threads,processes", {"threads", "processes"}), ("none", set())],
    "leaks_action": [("warn", "warn"), ("report", "report"), ("fail", "fail")],
    "leaks_timeout": [("0", 0.0), ("2.5", 2.5), ("3", 3.0)],
    "leaks_baseline": [("a.jsonl", "a.jsonl"), ("b.jsonl", "b.jsonl"), ("c.jsonl", "c.jsonl")],
    "hang_timeout": [("60", 60.0), ("0", 0.0), ("7", 7.0)],
    "report": [("a.jsonl", "a.jsonl"), ("b.jsonl", "b.jsonl"), ("c.jsonl", "c.jsonl")],
    "start_method": [("fork", "fork"), ("spawn", "spawn"), ("exec", "exec")],
}
DEFAULTS = {"leaks": None, "leaks_action": "fail", "leaks_timeout": 1.0, "leaks_baseline": "", "hang_timeout": 0.0,
            "report": "", "start_method": None}  # fmt: skip


def test_every_option_has_twins_and_every_twin_is_a_known_variable() -> None:
    assert [option.key.removeprefix("sharedsock_") for option in _OPTIONS] == list(SAID) == list(DEFAULTS)
    assert {option.variable for option in _OPTIONS} == {
        n for n, what in VARIABLES.items() if what.startswith("pytest: ")
    }


@pytest.mark.parametrize("name", SAID)
def test_the_command_line_wins_over_the_environment_and_that_over_the_ini_file(
    said: Callable[..., Settings], name: str
) -> None:
    """For each option: alone, and against the next place."""
    (ini, as_ini), (variable, as_variable), (flag, as_flag) = SAID[name]
    found = lambda **words: getattr(said(**words), FIELDS.get(name, name))  # noqa: E731
    assert found() == DEFAULTS[name]
    ini_line = f"sharedsock_{name} = {ini}"
    assert found(ini=ini_line) == as_ini
    option = f"--sharedsock-{name.replace('_', '-')}={flag}"
    assert found(ini=ini_line, arguments=(option,)) == as_flag
    assert found(ini=ini_line, environment={f"SHAREDSOCK_{name.upper()}": variable}) == as_variable
    assert found(arguments=(option,)) == as_flag


FIELDS = {"leaks_timeout": "leaks_timeout_s", "hang_timeout": "hang_timeout_s"}


@pytest.mark.parametrize(
    ("arguments", "environment", "ini", "message"),
    [
        (("--sharedsock-leaks=sokets",), {}, "", "--sharedsock-leaks: sokets is no kind of leak; there are refer"),
        (("--sharedsock-leaks=all,sockets",), {}, "", "--sharedsock-leaks: all is no kind"),
        ((), {}, "sharedsock_leaks = sokets", "sharedsock_leaks: sokets is no kind of leak; there are references, so"),
        ((), {"SHAREDSOCK_LEAKS_ACTION": "shout"}, "", "SHAREDSOCK_LEAKS_ACTION: 'shout' is no action; there are fail"),
        (("--sharedsock-leaks-timeout=soon",), {}, "", "--sharedsock-leaks-timeout: 'soon' is no number of seconds"),
        (("--sharedsock-hang-timeout=-1",), {}, "", "--sharedsock-hang-timeout: '-1' is no time"),
        ((), {}, "sharedsock_hang_timeout = nan", "sharedsock_hang_timeout: 'nan' is no time"),
        (("--sharedsock-start-method=thread",), {}, "", "'thread' is no start method; there are fork, fork"),
        (("--sharedsock-leak=all",), {}, "", "--sharedsock-leak: no such option; there are --sharedsock-leaks, --sha"),
        ((), {}, "addopts = --sharedsock-hang=3", "--sharedsock-hang: no such option; there are --sharedsock-leaks, "),
        ((), {"SHAREDSOCK_LEAK": "all"}, "", "SHAREDSOCK_LEAK in the environment: no such variable; there are SHAREDS"),
        ((), {"SHAREDSOCK_AUDIT": "on"}, "", "SHAREDSOCK_AUDIT: 'on' is neither on nor off; there are 1 and 0"),
        ((), {}, "sharedsock_leak = all", "sharedsock_leak: no such option; there are sharedsock_leaks, shared"),
    ],
)  # fmt: skip
def test_a_value_or_name_that_is_none_is_a_usage_error_that_says_where_and_what_there_is(
    said: Callable[..., Settings], arguments: tuple[str, ...], environment: dict[str, str], ini: str, message: str
) -> None:
    with pytest.raises(pytest.UsageError) as raised:
        said(arguments, environment, ini)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--sharedsock-leaks-baseline=none.jsonl",), {}, "no baseline of leaks at none.jsonl: No such file"),
        (("--sharedsock-report=none/r.jsonl", "-n1"), {}, "no report can be written to none/r.jsonl: No such file"),
        (("-n1",), {"SHAREDSOCK_LEAK": "all"}, "SHAREDSOCK_LEAK in the environment: no such variable; there are"),
    ],
    ids=["baseline", "report", "variable"],
)
def test_a_usage_error_ends_the_session_before_it_begins(
    session: Callable[..., Any], arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = session("def test_it(): pass", *arguments, **environment)
    assert done.code == pytest.ExitCode.USAGE_ERROR, done.out
    assert message in done.out


def test_in_a_session_the_command_line_wins_and_the_ini_file_counts(session: Callable[..., Any], sessions: Any) -> None:
    (sessions.directory / "pytest.ini").write_text(
        "[pytest]\nsharedsock_leaks = descriptors\nsharedsock_leaks_timeout = 0\n"
    )
    text = "import os\ndef test_leaves_a_pipe(): os.pipe()"
    done = session(text, "-q", "--sharedsock-leaks=none", SHAREDSOCK_LEAKS="all")
    assert (done.code, done.counts()) == (0, {"passed": 1}), done.out
    done = session(text, "-q")
    assert (done.code, done.counts()) == (1, {"passed": 1, "leaked": 1}), done.out


def test_a_marker_that_says_what_is_not_known_fails_its_test(session: Callable[..., Any]) -> None:
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

        @pytest.mark.known_leak("sockets", reason="r", strict="no")
        def test_strict(): pass

        @pytest.mark.sharedsock(leaks=5)
        def test_number(): pass

        @pytest.mark.sharedsock(leaks="none", timeout=30, start_method="fork")
        def test_good(): pass
        """,
        "--strict-markers",
        "-n1",
    )
    counts = done.counts()
    assert (done.code, counts["passed"]) == (1, 1), done.out
    assert counts.get("error", counts.get("errors")) == 8
    for message in (
        "'leak' is no word of the marker sharedsock; there are leaks, timeout, start_method",
        "sokets is no kind of leak; there are references, sockets, descriptors, threads, processes",
        "'thread' is no start method; there are fork, forkserver, spawn, exec",
        "the marker sharedsock takes words only: leaks=…, timeout=…, start_method=…",
        "the marker known_leak wants a reason=…",
        "the marker known_leak wants strict=True or strict=False, not 'no'",
        "5 is no kind of leak; there are references, ",
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
