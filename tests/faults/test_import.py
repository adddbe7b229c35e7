"""Where the package cannot keep its promises it says so at import."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sharedsock

PACKAGE = Path(sharedsock.__file__).parent


def run(text: str) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


SUBINTERPRETER = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    program = '''
    try:
        import sharedsock
    except ImportError as error:
        print(error, flush=True)
    else:
        print("imported", flush=True)
    '''
    import textwrap, warnings
    made = interpreters.create()
    interpreters.run_string(made, textwrap.dedent(program))
    interpreters.destroy(made)
"""


@pytest.mark.fault("F-121", "I10")
def test_a_subinterpreter_is_told_that_it_cannot() -> None:
    """Its fork hooks would not run in a fork of another interpreter: a child would keep its sockets open."""
    assert run(SUBINTERPRETER).startswith("sharedsock works in the main interpreter only")


@pytest.mark.fault("F-121", "I10")
def test_an_interpreter_without_its_lock_is_told_that_it_cannot() -> None:
    program = """
        import sys
        sys._is_gil_enabled = lambda: False
        try:
            import sharedsock
        except ImportError as error:
            print(error)
    """
    assert run(program).startswith("sharedsock needs the global interpreter lock")


@pytest.mark.fault("F-121")
def test_an_interpreter_with_its_lock_is_welcome() -> None:
    assert run("import sys; sys._is_gil_enabled = lambda: True; import sharedsock; print('imported')") == "imported"


@pytest.mark.fault("S-18")
def test_no_descriptor_is_taken_out_of_another_process() -> None:
    """Neither by pidfd_getfd, by name or by number, nor through /proc/<pid>/fd: only SCM_RIGHTS and inheritance."""
    numbers = {438}  # pidfd_getfd, on every architecture
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert "pidfd_getfd" not in text, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant):
                assert node.value not in numbers, f"{file}:{node.lineno}"
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert name != "syscall", f"{file}:{node.lineno}: a system call by its number"
