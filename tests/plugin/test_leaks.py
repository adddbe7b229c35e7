"""What tests leave behind is found, with its owner; what they do not leave behind is not."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.lasting import LASTING


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


leaking = _beside("leaking")
ALL = "--sharedsock-leaks=all"


def check_owners(done: Any, text: str, of_each: int, workers: bool) -> None:
    """Every leak was found once, and is told with its test, process, thread and line."""
    lines = text.splitlines()
    expected = {
        f"test_inner.py::test_{name}_{number}": sorted(kinds)
        for name, kinds in leaking.KINDS_OF.items()
        for number in range(of_each)
    }
    found: dict[str, list[Any]] = {}
    for finding in done.findings:
        found.setdefault(finding["after"], []).append(finding)
    assert {test: sorted(one["kind"] for one in rows) for test, rows in found.items()} == expected, done.out
    assert done.code == pytest.ExitCode.TESTS_FAILED
    assert done.counts()["leaked"] == len(expected)
    for test, rows in found.items():
        for finding in rows:
            assert finding["test"] == test
            assert finding["worker"].startswith("gw") if workers else finding["worker"] == ""
            assert finding["pid"] > 0
            assert finding["reproduce"].endswith(f"--sharedsock-leaks={finding['kind']}")
            assert test.partition("::")[2] in finding["reproduce"]
            assert finding["thread"] == "MainThread", finding
            place = re.fullmatch(r"(.*):(\d+) in (\w+)", finding["place"])
            assert place is not None, finding
            assert place[3] == test.rpartition("::")[2]
            assert lines[int(place[2]) - 1].endswith("# HERE"), finding


@pytest.mark.parametrize("workers", [False, True], ids=["alone", "workers"])
def test_each_kind_of_leak_is_told_with_its_owner(session: Callable[..., Any], workers: bool) -> None:
    text = leaking.leaking_tests(1)
    arguments = ("-n2",) if workers else ()
    done = session(text, ALL, "--sharedsock-leaks-timeout=0.1", *arguments)
    check_owners(done, text, 1, workers)
    assert "LEAKED" not in done.out, "without -v a letter is enough"
    assert re.search(r"^test_inner.py \S*L", done.out, re.M) or workers
    roles = {one["after"].split("_")[2]: (one["role"], one["state"]) for one in done.findings if "role" in one}
    assert roles["listener"] == ("listener", "LISTEN")
    assert roles["accepted"] == ("accepted", "CLOSE_WAIT")
    assert roles["connected"][0] == "connected"


@pytest.mark.campaign
@pytest.mark.parametrize("workers", [(), ("-n4",)], ids=["alone", "workers"])
def test_two_hundred_leaks_are_told_with_their_owners(session: Callable[..., Any], workers: tuple[str, ...]) -> None:
    text = leaking.leaking_tests(20)
    done = session(text, ALL, "--sharedsock-leaks-timeout=0.1", *workers, within_s=400)
    check_owners(done, text, 20, bool(workers))


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_clean_tests_raise_no_alarm(session: Callable[..., Any], workers: tuple[str, ...]) -> None:
    done = session(leaking.clean_tests(4), ALL, "-q", *workers)
    assert (done.code, done.counts()["passed"], done.findings) == (0, 40, []), done.out


@pytest.mark.campaign
@pytest.mark.parametrize("workers", [(), ("-n4",)], ids=["alone", "workers"])
def test_two_thousand_clean_tests_raise_no_alarm(session: Callable[..., Any], workers: tuple[str, ...]) -> None:
    done = session(leaking.clean_tests(200), ALL, "-q", *workers, within_s=400)
    assert (done.code, done.counts()["passed"], done.findings) == (0, 2000, []), done.out


MIXED = """
    import os, socket, subprocess, sys
    import pytest, sharedsock as ss

    def test_plain(tcp_listener):
        global made, child
        made = socket.socket()
        lasting = LASTING
        child = subprocess.Popen([sys.executable, "-S", "-c", lasting, str(os.getpid())], pass_fds=[made.fileno()])

    def test_shared(actors):
        global ours
        ours, peer = ss.socketpair()
        with peer:
            a, b = actors.share(ours)
            a.close(), b.kill()
            while ours.references() > 1:
                pass
            c, = actors.start("late")
            ours.share(None, expires_s=10)

    @pytest.fixture(scope="session")
    def careful():
        ends = os.pipe()
        yield
        for end in ends: os.close(end)

    @pytest.fixture(scope="module")
    def careless():
        return os.open(".", os.O_RDONLY)

    def test_first(careful, careless): pass
    def test_second(careful, careless): pass

    def test_fails():
        left = socket.socket()
        assert not left

    def helper():
        return socket.socket()

    def test_warned():
        made = helper()
        del made

    def test_leaves_a_file():
        os.open(os.devnull, os.O_RDONLY)
