"""A ResourceWarning that says where: "unclosed <socket …>, opened at app.py:5 in connect".

The interpreter warns when a socket or file is collected without close, with the object at hand and no word of where it
came from. While somebody knows (see `origins`), the place is added on the two ways such a warning takes: to whoever
shows or records warnings, and, where warnings are errors, to `sys.unraisablehook`, since a finalizer cannot raise.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

__all__ = ["add_places", "stop_adding"]

_PlaceOf = Callable[[object], str]

# The standard library's only door with the object: `showwarning`, the public one, is not told of it.
_DOOR: Final = "_showwarnmsg"
_before: Final[dict[str, Any]] = {}
_ours: Final[dict[str, Any]] = {}


def add_places(place_of: _PlaceOf) -> None:
    """Add to each ResourceWarning from now on what `place_of` says of its object; "" adds nothing.

    Again: no effect, but where somebody has put something else in our place meanwhile.
    """
    if hasattr(warnings, _DOOR) and getattr(warnings, _DOOR) is not _ours.get("shown"):
        before = getattr(warnings, _DOOR)
        _before["shown"], _ours["shown"] = before, _showing(before, place_of)
        setattr(warnings, _DOOR, _ours["shown"])
    if sys.unraisablehook is not _ours.get("raised"):
        _before["raised"] = sys.unraisablehook
        _ours["raised"] = sys.unraisablehook = _unraisable(sys.unraisablehook, place_of)


def stop_adding() -> None:
    """Put everything back that is still ours."""
    if _ours and getattr(warnings, _DOOR, None) is _ours.get("shown"):
        setattr(warnings, _DOOR, _before["shown"])
    if _ours and sys.unraisablehook is _ours["raised"]:
        sys.unraisablehook = _before["raised"]
    _before.clear()
    _ours.clear()


def _showing(before: Any, place_of: _PlaceOf) -> Any:
    def show(message: Any) -> None:
        if message.source is not None and issubclass(message.category, ResourceWarning):
            message.message = _placed(message.message, message.source, place_of)
        before(message)

    return show


def _unraisable(before: Any, place_of: _PlaceOf) -> Any:
    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, ResourceWarning) and unraisable.object is not None:
            unraisable.exc_value.args = _placed(unraisable.exc_value, unraisable.object, place_of).args
        before(unraisable)

    return hook


def _placed(warning: Any, source: object, place_of: _PlaceOf) -> Any:
    place = place_of(source)
    # A SharedSocket's own warning says it already.
    return (
        warning
        if not place or place.partition(" by ")[0] in str(warning)
        else ResourceWarning(f"{warning}, opened at {place}")
    )
