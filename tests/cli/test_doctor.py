"""`sharedsock doctor`: each line is a look at the real thing, and tells when something stands in for it."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedsock.cli import main
from sharedsock.cli.doctor import LOOKS, Found, Standing, examine
from sharedsock.kernel import numbers, system
from sharedsock.registry.liveness import System
from sharedsock.simulator.transports import Transport

NAMES = [look.name for look in LOOKS]


def found(name: str) -> Found:
    (look,) = [look for look in LOOKS if look.name == name]
    return look.look()


def test_on_a_machine_the_tests_run_on_sockets_can_be_shared() -> None:
    """In a process of its own, which ends: nothing may be left of the look that shares a socket."""
    done = subprocess.run([sys.executable, "-m", "sharedsock", "doctor", "--json"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert (report["schema"], report["usable"]) == (1, True)
    assert [look["name"] for look in report["looks"]] == NAMES
    for look in report["looks"]:
        assert list(look) == ["name", "standing", "found", "costs", "needed"]
        assert look["standing"] in ("ok", "fallback", "missing")
        assert (look["costs"] == "") is (look["standing"] == "ok"), "what is not there has a price, what is has none"
        assert look["standing"] == "ok" or not look["needed"]


def _fails(code: int) -> Callable[..., Any]:
    def fail(*arguments: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "replacement", "costs"),
    [
        ("pidfd", System, "pidfd", lambda self, pid: None, "asks /proc at intervals"),
        ("pidfd of a peer", System, "peer_pidfd", lambda self, channel: None, "opens the pidfd by number"),
        ("epoll", system, "make_epoll", _fails(errno.ENOSYS), "poll() instead"),
        ("eventfd", system, "make_eventfd", _fails(errno.ENOSYS), "a pipe instead"),
        ("MADV_WIPEONFORK", numbers, "_page_is_wiped", False, "getpid()"),
        ("SO_COOKIE", system, "socket_cookie", lambda number: 5 << 64 | 7, "device and inode"),
        ("dead file", system, "file_identity", lambda number: (1, 2, 0), "another family"),
        ("TCP's queues", system, "tcp_state", lambda view: 0, "a reset another holder has read"),
        ("RLIMIT_NOFILE", resource, "getrlimit", lambda which: (64, 128), "room for some"),
    ],
)
def test_what_stands_in_is_told_with_its_price(
    name: str, owner: Any, attribute: str, replacement: Any, costs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(name).standing is Standing.OK
    monkeypatch.setattr(owner, attribute, replacement)
    told = found(name)
    assert told.standing is Standing.FALLBACK
    assert costs in told.costs


def test_a_memory_page_without_seals_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert found("sealed memory").standing is Standing.FALLBACK


def test_a_path_that_is_too_long_for_a_socket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAREDSOCK_TREE", "/" + "d" * 110)
    told = found("AF_UNIX path room")
    assert told.standing is Standing.FALLBACK
    assert told.what.startswith("113 of 107 bytes")


def test_the_runtime_directory_is_made_looked_at_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert found("runtime directory") == Found(Standing.OK, f"mode 0700, in {tmp_path} (mode 0700)")
    assert not list(tmp_path.iterdir())
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("TMPDIR", str(open_to_all))
    told = found("runtime directory")
    assert (told.standing, told.what) == (Standing.FALLBACK, f"mode 0700, in {open_to_all} (mode 0777)")
    monkeypatch.setattr("sharedsock.cli.doctor.new_directory_name", lambda: "/proc/no-such-place/registry")
    assert found("runtime directory").standing is Standing.MISSING


@pytest.mark.parametrize(("version", "standing"), [((3, 13), "ok"), ((3, 14), "fallback")])
def test_a_python_that_is_not_tested_is_told(
    version: tuple[int, int], standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert found("Python").standing.value == standing


def test_what_is_not_here_is_missing_and_what_that_means_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(Transport, "is_available", lambda transport: transport.name != "tcp6")
    assert found("start by fork").standing is Standing.MISSING
    assert found("start by spawn").standing is Standing.OK
    assert "--transport tcp6" in found("transport tcp6").costs
    assert found("transport tcp").standing is Standing.OK

    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert found("rich") == Found(Standing.MISSING, "not installed", "pages without colour")


def _only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Look at nothing else: the look that shares a socket starts a registry, which this process then keeps."""
    monkeypatch.setattr("sharedsock.cli.doctor.LOOKS", tuple(look for look in LOOKS if look.name in names))


@pytest.mark.parametrize(("name", "code"), [("peer credentials", 1), ("epoll", 0)])
def test_only_what_sharing_needs_decides_the_exit_code(
    name: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, "peer credentials", "epoll")
    monkeypatch.setattr("sharedsock.cli.doctor.peer_credentials" if code else "sharedsock.kernel.system.make_epoll",
                        _fails(errno.ENOPROTOOPT))  # fmt: skip
    assert main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split()[0] for line in lines if name in line) == ("missing" if code else "fallback")
    wanted = "sockets cannot be shared here (peer credentials); 1 ok, 1 missing"
    assert lines[-1] == (wanted if code else "sockets can be shared here; 1 ok, 1 fallback")


def test_a_look_that_fails_in_an_unforeseen_way_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "SO_COOKIE", "epoll")
    monkeypatch.setattr(system, "socket_cookie", lambda number: 1 // 0)
    told = {look.name: one for look, one in examine()}
    assert told["SO_COOKIE"] == Found(Standing.MISSING, "ZeroDivisionError: integer division or modulo by zero",
                                      "the look itself failed")  # fmt: skip
    assert told["epoll"].standing is Standing.OK


@pytest.mark.parametrize("columns", [80, 112])
def test_the_page_fits(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, *(name for name in NAMES if name != "sharing"))
    monkeypatch.setattr(system, "make_epoll", _fails(errno.ENOSYS))
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.lstrip().startswith("poll() instead") for line in lines)