""".replace("LASTING", repr(LASTING))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, compiled: Path, make_sessions: Callable[..., Any]) -> Iterator[Any]:
    """One session, as on GitHub, whose findings several tests read; with the directory it ran in."""
    sessions = make_sessions(tmp_path_factory.mktemp("mixed"), compiled)
    try:
        sessions.write(MIXED)
        done = sessions.run(
            ALL,
            "--sharedsock-leaks-timeout=0.2",
            "-Walways::ResourceWarning",
            "--junitxml=junit.xml",
            "-n1",
            GITHUB_ACTIONS="true",
            GITHUB_STEP_SUMMARY=str(sessions.directory / "summary.md"),
            GITHUB_WORKSPACE=str(sessions.directory),
        )
        assert done.code == pytest.ExitCode.TESTS_FAILED, done.out
        yield done, sessions.directory
    finally:
        sessions.end()


def test_a_socket_another_process_has_as_well_is_told_with_every_holder(mixed: Any) -> None:
    done, _ = mixed
    (plain,) = [one for one in done.findings if one["after"].endswith("test_plain") and one["kind"] == "sockets"]
    (child,) = [one for one in done.findings if one["kind"] == "processes"]
    assert f"process {plain['holders'][-1]['pid']}:" in child["what"]
    (shared,) = [one for one in done.findings if one["after"].endswith("test_shared") and one["kind"] == "sockets"]
    *gone, ticket = shared["holders"]
    assert [one["how"].partition(" ")[0] for one in gone] == ["descriptor"] * 2
    assert len({one["pid"] for one in gone}) == 2
    assert (ticket["how"], ticket["ended"]) == ("ticket", "")
    assert [one["ended"] for one in gone] == ["closed", "died"]
    for ended in ("it has closed", "ended with the process"):
        assert re.search(rf"then held by process \d+ \(\S+\), descriptor \d+, from .*, which {ended}", done.out)
    assert "last held by nobody yet, ticket, from " in done.out
    assert f"last held by process {plain['holders'][-1]['pid']}" in done.out


def test_what_a_wider_fixture_leaves_is_the_fixtures(mixed: Any) -> None:
    done, _ = mixed
    assert not [one for one in done.findings if one["after"].endswith(("test_first", "test_second"))]
    (found,) = [one for one in done.findings if one["after"] == ""]
    assert (found["kind"], found["test"]) == ("descriptors", "fixture careless (module)")
    assert found["place"].endswith(" in careless")


def test_a_failed_tests_leftovers_are_told_and_judge_nothing(mixed: Any) -> None:
    done, _ = mixed
    assert (done.counts()["failed"], done.counts()["leaked"]) == (1, 3), done.out
    assert [one["verdict"] for one in done.findings if one["after"].endswith("test_fails")] == ["the test failed"]


def test_a_socket_collected_without_close_is_told_with_the_place_it_was_opened(mixed: Any) -> None:
    done, directory = mixed
    line = (directory / "test_inner.py").read_text().splitlines().index("def helper():") + 2
    told = re.search(r"ResourceWarning: unclosed <socket.*opened at \S*_inner.py:(\d+) in helper by (\S+)", done.out)
    assert told is not None, done.out
    assert told.groups() == (str(line), "test_inner.py::test_warned")


def test_junit_has_the_findings_as_properties_of_the_test(mixed: Any) -> None:
    text = (mixed[1] / "junit.xml").read_text()
    assert re.search(r'<property name="sharedsock_leak" value="descriptors: number \d+, ', text)
    assert "test_inner.py::test_leaves_a_file leaves behind" in text


def test_github_gets_annotations_and_a_summary(mixed: Any) -> None:
    done, directory = mixed
    assert re.search(
        r"^::error file=test_inner.py,line=7,title=sharedsock%3A sockets left behind::sockets: TCP.*%0A.*again: python",
        done.out,
        re.M,
    ), done.out
    rows = (directory / "summary.md").read_text().splitlines()
    assert rows[1] == f"### sharedsock: {len(done.findings)} left behind"
    assert any(row.startswith("| test_inner.py::test_plain | sockets | TCP") for row in rows)


def test_known_leaks_are_no_failure_until_they_are_fixed(session: Callable[..., Any], sessions: Any) -> None:
    text = """
        import os, threading, pytest

        @pytest.mark.known_leak("descriptors", reason="issue 7")
        def test_known():
            os.pipe()

        @pytest.mark.known_leak("threads", reason="issue 8")
        def test_fixed():
            pass

        @pytest.mark.known_leak("threads", reason="sometimes", strict=False)
        def test_sometimes():
            pass

        @pytest.mark.known_leak("threads", reason="issue 9")
        def test_another_kind():
            os.pipe()
            threading.Thread(target=threading.Event().wait, daemon=True).start()
    """
    done = session(text, "--sharedsock-leaks=descriptors", "--sharedsock-leaks-timeout=0.1", "-v")
    counts = done.counts()
    assert (done.code, counts["passed"], counts["leaked"], counts["error"]) == (1, 4, 1, 1), done.out
    assert re.search(r"test_another_kind LEAKED", done.out)
    assert "test_fixed no longer leaks threads (issue 8): take its known_leak marker away" in done.out
    assert "test_known (known: issue 7)" in done.out


def test_a_baseline_knows_leaks_until_they_are_fixed(session: Callable[..., Any], sessions: Any) -> None:
    text = """
        import socket

        def test_known():
            global made
            made = socket.socket()

        def test_clean():
            pass
    """
    quick = (ALL, "--sharedsock-leaks-timeout=0.1")
    first = session(text, *quick, "--sharedsock-report=baseline.jsonl")
    assert first.code == 1, first.out
    moved = "\n        # a line more\n" + text
    second = session(moved, *quick, "--sharedsock-leaks-baseline=baseline.jsonl")
    assert second.code == 0, second.out
    assert "test_known (known: baseline)" in second.out
    third = session(text.replace("socket.socket()", "None"), *quick, "--sharedsock-leaks-baseline=baseline.jsonl")
    assert third.code == 1, third.out
    assert (
        "no longer leaks sockets made at test_inner.py in test_known: take its line out of baseline.jsonl" in third.out
    )


WIDE = """
    import os, pytest

    @pytest.fixture(scope="module")
    def wide():
        return os.open(".", os.O_RDONLY)

    def test_it(wide): os.pipe()
