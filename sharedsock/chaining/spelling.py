"""How a chain is spelled: JSON, a list of [import name, parameters] from the top down. No pickle, no eval (S-07).

What is spelled and read back is what every process makes its providers with, the first one as well: so a tuple is a
list everywhere. JSON's keys are texts; a dictionary with other keys travels as {"": [[key, value] ...]}.

A spelling from the registry is a peer's: a name must be two dotted names, and what it imports a `LayeredProvider`,
or nothing of it is called. Who may write to a registry has its key, and is this user already (S-06).
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any, Final

from sharedsock.model.errors import InvalidProvider
from sharedsock.model.winsock import MAX_PROTOCOL_CHAIN
from sharedsock.spi import LayeredProvider

__all__ = ["MOST_BYTES", "Layers", "import_name", "provider_class", "read", "spell"]

Layers = tuple[tuple[str, dict[str, Any]], ...]

MOST_BYTES: Final = 2048
"""What the registry's messages carry."""
_MOST_LAYERS: Final = MAX_PROTOCOL_CHAIN - 1  # the face itself is the base of the chain
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_name(kind: type) -> str:
    """Return the import name "package.module:Class" of a class.

    Raises:
        InvalidProvider: the name does not lead back to it, as that of a class in a function.
    """
    name = f"{kind.__module__}:{kind.__qualname__}"
    if provider_class(name) is not kind:
        raise InvalidProvider(f"{name} is another class now", import_name=name)
    return name


def provider_class(name: object) -> type[LayeredProvider]:
    """Import a provider's class by its name.

    Raises:
        InvalidProvider: no such name, or no layered, non-IFS provider.
    """
    module, _, path = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not _DOTTED.fullmatch(module) or not _DOTTED.fullmatch(path):
        raise InvalidProvider(f"{name!r} is no import name package.module:Class", import_name=str(name))
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module may fail as it likes
        text = f"the provider {name} cannot be imported here: {type(error).__name__}: {error}"
        raise InvalidProvider(text, import_name=str(name)) from error
    if not isinstance(found, type) or not issubclass(found, LayeredProvider) or found.is_ifs:
        raise InvalidProvider(f"{name} is no layered, non-IFS provider", import_name=str(name))
    return found


def spell(layers: Layers) -> str:
    """Spell a chain.

    Raises:
        TypeError: a parameter is no plain value. ValueError: none or too many layers, or too long a text.
    """
    if not 1 <= len(layers) <= _MOST_LAYERS:
        raise ValueError(f"a chain has 1 to {_MOST_LAYERS} layers, not {len(layers)}")
    text = json.dumps(_packed([[name, parameters] for name, parameters in layers]), separators=(",", ":"))
    if len(text) > MOST_BYTES:
        raise ValueError(f"the chain takes {len(text)} bytes to spell; {MOST_BYTES} can travel")
    return text


def read(text: str) -> Layers:
    """Read a spelling, which may be anything.

    Raises:
        InvalidProvider: it is none.
    """
    try:
        layers = _unpacked(json.loads(text))
        if not isinstance(layers, list) or not 1 <= len(layers) <= _MOST_LAYERS:
            raise ValueError(f"a chain has 1 to {_MOST_LAYERS} layers")
        for name, parameters in layers:
            is_named = isinstance(parameters, dict) and all(isinstance(key, str) for key in parameters)
            if not isinstance(name, str) or not is_named:
                raise ValueError("a layer is an import name and named parameters")
        return tuple((name, parameters) for name, parameters in layers)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidProvider(f"no spelling of a chain: {error}") from error


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(key, str) and key for key in value):
            return {key: _packed(item) for key, item in value.items()}
        return {"": [[_packed(key), _packed(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a provider's parameters are plain values, not {value!r}: another process is to make it as well")


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {""}:
            return {_unpacked(key): _unpacked(item) for key, item in value[""]}
        return {key: _unpacked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    return value
