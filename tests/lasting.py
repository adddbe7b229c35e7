"""A program for tests that leave a process behind: it lasts as long as whoever has started it, and no longer."""

from __future__ import annotations

from typing import Final

__all__ = ["LASTING"]

# Run by `python -S -c LASTING pid`: ends with that parent, also with one that ended before it could ask for that.
LASTING: Final = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) and signal.pause()"
)
