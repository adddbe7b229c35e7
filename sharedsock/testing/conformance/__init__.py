"""The promises of the Winsock SPI as a kit that runs against anybody's provider, over real processes.

    report = check_provider(MyProvider)              # raises NotConforming, which names each promise that was not kept
    check_provider("my.package:MyProvider", depth=3) # parameters are the provider's own

A layered provider is put on TCP over IPv4; another one is given that entry to serve. Each promise is tried with two
forked actors, A and B, that share a connection whose far end is a plain socket of this process; whatever hangs is
killed, and has failed. What is counted (WPUCloseSocketHandle) is counted by upcalls that the kit gives the provider.

Source: the rules named beside each promise.

promises.py    what is promised
promising.py   what a promise is, and what comes of one that is not kept
stage.py       where a promise is tried: two actors, and connections
calls.py       what the actors do
"""

from __future__ import annotations

from typing import Any

from sharedsock import spi
from sharedsock.model.winsock import AF_INET, SOCK_STREAM
from sharedsock.testing.conformance import promises as promises  # enters them
from sharedsock.testing.conformance.promising import PROMISES, Broken, Failure, NotConforming
from sharedsock.testing.conformance.stage import Stage
from sharedsock.testing.outcomes import ActorRaised
from sharedsock.testing.pending import ActorDied, ActorTimeout

__all__ = ["PROMISES", "Failure", "NotConforming", "check_provider"]


def check_provider(provider: type[spi.Provider] | str, **parameters: Any) -> tuple[str, ...]:
    """Try every promise on a provider; return their names.

    Args:
        provider: its class, or the import name of it.
        parameters: its own.

    Raises:
        NotConforming: promises were not kept; each is named, with what happened instead.
    """
    below = next(
        info
        for info in spi.WSCEnumProtocols()
        if (info.iAddressFamily, info.iSocketType) == (AF_INET, SOCK_STREAM) and len(info.ProtocolChain) == 1
    )
    entry = spi.WSCInstallProvider(provider, below, **parameters)
    failures: list[Failure] = []
    stage: Stage | None = None
    try:
        for promise in PROMISES:
            stage = stage or Stage(entry)
            try:
                promise.check(stage)
            except (Broken, ActorTimeout, ActorDied, ActorRaised, OSError) as error:
                reason = str(error).splitlines()[0]
                failures.append(Failure(promise.name, promise.rules, reason))
                # What is left of the promise (a hung thread, an open handle) is no business of the next one.
                stage.end(is_hung=True)
                stage = None
    finally:
        if stage is not None:
            stage.end(is_hung=False)
        spi.WSCDeinstallProvider(entry.dwCatalogEntryId)
    if failures:
        raise NotConforming(str(provider), tuple(failures))
    return tuple(promise.name for promise in PROMISES)
