"""The verb `errors`: the WSA codes this package speaks in, what each means here and what to do about it.

    sharedsock errors [CODE] [--json]

CODE is a number (10054), a name of Winsock's or POSIX's (WSAECONNRESET, ECONNRESET), or a class (OperationAborted).
Numbers, names, errno values and meanings come from `model.errors.WSA_TABLE`; what to do is told here, for every row.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sharedsock.cli.pages import Line, put, width_of
from sharedsock.model import errors as model_errors
from sharedsock.model.errors import WSA_TABLE, SharedSocketError, WSACode

__all__ = ["ADVICE", "add_parser", "classes_of", "find"]

SCHEMA: Final = 1
_GAP: Final = 2
_ROOM_FOR_CLASSES: Final = 100
_ABORTED: Final = "this process closed the descriptor: end the thread's work; .closed_by says who and where"

ADVICE: Final = {
    "WSAEINTR": f"{_ABORTED}. A select() ends so too",
    "WSAEBADF": "socket calls say 10038 instead; from elsewhere: the number is no open file",
    "WSAEACCES": "look at the rights of the address, or of the runtime directory, which must be yours alone (0700)",
    "WSAEFAULT": "give a buffer that is large enough and, for a receive, writable",
    "WSAEINVAL": "a ticket works once, in the process it was made for: mint one for each; else check the arguments",
    "WSAEMFILE": "raise RLIMIT_NOFILE or close something; `sharedsock doctor` shows the limit and what a socket takes",
    "WSAEWOULDBLOCK": "try again when it is ready; a refused close changed nothing: wait, or set SO_LINGER off or to 0",
    "WSAEINPROGRESS": "make the call after the callback or the other call has returned",
    "WSAEALREADY": "wait until the socket is writable, then ask SO_ERROR",
    "WSAENOTSOCK": "this process has closed the descriptor, or got it by a fork (ForkedDescriptor): use share(). "
    "LostDescriptor: something else here closes its file number; with SHAREDSOCK_DEBUG=1 the first use tells",
    "WSAEDESTADDRREQ": "connect the socket, or use sendto()",
    "WSAEMSGSIZE": "send a smaller datagram, or receive into a larger buffer",
    "WSAEPROTOTYPE": "leave the protocol 0, or take the one of the socket's type",
    "WSAENOPROTOOPT": "this kind of socket has no such option; linger needs connections",
    "WSAEPROTONOSUPPORT": "the system lacks the protocol; leave it 0",
    "WSAESOCKTNOSUPPORT": "the family has no sockets of this type",
    "WSAEOPNOTSUPP": "this kind of socket cannot do that: accept needs a listener, listen a stream",
    "WSAEAFNOSUPPORT": "the system lacks the address family, or the address is of another one",
    "WSAEADDRINUSE": "hand the listener over instead of its number; port 0 lets the kernel choose",
    "WSAEADDRNOTAVAIL": "no interface of this machine has the address",
    "WSAENETDOWN": "RegistryGone: open sockets go on; the next call that needs the registry starts it again",
    "WSAENETUNREACH": "no interface leads there; look at the routes",
    "WSAENETRESET": "connect again; the peer stopped answering keep-alives",
    "WSAECONNABORTED": "connect again; the connection ended on this side, or before it was accepted",
    "WSAECONNRESET": "the peer closed hard, or died with data unread; every holder of the socket sees it so",
    "WSAENOBUFS": "the kernel is out of buffers: close something, or wait",
    "WSAEISCONN": "use send(), or a new socket",
    "WSAENOTCONN": "connect first; after both ends have shut down there is no connection any more",
    "WSAESHUTDOWN": "a holder has shut this direction down, for all of them: send or receive no more",
    "WSAETIMEDOUT": "the peer or the network is silent: try again later, or wait longer",
    "WSAECONNREFUSED": "start the server; a shared listener refuses once its last holder has closed",
    "WSAEHOSTUNREACH": "the last router knows no way to the host",
    "WSAEPROCLIM": "fewer processes may use the subsystem at once",
    "WSASYSNOTREADY": "call WSPStartup again later",
    "WSAVERNOTSUPPORTED": "ask WSPStartup for a version the provider has",
    "WSANOTINITIALISED": "call WSPStartup first, and nothing after the last WSPCleanup",
    "WSAEDISCON": "the peer has finished in good order: close",
    "WSAEINVALIDPROVIDER": "the provider's entry is broken: correct what the catalog was given",
    "WSAEPROVIDERFAILEDINIT": "look at the error the provider's own start-up raised",
    "WSASYSCALLFAILURE": "an errno without a code of its own: .errno has it. InternalError: please report it",
    "WSATRY_AGAIN": "ask again, once the other side has made up its mind",
    "WSA_INVALID_HANDLE": "create the event, and use it before it is closed",
    "WSA_NOT_ENOUGH_MEMORY": "free memory, or raise the limit",
    "WSA_INVALID_PARAMETER": "check the overlapped structure and its event",
    "WSA_OPERATION_ABORTED": f"{_ABORTED}. cancel() ends it so too",
    "WSA_IO_INCOMPLETE": "ask again, or wait for the operation's result",
    "WSA_IO_PENDING": "no failure: the operation runs; wait for its result",
}  # fmt: skip


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the verb into the command line."""
    parser = verbs.add_parser(
        "errors",
        help="the WSA codes, what they mean here and what to do",
        description="List the WSA codes this package speaks in; with CODE, say what one means here and what to do.",
        epilog="exit codes: 0 told, 2 no such code (the nearest are named)",
        allow_abbrev=False,
    )
    parser.add_argument(
        "code", nargs="?", metavar="CODE", help="10054, WSAECONNRESET, ECONNRESET, ConnectionResetError ..."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=lambda arguments: _tell(parser, arguments))


