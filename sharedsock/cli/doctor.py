"""The verb `doctor`: what this machine offers, what stands in for the rest, and what that costs.

    sharedsock doctor [--json]

Each line is a look at the real thing: a pidfd is opened, a page is advised, a socket is shared and redeemed. It says
"ok"; "fallback", where something slower or narrower stands in; or "missing", where something cannot be done here. Only
what sharing itself needs decides the exit code.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import socket
import stat
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from time import monotonic
from typing import Any, Final

import sharedsock as ss
from sharedsock.cli.pages import Line, put, width_of
from sharedsock.kernel import numbers, system
from sharedsock.registry.directory import TREE_VARIABLE, make_directory, new_directory_name, remove_directory
from sharedsock.registry.liveness import System, peer_credentials
from sharedsock.registry.page import PageWriter
from sharedsock.registry.runtime import socket_address
from sharedsock.simulator.scenario import START_METHODS
from sharedsock.simulator.transports import TRANSPORTS
from sharedsock.testing.observation import thread_facts

__all__ = ["LOOKS", "Found", "Look", "Standing", "add_parser", "examine"]

SCHEMA: Final = 1
_TESTED: Final = ((3, 11), (3, 12), (3, 13))
_NUMBERS_EACH: Final = 4  # the socket, its waker, and a set for each direction somebody waits in
_FEW_NUMBERS: Final = 1024
_PATH_ROOM: Final = 107  # sockaddr_un.sun_path, less its final NUL
_EXTRAS: Final = (
    ("rich", "pages without colour"),
    ("pytest", "no pytest to plug into"),
    ("pytest-xdist", "tests run in one process"),
)


class Standing(Enum):
    """How something stands here."""

    OK = "ok"
    FALLBACK = "fallback"
    MISSING = "missing"


_STYLES: Final = {Standing.OK: "green", Standing.FALLBACK: "yellow", Standing.MISSING: "bold red"}


@dataclass(frozen=True, slots=True)
class Found:
    """What one look has found; `costs` is what the lack of the real thing means, "" where all is well."""

    standing: Standing
    what: str
    costs: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """One thing to look at; `is_needed`: without it no socket can be shared at all."""

    name: str
    look: Callable[[], Found]
    is_needed: bool = False


def _ok(what: str) -> Found:
    return Found(Standing.OK, what)


def _fallback(what: str, costs: str) -> Found:
    return Found(Standing.FALLBACK, what, costs)


def _missing(what: str, costs: str) -> Found:
    return Found(Standing.MISSING, what, costs)


# The looks.


def _python() -> Found:
    version = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info[:2] in _TESTED:
        return _ok(version)
    return _fallback(version, "not tested with it; 3.11, 3.12 and 3.13 are")


def _system() -> Found:
    here = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() == "Linux":
        return _ok(here)
    return _fallback(here, "not run there so far; the named fallbacks below stand in")


def _psutil() -> Found:
    return _ok(importlib.metadata.version("psutil"))


def _file_numbers() -> Found:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = f"{_limit(soft)} (hard limit {_limit(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= _FEW_NUMBERS:
        return _ok(limit)
    room = max(0, soft - len(os.listdir("/dev/fd"))) // _NUMBERS_EACH
    return _fallback(limit, f"room for some {room} sockets: each takes up to {_NUMBERS_EACH} file numbers")


def _limit(value: int) -> str:
    return "no limit" if value == resource.RLIM_INFINITY else str(value)


def _seqpacket() -> Found:
    try:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (OSError, AttributeError) as error:
        return _missing(str(error), "no channel to a registry: sockets cannot be shared")
    with left, right:
        return _ok("SOCK_SEQPACKET")


def _credentials() -> Found:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        try:
            found = peer_credentials(left)
        except (OSError, AttributeError) as error:
            return _missing(str(error), "a registry cannot tell who connects: sockets cannot be shared")
    return _ok(f"SO_PEERCRED, uid {found.uid}")


def _path_room() -> Found:
    used = len(os.fsencode(socket_address(os.environ.get(TREE_VARIABLE) or new_directory_name())))
    room = f"{used} of {_PATH_ROOM} bytes used by the registry's address"
    if used <= _PATH_ROOM:
        return _ok(room)
    return _fallback(room, "each connect takes a detour through /proc/self/fd or a link in /tmp")


def _runtime_directory() -> Found:
    path = new_directory_name()
    base = os.path.dirname(path)
    try:
        number = make_directory(path)
        try:
            mode = stat.S_IMODE(os.fstat(number).st_mode)
        finally:
            remove_directory(path, number)
            os.close(number)
    except OSError as error:
        return _missing(f"{base}: {error}", "no place for a registry: sockets cannot be shared; set XDG_RUNTIME_DIR")
    around = stat.S_IMODE(os.stat(base).st_mode)
    where = f"mode {mode:04o}, in {base} (mode {around:04o})"
    if around & stat.S_IWOTH and not around & stat.S_ISVTX:
        return _fallback(where, "others may rename what is in it: set XDG_RUNTIME_DIR to a directory of your own")
    return _ok(where)


def _pidfd() -> Found:
    number = System().pidfd(os.getpid())
    if number is None:
        return _fallback("no pidfd_open", "a registry asks /proc at intervals who is alive; a death is noticed later")
    os.close(number)
    return _ok("pidfd_open")


def _peer_pidfd() -> Found:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        number = System().peer_pidfd(left)
    if number is None:
        return _fallback("no SO_PEERPIDFD", "a registry opens the pidfd by number and looks again; Linux 6.5 has it")
    os.close(number)
    return _ok("SO_PEERPIDFD")


def _epoll() -> Found:
    try:
        system.make_epoll().close()
    except OSError as error:
        return _fallback(str(error), "poll() instead: each event wakes every thread that waits there")
    return _ok("one set for each descriptor and direction")


def _eventfd() -> Found:
    try:
        os.close(system.make_eventfd())
    except OSError as error:
        return _fallback(str(error), "a pipe instead: one file number more for each socket")
    return _ok("one file number to wake a socket's threads")


def _wipe_on_fork() -> Found:
    if numbers.slot_of(0) != numbers.NEVER_CALM:
        return _ok("a page that a fork wipes in the child")
    return _fallback("not honoured", "a fork that ran no hook is noticed by getpid(): 0.2 us for each call")


def _common_page() -> Found:
    page = PageWriter()
    try:
        if page.fd is not None:
            return _ok("memfd, sealed against writing")
    finally:
        page.close()
    return _fallback("no memfd, or no seals", "what all sharers agree on is asked by a call, not read from a page")


def _cookie() -> Found:
    with socket.socket() as probe:
        is_cookie = system.socket_cookie(probe.fileno()) >> 64 == 0
    if is_cookie:
        return _ok("two adopts of one socket are one record")
    return _fallback("not there", "a socket is known by device and inode, which the kernel may use again")


def _dead_file() -> Found:
    number = system.open_dead_file(socket.AF_INET)
    try:
        if system.file_identity(number)[2]:
            return _ok("an O_PATH file: every call on it answers EBADF")
    finally:
        os.close(number)
    return _fallback("no O_PATH", "a socket of another family stands in for a closed one")


def _unacknowledged() -> Found:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as near:
        try:
            system.unsent_bytes(near.fileno())
        except OSError as error:
            return _missing(f"SIOCOUTQ: {error}", "linger with a time cannot tell when all is acknowledged")
        if system.tcp_state(near) == 0:
            return _fallback("no TCP_INFO", "a reset another holder has read may look like the peer's end of data")
    return _ok("SIOCOUTQ, TCP_INFO")


def _thread_facts() -> Found:
    try:
        facts = thread_facts(os.getpid(), threading.get_native_id())
    except (OSError, KeyError, ValueError) as error:
        return _missing(f"/proc: {error}", "the simulator and the actors cannot see a thread asleep")
    if facts.where or facts.call:
        return _ok("/proc shows the system call a thread sleeps in")
    return _fallback("/proc/PID/syscall is closed", "a sleeping thread is told by its wait channel, less exactly")


def _start_method(method: str) -> Found:
    if method in multiprocessing.get_all_start_methods():
        is_default = multiprocessing.get_context().get_start_method() == method
        return _ok("the default here" if is_default else "there")
    return _missing("not there", "nothing can be played or tested with it")


def _transport(name: str) -> Found:
    transport = TRANSPORTS[name]
    if transport.is_available():
        return _ok(transport.title)
    return _missing(f"no {transport.title} on loopback", f"`sharedsock run --transport {name}` cannot begin")


def _sharing() -> Found:
    began_s = monotonic()
    try:
        left, right = ss.socketpair()
        with left, right, ss.fromshare(left.share(os.getpid())) as again:
            right.sendall(b"?")
            again.recv(1)
    except OSError as error:
        return _missing(f"{type(error).__name__}: {error}", "sockets cannot be shared")
    return _ok(f"a socket shared, redeemed, read: {(monotonic() - began_s) * 1000:.0f} ms with the registry's start")


def _extra(name: str, costs: str) -> Found:
    try:
        return _ok(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return _missing("not installed", costs)


def _plug_ins() -> Found:
    versions = {
        entry.dist.name: entry.dist.version
        for entry in importlib.metadata.entry_points(group="pytest11")
        if entry.dist is not None
    }
    return _ok(", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "none")


LOOKS: Final = (
    Look("Python", _python),
    Look("system", _system),
    Look("psutil", _psutil),
    Look("RLIMIT_NOFILE", _file_numbers),
    Look("runtime directory", _runtime_directory, is_needed=True),
    Look("AF_UNIX path room", _path_room),
    Look("AF_UNIX packets", _seqpacket, is_needed=True),
    Look("peer credentials", _credentials, is_needed=True),
    Look("sharing", _sharing, is_needed=True),
    Look("pidfd", _pidfd),
    Look("pidfd of a peer", _peer_pidfd),
    Look("epoll", _epoll),
    Look("eventfd", _eventfd),
    Look("MADV_WIPEONFORK", _wipe_on_fork),
    Look("sealed memory", _common_page),
    Look("SO_COOKIE", _cookie),
    Look("dead file", _dead_file),
    Look("TCP's queues", _unacknowledged),
    Look("threads seen", _thread_facts),
    *(Look(f"start by {method}", partial(_start_method, method)) for method in START_METHODS),
    *(Look(f"transport {name}", partial(_transport, name)) for name in TRANSPORTS),
    *(Look(name, partial(_extra, name, costs)) for name, costs in _EXTRAS),
    Look("pytest plug-ins", _plug_ins),
)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the verb into the command line."""
    parser = verbs.add_parser(
        "doctor",
        help="what this machine offers, and what stands in for the rest",
        description="Look at what this machine offers, what stands in for the rest, and what that costs.",
        epilog="exit codes: 0 sockets can be shared here, 1 they cannot, 2 wrong command line",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=lambda arguments: _report(arguments.json))


