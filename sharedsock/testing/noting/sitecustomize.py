"""Run by every Python program that `sharedsock leaks -- CMD` starts: notes there where things are opened.

Its directory stands first in PYTHONPATH, so Python imports this before the program begins. Nothing is to break by it:
an interpreter without sharedsock notes nothing, and the sitecustomize that would have run without us runs after us.
"""

import importlib
import os
import sys

__all__ = ()

_HERE = os.path.dirname(os.path.abspath(__file__))


def _note() -> None:
    try:
        from sharedsock.testing.origins import Recording
    except ImportError:
        return
    Recording().start()


def _pass_on() -> None:
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _HERE]
    ours = sys.modules.pop(__name__)
    try:
        importlib.import_module(__name__)
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, ours)  # whoever is importing us expects to find something


_note()
_pass_on()