def classes_of(row: WSACode) -> tuple[type[OSError], ...]:
    """Return the Python classes that carry a code: our own, a base before its kinds, and what an OSError becomes."""
    named = [getattr(model_errors, name) for name in model_errors.__all__]
    ours = [one for one in named if isinstance(one, type) and issubclass(one, SharedSocketError)]
    own = [one for one in ours if one is not SharedSocketError and one("").winerror == row.number]
    if row.name == "WSA_OPERATION_ABORTED":  # the same class as for a synchronous call, with the other number
        own = [model_errors.OperationAborted]
    own.sort(key=lambda one: len(one.__mro__))
    plain = [] if row.errno is None else [type(OSError(row.errno, ""))]
    # An interrupted call is tried again by the interpreter, and a bad number is ours to name: neither comes plain.
    if row.name in ("WSAEINTR", "WSAENOTSOCK", "WSA_OPERATION_ABORTED"):
        plain = []
    return (*own, *plain)


def find(text: str) -> tuple[WSACode, ...]:
    """Return the rows a number, a name or a class stands for; () if it is none.

    An errno the table has no row for stands for the row it becomes, as `wsa_number` says.
    """
    if text.isdecimal():
        return tuple(row for row in WSA_TABLE if row.number == int(text))
    name = text.upper()
    for is_meant in (
        lambda row: name in (row.name, row.name[3:]),
        lambda row: row.number == _number_of_errno(name),
        lambda row: name in map(str.upper, _class_names(row)),
    ):
        rows = tuple(filter(is_meant, WSA_TABLE))
        if rows:
            return rows
    return ()


def _number_of_errno(name: str) -> int | None:
    """Return the WSA number an errno becomes, by the errno's name; None if it is none."""
    code = getattr(errno, name, None) if name.startswith("E") else None
    return model_errors.wsa_number(code) if isinstance(code, int) else None


