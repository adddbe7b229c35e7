"""`use_provider`: what lies under the sockets that this process opens from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sharedsock.chaining import spelling
from sharedsock.chaining.stacks import Stacks
from sharedsock.descriptors import providing

if TYPE_CHECKING:
    from sharedsock.descriptors.providing import Chain

__all__ = ["Use", "use_provider"]


class Use:
    """What `use_provider` returns: as a context manager, it puts back at its end what was there before."""

    def __init__(self, before: Chain | None) -> None:
        self._before = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        providing.current = self._before


def use_provider(*layers: Any, **parameters: Any) -> Use:
    """Put a chain of layered providers under every SharedSocket that this process opens from now on.

        with sharedsock.use_provider(spi.Chaos, at={"WSPSend": {3: "reset"}}):
            run_the_program()

    Other processes: a socket takes its chain along. Whoever gets it, by ticket, pickle or as an argument of a process,
    has the same providers under it, made there of their import names and parameters. Sockets that were opened before
    keep what they have; accepted clients have what their listener has. In a child nothing is in use at first.

    Args:
        layers: from the top down, each a subclass of `spi.LayeredProvider`, or its import name "package.module:Class",
            or a pair of either and its parameters. None, alone: nothing lies under what is opened from now on.
        parameters: those of the only layer; plain values, which JSON can carry.

    Raises:
        InvalidProvider: a class cannot be imported by its name, is no layer, or does not take its parameters (10105).
        TypeError, ValueError: a parameter that is no plain value; more than 2 KiB, or six layers, in all.
    """
    before = providing.current
    if layers == (None,) and not parameters:
        providing.current = None
        return Use(before)
    if parameters and (len(layers) != 1 or isinstance(layers[0], tuple)):
        raise TypeError("keyword parameters are those of one layer; of several, each is a pair (class, {parameters})")
    named = []
    for layer in layers:
        kind, own = layer if isinstance(layer, tuple) else (layer, parameters)
        named.append((kind if isinstance(kind, str) else spelling.import_name(kind), dict(own)))
    providing.current = Stacks(spelling.spell(tuple(named)))
    return Use(before)
