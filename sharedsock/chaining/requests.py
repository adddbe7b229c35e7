"""OVERLAPPED CALLS over a chain: a request goes down from the top, and its completion comes up through every layer.

What comes up is the outcome of an `Operation`, as over no chain: done before `begin_*` returns where nothing has to
wait, ended with 995 by a close in this process. A layer sees the request and may refuse, change or delay it. A request
to send takes every byte, as overlapped sends of the SPI do; to connect and to accept have no overlapped form there.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from sharedsock.descriptors.overlapped import Operation
from sharedsock.kernel import numbers
from sharedsock.model.errors import OperationAborted
from sharedsock.model.winsock import WSA_OPERATION_ABORTED
from sharedsock.spi.overlapped import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor

__all__ = ["ChainedOperation", "aborted"]

T = TypeVar("T")


class ChainedOperation(Operation[T]):
    """A request at the top of a chain; `relay` is the structure that goes down.

    Attributes:
        begun: the operations it has become at the bottom; empty where a layer keeps it to itself.
    """

    # Not Operation's: nothing here has a station. What it says of itself is the same.
    def __init__(
        self,
        descriptor: Descriptor,
        kind: str,
        give: Callable[[int, Any], T],
        explain: Callable[[int, int], OSError],
    ) -> None:
        Future.__init__(self)
        self.kind = kind
        self.descriptor = descriptor.id
        self.begun: list[Operation[Any]] = []
        self.relay = Relay(self._end)
        self._sent = 0
        self._give = give
        self._explain = explain
        self._era = numbers.current_era()

    @property
    def bytes_transferred(self) -> int:
        """The bytes a send has queued so far."""
        return self._sent or sum(operation.bytes_transferred for operation in self.begun)

    def cancel(self) -> bool:
        """End the request alone, as `Operation.cancel`; False where a layer has it in hand."""
        if not self.done() and self.begun:
            self.begun[-1].cancel()  # its end comes up here at once, unless a layer holds it
        return self.cancelled()

    def _refuse_in_child(self) -> None:
        if not self.done():
            for operation in self.begun:
                operation._refuse_in_child()

    def refuse(self, error: OSError) -> None:
        """End with an error that the chain has answered the request with, unless it has ended."""
        if not self.done():
            self.set_exception(error.with_traceback(None))  # the frames hold the buffers

    def _end(self, error: int, count: int, flags: int, is_silent: bool) -> None:
        if self.done():
            return
        below = self.begun[-1] if self.begun else None
        self._sent = count
        if not error:
            self.set_result(self._give(count, self.relay.lpFrom))
        elif error == WSA_OPERATION_ABORTED and below is not None and below.cancelled():
            Future.cancel(self)
            self.set_running_or_notify_cancel()  # tells concurrent.futures.wait() and as_completed()
        else:
            self.set_exception(self._explain(error, count))


def aborted(kind: str, count: int, closed_by: str) -> OperationAborted:
    """Return what a request ends with that a close in this process has ended above the bottom of the chain."""
    text = f"{kind} ended: this process closed the descriptor in {closed_by}"
    error = OperationAborted(text, operation=kind, bytes_transferred=count, closed_by=closed_by)
    error.winerror = WSA_OPERATION_ABORTED
    return error