def examine() -> tuple[tuple[Look, Found], ...]:
    """Take every look; one that fails in an unforeseen way is a thing that is missing."""
    found = []
    for look in LOOKS:
        try:
            found.append((look, look.look()))
        except Exception as error:
            found.append((look, _missing(f"{type(error).__name__}: {error}", "the look itself failed")))
    return tuple(found)


def _report(as_json: bool) -> int:
    everything = examine()
    lacking = [look.name for look, found in everything if look.is_needed and found.standing is Standing.MISSING]
    if as_json:
        print(json.dumps(_as_json(everything, usable=not lacking), indent=2))
    else:
        put(_page(everything, lacking, width_of()), sys.stdout)
    return 1 if lacking else 0


def _as_json(everything: tuple[tuple[Look, Found], ...], *, usable: bool) -> dict[str, Any]:
    """Return the looks as plain values. Within one `schema` number keys are added, never changed or removed."""
    return {
        "schema": SCHEMA,
        "usable": usable,
        "looks": [
            {
                "name": look.name,
                "standing": found.standing.value,
                "found": found.what,
                "costs": found.costs,
                "needed": look.is_needed,
            }
            for look, found in everything
        ],
    }


def _page(everything: tuple[tuple[Look, Found], ...], lacking: list[str], width: int) -> Iterator[Line]:
    names = max(len(look.name) for look, _ in everything)
    indent = 8 + 2 + names + 2
    for look, found in everything:
        first, *rest = textwrap.wrap(found.what, width - indent)
        standing = (f"{found.standing.value:<8}", _STYLES[found.standing])
        yield (standing, (f"  {look.name:<{names}}", "bold"), (f"  {first}", ""))
        yield from (((" " * indent + line, ""),) for line in rest)
        yield from (((" " * indent + line, "dim"),) for line in textwrap.wrap(found.costs, width - indent))
    yield ()
    count = {one: sum(found.standing is one for _, found in everything) for one in Standing}
    tally = ", ".join(f"{number} {one.value}" for one, number in count.items() if number)
    if lacking:
        yield ((f"sockets cannot be shared here ({', '.join(lacking)}); {tally}", _STYLES[Standing.MISSING]),)
    else:
        yield ((f"sockets can be shared here; {tally}", _STYLES[Standing.OK]),)
