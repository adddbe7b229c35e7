"""Nothing of `socket.socket` is inherited by accident: what SharedSocket does not define itself is listed, with why."""

from __future__ import annotations

import _socket
import inspect
import socket
from typing import Any

import pytest

import sharedsock as ss
from sharedsock import sharedsocket

# Names that SharedSocket takes over from socket.socket unchanged, and why that is right.
INHERITED = {
    "__enter__": "returns self",
    "__slots__": "the stdlib's own attributes",
    "__weakref__": "as any object's",
    "_closed": "kept by close() and makefile() as in the stdlib",
    "_io_refs": "how many makefile() objects are open",
    "_decref_socketios": "calls our close() when the last makefile() object is closed after ours",
    "makefile": "reads and writes through our recv_into and send",
    "_check_sendfile_params": "looks at the file only",
    "_sendfile_use_send": "sends through our send; its wait for room is ours as well",
    "__doc__": "",
    "__module__": "",
    "__firstlineno__": "3.13: where a class begins in its file",
    "__static_attributes__": "3.13: what a class assigns to self",
}
# Machinery of every object and type.
OBJECT = set(dir(object)) | {"__dict__"}
# The class and what it is put together from, down to socket.socket.
OURS = ss.SharedSocket.__mro__[: ss.SharedSocket.__mro__.index(socket.socket)]
OWN = {name for kind in OURS for name in vars(kind)}


def test_each_name_of_socket_is_defined_here_or_listed() -> None:
    missing = set(dir(socket.socket)) - OWN - set(INHERITED) - OBJECT
    assert not missing, f"inherited by accident: {sorted(missing)}"


def test_each_name_of_the_c_type_is_defined_here() -> None:
    """A C method reached by accident would work on the number the C part does not have."""
    reached = {name for name, value in vars(_socket.socket).items() if callable(value) or name in ("timeout", "type")}
    assert not reached - OWN - OBJECT


@pytest.mark.parametrize("name", ["__init__", "__repr__", "__reduce_ex__", "__getstate__"])
def test_what_object_has_as_well_is_ours_where_socket_has_its_own(name: str) -> None:
    assert name in OWN


def test_the_list_names_nothing_that_is_not_inherited() -> None:
    of_each_class = {"__slots__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"}
    assert set(INHERITED) - of_each_class <= set(dir(socket.socket))
    assert not (set(INHERITED) - of_each_class) & OWN


def test_it_is_a_socket_whose_c_part_never_has_a_number() -> None:
    with ss.SharedSocket(socket.AF_INET, socket.SOCK_STREAM) as shared:
        assert isinstance(shared, socket.socket)
        assert issubclass(ss.SharedSocket, socket.socket)
        assert _socket.socket.fileno(shared) == -1
        assert shared.fileno() >= 0


@pytest.mark.parametrize("name", ["makefile", "accept", "sendfile", "detach", "dup", "close", "get_inheritable"])
def test_parameters_keep_their_names(name: str) -> None:
    """Of the methods the stdlib writes in Python; C methods take theirs by position, as ours do."""
    theirs = inspect.signature(getattr(socket.socket, name))
    assert list(inspect.signature(getattr(ss.SharedSocket, name)).parameters) == list(theirs.parameters)


def test_everything_promised_is_there() -> None:
    """DESIGN.md 3: the public names of the face."""
    for name in "share ticket close abort descriptor references holders pending_operations lend".split():
        assert hasattr(ss.SharedSocket, name)
    for name in sharedsocket.__all__:
        assert getattr(ss, name) is getattr(sharedsocket, name)


def test_constants_of_the_type_are_enums_as_in_the_stdlib() -> None:
    with ss.SharedSocket(socket.AF_INET6, socket.SOCK_DGRAM) as shared:
        family: Any = shared.family
        kind: Any = shared.type
        assert isinstance(family, socket.AddressFamily)
        assert isinstance(kind, socket.SocketKind)
        assert (family, kind, shared.proto) == (socket.AF_INET6, socket.SOCK_DGRAM, 0)