"""


@pytest.mark.parametrize("action", ["warn", "report"])
def test_other_actions_than_failing(session: Callable[..., Any], action: str) -> None:
    """What is found when the session ends, without workers, is told as well."""
    done = session(WIDE, ALL, f"--sharedsock-leaks-action={action}", "--sharedsock-leaks-timeout=0.1")
    assert done.code == 0, done.out
    assert ("LeakWarning: test_inner.py::test_it leaves behind" in done.out) == (action == "warn")
    assert [one["verdict"] for one in done.findings] == [action] * 3
    told = done.out.partition("sharedsock: 3 left behind")[2]
    assert "made by fixture wide (module), in process" in told


def test_the_terminal_shows_the_worst_first_and_not_more_than_twenty(session: Callable[..., Any]) -> None:
    done = session(
        """
        import os, socket, pytest

        @pytest.mark.parametrize("number", range(24))
        def test_it(number):
            os.open(".", os.O_RDONLY)
            if number == 23:
                globals()["made"] = socket.socket()
        """,
        ALL,
        "--sharedsock-leaks-timeout=0",
    )
    section = done.out.partition("sharedsock: 25 left behind")[2]
    assert next(line for line in section.splitlines()[1:] if line) == "test_inner.py::test_it[23]"
    assert section.count("  again: ") == 20
    assert "... and 5 more; --sharedsock-report=FILE has all" in section


def test_a_report_is_json_lines_even_when_nothing_was_found(session: Callable[..., Any], sessions: Any) -> None:
    done = session("def test_it(): pass", ALL, "--sharedsock-report=out.jsonl")
    assert done.code == 0
    assert (sessions.directory / "out.jsonl").read_text() == ""
