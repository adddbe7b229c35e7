"""Which modules this process has imported: the instruments look into those, and import none themselves."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["loaded"]


def loaded(name: str) -> ModuleType | None:
    """Return a module that has been imported; None while nobody has, or while another thread is in the middle of it.

    In the middle, `sys.modules` has it already, and it has not all of its names yet.
    """
    module = sys.modules.get(name)
    return None if getattr(getattr(module, "__spec__", None), "_initializing", False) else module
