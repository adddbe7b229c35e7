"""THE START of a registry: exactly one per directory, as a process that is nobody's child.

Whoever finds no registry takes the start lock; under it a registry that is alive is left alone, and otherwise a new
one is started and waited for (rule 15, F-05, F-77). A starter that dies gives the lock back by dying (F-06): the next
one finds either the registry that the dead one had started, or none.

The process is a plain subprocess, not a multiprocessing child: daemonic workers may not have those. It forks once more,
so that it belongs to nobody and the starter has nothing to reap later; own session, standard streams on /dev/null,
cwd "/", no descriptors but the pipe on which it reports (S-16). The key is drawn by the registry itself: it is in no
argument and no environment (S-06).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Final

from sharedsock.model.errors import RegistryGone, with_winerror
from sharedsock.registry import runtime
from sharedsock.registry.holders import has_holders
from sharedsock.registry.numbers import close_number, keep_number, kept, undivided

if TYPE_CHECKING:
    from subprocess import Popen

__all__ = ["START_TIMEOUT_S", "remove_abandoned", "remove_if_abandoned", "run_registry", "start"]

START_TIMEOUT_S: Final = 10.0
# The package's own __init__ brings both faces and the data plane, which a registry has no use for: an empty package of
# the same name in its place takes a quarter off the start (115 -> 87 ms), and leaves no hook of ours at its fork.
_CODE: Final = (
    "import sys, types; package = types.ModuleType('sharedsock'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['sharedsock'] = package; from sharedsock.registry.launch import run_registry; run_registry()"
)
_READY: Final = b"R"  # the first byte of the report: the registry serves; anything else is the reason why it does not


def start(path: str, timeout_s: float = START_TIMEOUT_S) -> bool:
    """See to it that a registry lives in a runtime directory; report whether this call has started it.

    On return the registry is either ready, or was alive already and may still be on its way to its address.

    Raises:
        RegistryGone: it could not be started within `timeout_s`; the cause says why.
        PermissionError: the directory is not one we use (S-02).
        OSError: EMFILE, no number is free.
    """
    try:
        return _start(path, timeout_s)
    except OSError as error:
        with_winerror(error)
        raise


def _start(path: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    try:
        directory, lock = runtime.acquire_start_lock(path, timeout_s)
    except PermissionError:
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise RegistryGone(f"no registry can be started in {path}: {error.strerror}") from error
    try:
        if runtime.is_alive(directory):
            return False
        try:
            _launch(path, deadline)
        except RegistryGone:
            if runtime.is_alive(directory):  # one that a dead starter had left behind was faster (F-06)
                return False
            raise
        return True
    finally:
        runtime.release_lock(lock)
        close_number(directory)


def remove_if_abandoned(path: str) -> bool:
    """Remove a runtime directory whose registry was killed and that no holder is left of; report whether it was that.

    Other processes: whoever starts a registry there meanwhile holds the start lock, and then it stays (S-02, S-03).
    """
    try:
        directory = kept(lambda: runtime.open_directory(path))
    except OSError:
        return False
    lock: int | None = None
    try:
        lock = runtime.try_start_lock(directory)
        if lock is None or runtime.is_alive(directory) or has_holders(directory):
            return False
        runtime.remove_directory(path, directory)
        return True
    except OSError:
        return False
    finally:
        if lock is not None:
            runtime.release_lock(lock)
        close_number(directory)


def remove_abandoned(base: str, *, older_than_s: float = START_TIMEOUT_S) -> None:
    """Remove the directories that killed registries have left in a place, if nothing has changed there for a while.

    Whoever has just made one and not locked it yet must find it again: hence the age.
    """
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            if runtime.is_directory_name(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime >= older_than_s:
                        remove_if_abandoned(entry.path)


def _launch(path: str, deadline: float) -> None:
    """Start the process and wait until it reports, or until it is gone without a report."""
    process: Popen[bytes] | None = None
    pipe: list[int] = []
    try:
        undivided(lambda: pipe.extend(_noted_pipe()))
        process = _spawn(path, pipe[1])
        close_number(pipe.pop())
        report = _wait_report(pipe[0], deadline)
    except OSError as error:
        if isinstance(error, RegistryGone) or error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise RegistryGone(f"the registry process cannot be started: {error.strerror}") from error
    finally:
        while pipe:
            close_number(pipe.pop())
        if process is not None:
            _reap(process)
    if report[:1] != _READY:
        reason = report.decode("utf-8", "replace") or "it ended without a word"
        raise RegistryGone(f"the registry process did not start: {reason}")


def _noted_pipe() -> tuple[int, int]:
    ends = os.pipe()
    for number in ends:
        keep_number(number)
    return ends


def _spawn(path: str, ready: int) -> Popen[bytes]:
    import subprocess

    return subprocess.Popen(
        [_interpreter(), "-S", "-P", "-c", _CODE, _package(), path, str(ready)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_environment(),
        close_fds=True,
        pass_fds=(ready,),
        start_new_session=True,
    )


def _interpreter() -> str:
    if not sys.executable:
        raise RegistryGone("this interpreter does not know its executable: set sys.executable, or SHAREDSOCK_REGISTRY")
    return sys.executable


def _package() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _environment() -> dict[str, str]:
    """Return the registry's environment: ours, without what would change an interpreter's course."""
    environment = dict(os.environ)
    for name in ("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONFAULTHANDLER"):
        environment.pop(name, None)
    return environment


def _wait_report(number: int, deadline: float) -> bytes:
    """Return what the registry reports; empty: it has gone without a word.

    Raises:
        RegistryGone: no report in time.
    """
    poller = select.poll()
    poller.register(number, select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise RegistryGone("the registry process did not become ready in time")
        if poller.poll(left_s * 1000 + 1):
            return os.read(number, 512)


def _reap(process: Popen[bytes]) -> None:
    """Take the first of the two processes off our hands: it has forked and ended, or it never will."""
    try:
        if process.poll() is None:
            # It ends right after its fork, which comes before any report: this waits for an exit that is under way, or
            # for one we cause. Its own session is dead with it only if it had not forked yet.
            process.kill()
    finally:
        process.wait()


def run_registry() -> None:
    """The body of the process: let go of the starter, then serve. Arguments: the directory, and the pipe's number."""
    import signal

    path, ready = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.set_inheritable(ready, False)
    if os.fork():
        os._exit(0)
    try:
        from sharedsock.registry.server import main

        main(path, ready)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(ready, f"{type(error).__name__}: {error}".encode()[:500])
        raise
