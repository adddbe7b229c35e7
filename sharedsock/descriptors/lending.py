"""What this process has lent to programs without sharedsock, so that a registry in a dead one's place hears of it.

A lent reference is the registry's business while that lives: it ends with the borrower, whatever the lender does. After
a registry's death only the lender knows of it, also when he has closed his own descriptor meanwhile, as whoever hands a
socket to a subprocess does. So a loan is noted here, and told again as long as this process has a channel. Whether the
borrower is still that process, and no other one with its number, is for the registry to say.

Keeps I2: a lent reference is counted until the borrower's end, whatever registry counts. A forked child lends nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from sharedsock.model.errors import TicketError

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.model.identity import DescriptorId, ProcessId
    from sharedsock.registry.client import Client

__all__ = ["forget_all", "lend", "lend_again", "loans_of"]

_WORTH_PRUNING: Final = 64


class Loan(NamedTuple):
    """One lent reference: through which descriptor, to which process instance, since when."""

    descriptor: Descriptor
    target: ProcessId
    since_s: float


_loans: dict[tuple[DescriptorId, int], Loan] = {}
_prune_at = _WORTH_PRUNING


def lend(client: Client, descriptor: Descriptor, target: int, since_s: float) -> None:
    """Have a reference counted that ends with a process, and note it."""
    assert descriptor.socket_id is not None
    borrower = client.lend(descriptor.socket_id, descriptor.id, target, since_s)
    if len(_loans) >= _prune_at:
        _prune()
    _loans[descriptor.id, target] = Loan(descriptor, borrower, since_s)


def loans_of(client: Client) -> list[Loan]:
    """Return what has been lent through a registry, as far as it may not have ended."""
    return [loan for loan in _loans.copy().values() if loan.descriptor.client is client]


def lend_again(client: Client, loan: Loan) -> None:
    """Have a loan counted by a registry that has counted its descriptor; one that has ended is forgotten."""
    descriptor, target, since_s = loan
    assert descriptor.socket_id is not None
    try:
        client.lend(descriptor.socket_id, descriptor.id, target.pid, since_s, target.start_ticks)
    except TicketError:
        _forget(loan)


def forget_all() -> None:
    """In a forked child: the loans are the parent's."""
    _loans.clear()


def _prune() -> None:
    """Forget the loans of borrowers that have ended, as far as their numbers tell."""
    global _prune_at
    for loan in _loans.copy().values():
        try:
            os.kill(loan.target.pid, 0)
        except ProcessLookupError:
            _forget(loan)
        except PermissionError:  # another user's by now: the registry finds out
            pass
    _prune_at = max(_WORTH_PRUNING, 2 * len(_loans))


def _forget(loan: Loan) -> None:
    with suppress(KeyError):
        del _loans[loan.descriptor.id, loan.target.pid]
    if loan.descriptor.client is not None:
        loan.descriptor.client.forget_lent(loan.descriptor.id, loan.target.pid)
