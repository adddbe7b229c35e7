"""A layer that misbehaves at chosen calls: refusals, resets and stalls, all from one seed.

    spi.WSCInstallProvider(Chaos, tcp, seed=7, reset=0.01, refuse=0.2)           # so often, drawn from the seed
    spi.WSCInstallProvider(Chaos, tcp, at={"WSPSend": {3: "reset"}})             # the third send of each socket

A *refusal* is an answer of the network's (10061 for a connect, 10055 for anything else) and changes nothing. A *reset*
ends the connection for every sharer and both ends: 10054 here. A *stall* holds the call for `stall_s` seconds, or
until this process closes the handle, which ends it with 10004; then it goes on as usual.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sharedsock.model.winsock import (
    SIO_RESET_CONNECTION,
    WSAECONNREFUSED,
    WSAECONNRESET,
    WSAEINVAL,
    WSAENOBUFS,
)
from sharedsock.spi.errors import WSAError
from sharedsock.spi.layered import Layer, LayeredProvider
from sharedsock.spi.seeded import SeededLayer, SeededProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Provider

__all__ = ["Chaos"]

FAULTS: Final = ("refuse", "reset", "stall")
CALLS: Final = ("WSPAccept", "WSPConnect", "WSPRecv", "WSPRecvFrom", "WSPSend", "WSPSendTo")


class _Luck(SeededLayer):
    """One socket's luck: how often each call was made, and whether it was reset."""

    def __init__(self, provider: LayeredProvider, lower: int, info: WSAPROTOCOL_INFO) -> None:
        super().__init__(provider, lower, info)
        self.calls: Counter[str] = Counter()
        self.is_reset = False


class Chaos(SeededProvider[_Luck]):
    """Lets calls fail.

    Args:
        refuse, reset, stall: how often, 0 to 1, a call meets each fault.
        stall_s: how long a stall holds.
        at: call -> nth time on its socket, from 1 -> "refuse", "reset" or "stall".
        seed: of all that is drawn; the nth socket of a process has the same luck in every run.
    """

    context_class: ClassVar[type[Layer]] = _Luck

    def __init__(
        self,
        lower: Provider,
        lower_info: WSAPROTOCOL_INFO,
        refuse: float = 0.0,
        reset: float = 0.0,
        stall: float = 0.0,
        stall_s: float = 0.1,
        at: Mapping[str, Mapping[int, str]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(lower, lower_info, seed)
        self._rates = (refuse, reset, stall)
        self._stall_s = stall_s
        self._at = at or {}
        for call, faults in self._at.items():
            if call not in CALLS or not set(faults.values()) <= set(FAULTS):
                raise WSAError(WSAEINVAL, f"{call}: {dict(faults)}: faults are {FAULTS}, at calls {CALLS}")

    def meet(self, call: str, s: int) -> None:
        """Let this call meet its fault, if it is to have one."""
        luck = self.layer(s)
        if luck.is_reset:
            raise WSAError(WSAECONNRESET)
        luck.calls[call] += 1
        drawn = luck.random.random()
        fault = self._at.get(call, {}).get(luck.calls[call])
        for name, rate in zip(FAULTS, self._rates, strict=True):
            if fault is None and drawn < rate:
                fault = name
            drawn -= rate
        if fault == "refuse":
            raise WSAError(WSAECONNREFUSED if call == "WSPConnect" else WSAENOBUFS, "refused by chaos")
        if fault == "reset":
            luck.is_reset = True
            with suppress(WSAError):  # a socket without connections has none to reset
                self.lower.WSPIoctl(luck.lower, SIO_RESET_CONNECTION)
            raise WSAError(WSAECONNRESET, "reset by chaos")
        if fault == "stall":
            luck.pause(self._stall_s)


def _unlucky(name: str) -> Callable[..., Any]:
    call = getattr(LayeredProvider, name)

    @wraps(call)
    def unlucky(self: Chaos, s: int, *arguments: Any, **keywords: Any) -> Any:
        self.meet(name, s)
        return call(self, s, *arguments, **keywords)

    return unlucky


for _name in CALLS:
    setattr(Chaos, _name, _unlucky(_name))
