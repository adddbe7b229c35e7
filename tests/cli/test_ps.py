"""`ps`, `tree`, `dump`, `reap`, `leaks`: what they show is so, and they end only what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.cli import main
from sharedsock.sharedsocket import base
from sharedsock.testing import Actors
from sharedsock.testing.observation import thread_facts
from sharedsock.testing.runs import RUN_VARIABLE, begin_run, start_ticks
from sharedsock.testing.stacks import enroll, withdraw
from tests.lasting import LASTING


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    return code, capsys.readouterr().out


def shown(capsys: pytest.CaptureFixture[str], registry: str) -> Any:
    """Return what `ps --json` says of one registry."""
    _, out = printed(capsys, "ps", "--json")
    return next(one for one in json.loads(out) if one["registry"] == registry)


def test_ps_and_tree_show_sockets_holders_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with ss.Registry() as registry, Actors("fork") as actors:
        ours, peer = ss.socketpair()
        with ours, peer:
            (actor,) = actors.share(ours, count=1)
            ticket = ours.share(None)
            one = shown(capsys, registry.runtime)
            assert (one["descriptors"], one["tickets"], len(one["sockets"])) == (2, 1, 1)
            (held,) = one["sockets"]
            assert (held["family"], held["type"], held["references"]) == ("AF_UNIX", "SOCK_STREAM", 3)
            assert [(row["pid"], row["kind"]) for row in held["holders"]] == [
                (os.getpid(), "descriptor"),
                (actor.pid, "descriptor"),
                (0, "ticket"),
            ]
            assert __file__ in held["holders"][0]["opened_at"]
            code, text = printed(capsys, "ps")
            assert code == 0
            assert re.search(rf"process {actor.pid} \S+: descriptor \d+ since", text)
            code, text = printed(capsys, "tree")
            assert re.search(rf"  process {os.getpid()} .*\n    descriptor \d+ since .*, socket {held['socket']}", text)
            assert ss.revoke(ticket)


def test_ps_shows_what_waits_in_a_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "")
    run = begin_run()
    run.make_directory()
    try:
        with ss.Registry() as registry, Actors("exec") as actors:
            ours, peer = ss.socketpair()
            with ours, peer:
                (actor,) = actors.share(ours, count=1)
                reading = actor.thread("reader").recv(1)
                actor.wait_until_blocked("reader")
                (held,) = shown(capsys, registry.runtime)["sockets"]
                (row,) = [row for row in held["holders"] if row["pid"] == actor.pid]
                assert [(one["kind"], one["thread"]) for one in row["pending"]] == [("recv", "reader")]
                code, page = printed(capsys, "dump", "--run", str(run.controller))
                assert code == 0
                assert f"actor actor-1 (process {actor.pid}) thread reader: recv on" in page
                code, page = printed(capsys, "dump", "--pid", str(actor.pid))
                assert code == 0
                assert "thread reader (most recent call first):" in page
                peer.sendall(b"x")
                assert reading.value() == b"x"
    finally:
        run.remove_directory()


def test_dump_looks_at_processes_without_python(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "300"]) as child:
        while thread_facts(child.pid, child.pid).state != "S":
            pass
        code, page = printed(capsys, "dump", "--pid", str(child.pid))
        child.kill()
    assert code == 0
    assert re.search(rf"process {child.pid} sleep, child of {os.getpid()}: sleep 300", page)
    assert "asleep" in page
    assert printed(capsys, "dump", "--pid", str(child.pid)) == (1, f"no process {child.pid}\n")
    assert printed(capsys, "dump", "--run", "none") == (1, "no run none; there are none\n")


def test_a_process_answers_for_itself_as_well(tmp_path: Path) -> None:
    from sharedsock.testing.stacks import look_at

    enroll(str(tmp_path), "me")
    try:
        look = look_at((os.getpid(),), str(tmp_path))[os.getpid()]
    finally:
        withdraw(str(tmp_path))
    assert look.known["name"] == "me"
    assert "thread MainThread (most recent call first):" in look.stacks


def test_reap_says_what_a_dead_run_left_and_ends_it_when_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = Path("/tmp") / f"ss-{os.urandom(4).hex()}"  # a short path, and nobody else's runs in it
    base.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv(RUN_VARIABLE, "")
    try:
        living = begin_run()
        living.make_directory()
        dead = base / f"ss-run-{os.getpid()}-{(start_ticks(os.getpid()) or 0) + 1}-000000000000"
        dead.mkdir(0o700)
        elsewhere = base / f"ss-run-{os.getpid()}-1-111111111111"  # its controller is in another container
        elsewhere.mkdir(0o700)
        warden = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        warden.bind(str(elsewhere / "w"))
        (base / f"sharedsock-{'0' * 32}").mkdir(0o700)
        left = subprocess.Popen([sys.executable, "-S", "-c", LASTING, str(os.getpid())], env={RUN_VARIABLE: str(dead)})
        other = subprocess.Popen(
            [sys.executable, "-S", "-c", LASTING, str(os.getpid())], env={RUN_VARIABLE: living.directory}
        )
        try:
            code, text = printed(capsys, "reap")
            assert code == 1
            assert text.splitlines()[0] == f"run of process {os.getpid()}, which has ended: {dead}"
            assert f"  process {left.pid}: {sys.executable}" in text
            assert str(other.pid) not in text
            assert living.directory not in text
            assert left.poll() is None, "without --yes nothing is ended"
            assert dead.exists()
            code, text = printed(capsys, "reap", "--yes")
            assert code == 0, text
            assert left.wait(60) == -9
            assert other.poll() is None
            assert {path.name for path in base.iterdir()} == {Path(living.directory).name, elsewhere.name}
            assert printed(capsys, "reap") == (0, "nothing is left of any dead run\n")
        finally:
            for process in (left, other):
                process.kill()
                process.wait()
        warden.close()
    finally:
        shutil.rmtree(base)


INNER = """
import os, signal, subprocess, sys
from sharedsock.testing.runs import begin_run
os.environ.pop("SHAREDSOCK_RUN")          # as a session does that was started within another run
{begin}
lasting, parent = {lasting!r}, str(os.getpid())
program = subprocess.Popen([sys.executable, "-S", "-c", lasting, parent])
fork = os.fork()
if fork == 0:
    sys.argv[1:] = [parent]
    exec(lasting)
    os._exit(0)
