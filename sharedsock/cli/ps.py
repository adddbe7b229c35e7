"""`sharedsock ps` and `sharedsock tree`: the registries that live, their sockets, who holds them, and what waits.

`ps` is by socket, `tree` by process. A registry is found by its directory, where only its user can look; being asked
keeps it alive for a moment longer, and changes nothing else. Pending operations are known of processes that belong to a
run of the pytest plug-in: only those answer when they are asked for their stacks.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time
from contextlib import suppress
from typing import Any, Final

from sharedsock.model.identity import Holder, SocketFacts
from sharedsock.registry.client import Client
from sharedsock.registry.directory import SOCKET_FILE, new_directory_name
from sharedsock.testing.runs import runs_below
from sharedsock.testing.stacks import look_at

__all__ = ["add_parser", "registries", "survey"]

_PREFIX: Final = "sharedsock-"
_CLEAR: Final = "\x1b[H\x1b[2J"


def add_parser(verbs: Any) -> None:
    """Add the verbs `ps` and `tree`."""
    for name, handler, help in (
        ("ps", ps, "live registries: sockets, holders, counts, what waits"),
        ("tree", tree, "the same by process"),
    ):
        parser = verbs.add_parser(name, help=help, description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
        parser.add_argument("--watch", type=_interval, metavar="SECONDS", help="show it again and again")
        parser.add_argument("--json", action="store_true", help="one JSON document (with --watch: one in each line)")
        parser.set_defaults(handler=handler)


def _interval(text: str) -> float:
    with suppress(ValueError):
        seconds = float(text)
        if 0.1 <= seconds <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no time between 0.1 and 3600 seconds")


# -- looking ------------------------------------------------------------------------------------------------------


def registries() -> list[str]:
    """Return the runtime directories of this user that have a registry's socket."""
    bases = dict.fromkeys([os.path.dirname(new_directory_name()), os.environ.get("TMPDIR", "/tmp"), "/tmp"])
    found = []
    for base in bases:
        with suppress(OSError):
            for name in sorted(os.listdir(base)):
                path = os.path.join(base, name)
                with suppress(OSError):
                    is_ours = name.startswith(_PREFIX) and os.lstat(path).st_uid == os.geteuid()
                    if is_ours and os.path.exists(os.path.join(path, SOCKET_FILE)):
                        found.append(path)
    return found


def survey() -> list[dict[str, Any]]:
    """Return what each live registry counts, as JSON takes it; one that is just ending is left out."""
    pending = _pending()
    found = []
    for path in registries():
        client = Client(path)
        try:
            client.connect(start=False)
            statistics = client.statistics()
            sockets = [
                _socket(facts, count, client.holders(facts.socket), pending) for facts, count in client.sockets()
            ]
        except OSError:
            continue
        finally:
            with suppress(OSError):
                client.close()
        found.append(
            {
                "registry": path,
                "pid": statistics.pid,
                "clients": statistics.clients - 1,  # less ourselves
                "descriptors": statistics.descriptors,
                "tickets": statistics.tickets,
                "sockets": sockets,
            }
        )
    return found


def _socket(
    facts: SocketFacts, count: int, holders: tuple[Holder, ...], pending: dict[tuple[int, int], list[dict[str, Any]]]
) -> dict[str, Any]:
    return {
        "socket": f"{facts.socket:#x}",
        "family": _name(socket.AddressFamily, facts.family),
        "type": _name(socket.SocketKind, facts.type),
        "references": count,
        "holders": [
            {
                "pid": holder.pid,
                "name": holder.name,
                "kind": holder.kind,
                "descriptor": holder.descriptor,
                "opened_at": holder.opened_at,
                "since_s": holder.since_s,
                "pending": pending.get((holder.pid, holder.descriptor), []),
            }
            for holder in sorted(holders, key=lambda one: one.since_s)
        ],
    }


def _name(kind: Any, number: int) -> str:
    try:
        return str(kind(number).name)
    except ValueError:
        return str(number)


def _pending() -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return what waits in the processes of live runs, by process and descriptor."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for run in runs_below():
        if run.is_alive():
            for pid, look in look_at(run.processes(), run.directory).items():
                for row in look.known.get("pending", ()):
                    shown = {"kind": row["kind"], "thread": row["thread"], "for_s": round(row["since_s"], 3)}
                    found.setdefault((pid, row["descriptor"]), []).append(shown)
    return found


# -- showing ------------------------------------------------------------------------------------------------------


def ps(arguments: argparse.Namespace) -> int:
    """Show registries by socket; return 0, or 1 if there is none."""
    return _show(arguments, _by_socket)


def tree(arguments: argparse.Namespace) -> int:
    """Show registries by process; return 0, or 1 if there is none."""
    return _show(arguments, _by_process)


def _show(arguments: argparse.Namespace, draw: Any) -> int:
    while True:
        found = survey()
        if arguments.json:
            print(json.dumps(found, indent=None if arguments.watch else 2))
        else:
            if arguments.watch and sys.stdout.isatty():
                print(_CLEAR, end="")
            lines = [line for registry in found for line in draw(registry)]
            print("\n".join(lines or ["no registry lives"]))
        if not arguments.watch:
            return 0 if found else 1
        sys.stdout.flush()
        select.poll().poll(arguments.watch * 1000)


def _head(registry: dict[str, Any]) -> str:
    return (
        f"registry {registry['registry']}, process {registry['pid']}: {registry['clients']} clients, "
        f"{len(registry['sockets'])} sockets, {registry['descriptors']} descriptors, {registry['tickets']} tickets"
    )


def _by_socket(registry: dict[str, Any]) -> list[str]:
    lines = [_head(registry)]
    for one in registry["sockets"]:
        lines.append(f"  socket {one['socket']} {one['family']} {one['type']}, {one['references']} references")
        lines += [f"    {line}" for holder in one["holders"] for line in _of_holder(holder)]
    return lines


def _by_process(registry: dict[str, Any]) -> list[str]:
    lines = [_head(registry)]
    processes: dict[tuple[int, str], list[str]] = {}
    for one in registry["sockets"]:
        for holder in one["holders"]:
            rows = processes.setdefault((holder["pid"], holder["name"]), [])
            first, *more = _of_holder(holder, is_named=False)
            rows += [f"{first}, socket {one['socket']} {one['family']} {one['type']}", *more]
    for (pid, name), rows in sorted(processes.items()):
        lines.append(f"  process {pid} {name}" if pid else "  whoever comes first")
        lines += [f"    {row}" for row in rows]
    return lines


def _of_holder(holder: dict[str, Any], *, is_named: bool = True) -> list[str]:
    who = f"process {holder['pid']} {holder['name']}: " if holder["pid"] else "whoever comes first: "
    number = f" {holder['descriptor']}" if holder["descriptor"] else ""
    since = time.strftime("%H:%M:%S", time.localtime(holder["since_s"]))
    lines = [f"{who if is_named else ''}{holder['kind']}{number} since {since}, opened at {holder['opened_at']}"]
    for row in holder["pending"]:
        lines.append(f"  pending {row['for_s']:.1f} s: {row['kind']} in thread {row['thread']}")
    return lines