def _nearest(text: str) -> list[str]:
    """Return the names, or numbers, that come nearest to one there is not."""
    if text.isdecimal():
        near = sorted(WSA_TABLE, key=lambda row: (abs(row.number - int(text)), row.number))[:3]
        return [f"{row.number} {row.name}" for row in near]
    known = {row.name: row.name for row in WSA_TABLE}
    known |= {_errno_name(row): _errno_name(row) for row in WSA_TABLE if row.errno is not None}
    known |= {name.upper(): name for row in WSA_TABLE for name in _class_names(row)}
    return [known[name] for name in difflib.get_close_matches(text.upper(), known, n=3, cutoff=0.5)]


def _tell(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    rows = WSA_TABLE if arguments.code is None else find(arguments.code)
    if not rows:
        nearest = _nearest(arguments.code)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else "; without CODE, all are listed"
        parser.error(f"{arguments.code!r} is no code of the table{hint}")
    if arguments.json:
        print(json.dumps({"schema": SCHEMA, "errors": [_as_json(row) for row in rows]}, indent=2))
    elif arguments.code is None:
        put(_table(width_of()), sys.stdout)
    else:
        put(_pages(rows, width_of()), sys.stdout)
    return 0


def _table(width: int) -> Iterator[Line]:
    """Yield all rows, one line each; a meaning that finds no room goes on below, classes are left out first."""
    cells = [(f"{row.number:>5}", row.name, _errno_name(row), _classes_in_short(row)) for row in WSA_TABLE]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    heads = [" code", "name", "errno", "raised as"]
    if width < _ROOM_FOR_CLASSES:
        del widths[3]
    indent = sum(widths) + _GAP * len(widths)

    def columns(texts: Sequence[str]) -> str:
        return "".join(f"{text:<{size}}  " for text, size in zip(texts, widths, strict=False))

    yield ((columns(heads) + "meaning", "dim"),)
    for row, texts in zip(WSA_TABLE, cells, strict=True):
        first, *rest = textwrap.wrap(row.meaning, width - indent)
        yield ((columns(texts[:1]), "bold"), (columns(texts)[widths[0] + _GAP :], ""), (first, ""))
        yield from (((" " * indent + line, ""),) for line in rest)
    yield ()
    yield (("sharedsock errors CODE: what one means here, and what to do", "dim"),)


def _classes_in_short(row: WSACode) -> str:
    """Return the names of a code's classes without the kinds of one that is named."""
    own = [one for one in classes_of(row) if issubclass(one, SharedSocketError)]
    kinds = {one for one in own for other in own if one is not other and issubclass(one, other)}
    roots = [one for one in classes_of(row) if one not in kinds]
    return ", ".join(one.__name__ for one in roots)


def _pages(rows: tuple[WSACode, ...], width: int) -> Iterator[Line]:
    """Yield all there is to say of each row."""
    for place, row in enumerate(rows):
        if place:
            yield ()
        yield ((f"{row.name} ({row.number})", "bold"),)
        number = "none" if row.errno is None else f"{_errno_name(row)} ({row.errno})"
        for label, text in (
            ("errno", number),
            ("raised as", ", ".join(_class_names(row)) or "not raised by the Python face"),
            ("means", row.meaning),
            ("what to do", ADVICE[row.name]),
        ):
            first, *rest = textwrap.wrap(text, width - 14)
            yield ((f"  {label:<12}", "dim"), (first, ""))
            yield from (((" " * 14 + line, ""),) for line in rest)


def _as_json(row: WSACode) -> dict[str, Any]:
    """Return a row as plain values. Within one `schema` number keys are added, never changed or removed."""
    return {
        "code": row.number,
        "name": row.name,
        "errno": row.errno,
        "errno_name": _errno_name(row) or None,
        "classes": list(_class_names(row)),
        "meaning": row.meaning,
        "advice": ADVICE[row.name],
    }


def _class_names(row: WSACode) -> tuple[str, ...]:
    return tuple(one.__name__ for one in classes_of(row))


def _errno_name(row: WSACode) -> str:
    return "" if row.errno is None else errno.errorcode.get(row.errno, str(row.errno))