print(program.pid, fork, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("begin", ["begin_run()", "begin_run().make_directory()"], ids=["by name", "by directory"])
def test_reap_spares_a_run_within_the_dead_one_that_lives(
    begin: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its controller was started with the dead run's name, and so was what it forks."""
    base = Path("/tmp") / f"ss-{os.urandom(4).hex()}"
    base.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    dead = base / f"ss-run-{os.getpid()}-{(start_ticks(os.getpid()) or 0) + 1}-000000000000"
    dead.mkdir(0o700)
    environment = os.environ | {RUN_VARIABLE: str(dead)}
    left = subprocess.Popen([sys.executable, "-S", "-c", LASTING, str(os.getpid())], env=environment)
    command = [sys.executable, "-c", INNER.format(begin=begin, lasting=LASTING)]
    inner = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert inner.stdout is not None
        program, fork = map(int, inner.stdout.readline().split())
        code, text = printed(capsys, "reap", "--yes")
        assert (code, re.findall(r"  process (\d+): ", text)) == (0, [str(left.pid)]), text
        assert left.wait(60) == -9
        assert inner.poll() is None
        assert start_ticks(program) is not None
        assert start_ticks(fork) is not None
    finally:
        for process in (left, inner):
            process.kill()
            process.wait()
        inner.stdout.close()  # type: ignore[union-attr]
        shutil.rmtree(base)


def test_with_audit_ps_shows_sockets_that_are_not_shared_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_AUDITS", True)  # what SHAREDSOCK_AUDIT=1 makes it at import
    with ss.Registry() as registry:
        ours, peer = ss.socketpair()
        with ours, peer:
            code, shown = printed(capsys, "ps", "--json")
            (own,) = [one for one in json.loads(shown) if one["registry"] == registry.runtime]
            assert (code, len(own["sockets"]), own["descriptors"]) == (0, 2, 2)
            assert {h["opened_at"].partition(":")[0] for one in own["sockets"] for h in one["holders"]} == {__file__}
        assert registry.client.sockets() == ()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SHAREDSOCK_AUDITS", "1", "SHAREDSOCK_AUDITS in the environment: no such variable; there are SHAREDSOCK_AU"),
        ("SHAREDSOCK_AUDIT", "yes", "SHAREDSOCK_AUDIT: 'yes' is neither on nor off; there are 1 and 0"),
    ],
)
def test_a_variable_that_is_none_is_an_error_that_lists_what_there_is(
    variable: str, value: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as exited:
        main(["ps"])
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def run_leaks(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sharedsock", "leaks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def test_leaks_says_what_outlives_a_command() -> None:
    done = run_leaks("--grace=0.2", "--kill", "--", "sh", "-c", "sleep 300 & echo done")
    assert (done.returncode, done.stdout) == (1, "done\n")
    assert re.match(r"processes: process \d+: sleep 300\n", done.stderr)
    assert done.stderr.endswith("again: sharedsock leaks -- sh -c 'sleep 300 & echo done'\n1 left behind\n")


def test_leaks_says_which_references_outlive_a_command() -> None:
    text = "import sharedsock as ss\na, b = ss.socketpair()\na.share(None, expires_s=10)"
    done = run_leaks("--grace=0.1", "--json", "--", sys.executable, "-c", text)
    assert done.returncode == 1, done.stderr
    (finding,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (finding["kind"], finding["place"]) == ("references", "<string>:2 in <module>")


def test_leaks_has_the_commands_own_exit_code_when_nothing_is_left() -> None:
    """The interpreter's own, of a program that ends with sockets open, and a signal's as a shell tells it."""
    text = "import os, sharedsock as ss; a, b = ss.socketpair(); raise SystemExit(3)"
    for command, code in (((sys.executable, "-c", text), 3), (("sh", "-c", "kill -9 $$"), 137)):
        done = run_leaks("--", *command)
        assert (done.returncode, "left behind" in done.stderr) == (code, False), done.stderr


def test_under_leaks_a_resource_warning_says_where_it_was_opened(tmp_path: Path) -> None:
    """Of plain sockets, in a program that knows nothing of us; the sitecustomize that would have run still does."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.its_own = True\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import socket, sys\ndef helper():\n    return socket.socket()\nhelper()\nprint(sys.its_own, sys.path[1])\n"
    )
    done = run_leaks("--", sys.executable, "-W", "default", str(program), PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"True {tmp_path}\n"), done.stderr
    assert f"opened at {program}:3 in helper" in done.stderr


def test_leaks_of_no_command_at_all() -> None:
    done = run_leaks("--", "/no/such/program")
    assert (done.returncode, done.stderr) == (127, "sharedsock leaks: /no/such/program: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ps", "--watch", "0"), "argument --watch: '0' is no time between 0.1 and 3600 seconds"),
        (("tree", "--watch", "soon"), "argument --watch: 'soon' is no time"),
        (("leaks", "--grace", "-1", "--", "true"), "argument --grace"),
        (("leaks",), "the following arguments are required: CMD"),
        (("dump", "--pid", "1", "--run", "x"), "not allowed with argument"),
        (("reap", "--force"), "unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_exits_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(list(arguments))
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_watch_shows_it_again_until_it_is_interrupted() -> None:
    with ss.Registry() as registry:
        ours, peer = ss.socketpair()
        with ours, peer:
            ours.references()
            command = [sys.executable, "-m", "sharedsock", "ps", "--watch", "0.1", "--json"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
                assert watching.stdout is not None
                seen = [json.loads(watching.stdout.readline()) for _ in range(2)]
                watching.send_signal(2)
                assert watching.wait(60) == 130
            assert all(any(one["registry"] == registry.runtime for one in each) for each in seen)
