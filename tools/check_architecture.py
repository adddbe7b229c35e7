"""Hold the house to its rules: who may import whom, who alone may touch what, and what every file must say.

    python tools/check_architecture.py [ROOT]

The rules are data: RANKS and ONLY_HERE mirror the design's page of rooms; a room that is missing there is an error.
Imports run downward only, and rooms of one rank are strangers. Everything is read from the syntax tree, nothing is
imported. Exits 1 if a rule is broken; files over LONG lines are reported, since they may hold two subjects.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["ONLY_HERE", "RANKS", "Violation", "check", "long_files", "main"]

PACKAGE: Final = "sharedsock"
LONG: Final = 450

RANKS: Final[dict[str, float]] = {
    "model": 0,
    "kernel": 1,
    "registry": 1,
    "descriptors": 2,
    "spi": 3,
    "sharedsocket": 3,
    "testing": 4,
    "pytest_plugin": 5,
    "simulator": 5,
    "cli": 6,
    # Over the face's own socket: what it does for a SharedSocket needs one.
    "tls": 3.25,
    # Providers under the Python face: it knows both faces, which do not know each other.
    "chaining": 3.25,
    # The package itself: its public names come from the faces, and testing uses them; `python -m` is the CLI.
    "__init__": 3.5,
    "__main__": 7,
}


class OnlyHere(NamedTuple):
    """Names (dotted, as written or imported) that only some rooms may use; a final * is any ending."""

    names: tuple[str, ...]
    rooms: frozenset[str]
    why: str


ONLY_HERE: Final = (
    OnlyHere(
        ("select.EPOLL*", "select.kqueue", "os.eventfd*", "os.EFD_*"),
        frozenset({"kernel"}),
        "the kernel room alone waits on sockets",
    ),
    OnlyHere(("select.epoll",), frozenset({"kernel", "registry"}), "kernel: on sockets; registry: its own numbers"),
    OnlyHere(("fcntl",), frozenset({"kernel", "registry"}), "kernel: on sockets; registry: its own locks and seals"),
    OnlyHere(("selectors",), frozenset({"descriptors"}), "descriptors: their face"),
    OnlyHere(("multiprocessing.managers",), frozenset({"registry"}), "the registry alone is a multiprocessing manager"),
    OnlyHere(
        ("socket.SCM_*", "socket.send_fds", "socket.recv_fds", "socket.CMSG_*"),
        frozenset({"registry"}),
        "descriptors travel through the registry only",
    ),
    OnlyHere(
        ("os.pidfd_open", "signal.pidfd_send_signal"),
        frozenset({"registry", "testing", "simulator"}),
        "who is alive is the registry's business, and the instruments'",
    ),
    OnlyHere(("subprocess",), frozenset({"registry", "testing"}), "testing spawns actors, the registry starts itself"),
    OnlyHere(("psutil",), frozenset({"testing", "simulator", "cli"}), "what the operating system knows: instruments"),
    OnlyHere(("pytest", "_pytest"), frozenset({"pytest_plugin"}), "everything else works without pytest"),
    OnlyHere(("argparse",), frozenset({"cli"}), "the command line is one room"),
    OnlyHere(("rich",), frozenset({"cli", "simulator"}), "drawing, where it is installed"),
    OnlyHere(
        ("pickle", "marshal"), frozenset({"testing"}), "no peer's bytes reach pickle (S-07); actors obey their parent"
    ),
    OnlyHere(
        ("asyncio", "signal.pthread_kill", "ctypes.pythonapi.PyThreadState_SetAsyncExc"),
        frozenset(),
        "nothing is aborted by a signal or an asynchronous exception (rule 3)",
    ),
)

# What the model may import: values and tables need no more. No I/O, thread, lock or clock.
MODEL_MAY_IMPORT: Final = frozenset(
    {"__future__", "abc", "collections", "dataclasses", "enum", "errno", "functools", "itertools", "math", "typing"}
)
# Winsock's error numbers are written once, in the model; elsewhere by name.
WSA_NUMBERS: Final = frozenset({*range(10004, 10113), 995, 996, 997})
_UNFINISHED: Final = re.compile(r"#\s*(TODO|FIXME|XXX)\b")


class Violation(NamedTuple):
    """One broken rule, where."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


@dataclass(frozen=True)
class Source:
    """One parsed file: its path below the root, its room (None outside the package), its text and tree."""

    path: str
    room: str | None
    text: str
    tree: ast.Module


def _sources(root: Path) -> Iterator[Source]:
    for top in (PACKAGE, "tests", "tools"):
        for file in sorted((root / top).rglob("*.py")):
            relative = file.relative_to(root)
            room = relative.parts[1].removesuffix(".py") if top == PACKAGE else None
            text = file.read_text()
            yield Source(str(relative), room, text, ast.parse(text, str(relative)))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, module, name imported from it or None) of every import, nested and type-checking ones as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, "." * node.level + (node.module or ""), alias.name


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return None if head is None else f"{head}.{node.attr}"
    return None


def _uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything imported or spelled out; `from a import b` is a.b."""
    for line, module, name in _imports(tree):
        yield line, module if name is None else f"{module}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if dotted is not None:
                yield node.lineno, dotted


def _matches(used: str, name: str) -> bool:
    if name.endswith("*"):
        return used.startswith(name[:-1])
    return used == name or used.startswith(name + ".")


def _room_of_import(module: str, name: str | None) -> str | None:
    """Return the room an import reaches, None for one outside the package."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    if len(parts) > 1:
        return parts[1]
    return name if name in RANKS else "__init__"


# -- the rules ----------------------------------------------------------------------------------------------------


def imports_run_downward(source: Source) -> Iterator[Violation]:
    """A room imports itself and rooms of a lower rank; rooms of one rank are strangers."""
    if source.room is None:
        return
    if source.room not in RANKS:
        yield Violation(source.path, 1, "rooms", f"{source.room} is no room: give it a rank in RANKS")
        return
    rank = RANKS[source.room]
    for line, module, name in _imports(source.tree):
        if module.startswith("."):
            yield Violation(source.path, line, "imports", "relative import: name the room")
            continue
        room = _room_of_import(module, name)
        if room is None or room == source.room:
            continue
        if room not in RANKS:
            yield Violation(source.path, line, "imports", f"{room} is no room")
        elif RANKS[room] > rank:
            yield Violation(source.path, line, "imports", f"{source.room} ({rank}) must not import {room}, above it")
        elif RANKS[room] == rank:
            yield Violation(source.path, line, "imports", f"{source.room} and {room} are strangers")


def only_here(source: Source) -> Iterator[Violation]:
    """Some things are touched in some rooms only."""
    if source.room is None:
        return
    for line, used in set(_uses(source.tree)):
        for rule in ONLY_HERE:
            if source.room not in rule.rooms and any(_matches(used, name) for name in rule.names):
                yield Violation(source.path, line, "only-here", f"{used} in {source.room}: {rule.why}")


def model_is_pure(source: Source) -> Iterator[Violation]:
    """The model imports the pure part of the standard library and itself."""
    if source.room != "model":
        return
    for line, module, _ in _imports(source.tree):
        top = module.split(".")[0]
        if top != PACKAGE and top not in MODEL_MAY_IMPORT:
            yield Violation(
                source.path, line, "pure", f"the model must not import {top}: no I/O, thread, lock or clock"
            )


def wsa_numbers_have_names(source: Source) -> Iterator[Violation]:
    """Outside the model a WSA error number is written by its name."""
    if source.room in (None, "model"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in WSA_NUMBERS:
            yield Violation(source.path, node.lineno, "wsa", f"{node.value}: use the name in model/winsock.py")


def no_sleep(source: Source) -> Iterator[Violation]:
    """Nobody sleeps: wait for a condition, or hold at a probe point."""
    if source.path.startswith("tools"):
        return
    for line, used in set(_uses(source.tree)):
        if used in ("time.sleep", "asyncio.sleep", "gevent.sleep", "trio.sleep"):
            yield Violation(source.path, line, "sleep", f"{used}: wait for a condition instead")


def no_private_names_of_other_rooms(source: Source) -> Iterator[Violation]:
    """A leading underscore means: this file's own."""
    if source.room is None:
        return
    for line, module, name in _imports(source.tree):
        if module.split(".")[0] == PACKAGE and name is not None and re.match(r"_[a-z]", name):
            yield Violation(source.path, line, "private", f"{module}.{name} is private to its file")


def opens_with_docstring(source: Source) -> Iterator[Violation]:
    """Every file opens by saying what it is for."""
    if not ast.get_docstring(source.tree):
        yield Violation(source.path, 1, "docstring", "the file does not say what it is for")


def all_tells_the_truth(source: Source) -> Iterator[Violation]:
    """`__all__` is a plain list of names that the module has, each once."""
    if source.room is None:
        return
    found = _listed(source.tree)
    if found is None:
        if not source.path.endswith(("__main__.py", "__init__.py")):
            yield Violation(source.path, 1, "__all__", "is missing")
        return
    line, names = found
    defined: set[str] = set()
    for node in _top_level(source.tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for name in names:
        if name not in defined:
            yield Violation(source.path, line, "__all__", f"{name} is not defined here")
        elif names.count(name) > 1:
            yield Violation(source.path, line, "__all__", f"lists {name} twice")


def _listed(tree: ast.Module) -> tuple[int, list[str]] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            try:
                return node.lineno, list(ast.literal_eval(node.value))
            except ValueError:
                return None
    return None


def what_others_use_is_listed(sources: list[Source]) -> Iterator[Violation]:
    """A name that another file of the package imports, or takes from the module, is in its module's `__all__`."""
    listed: dict[str, list[str] | None] = {}
    for source in sources:
        if source.room is not None:
            found = _listed(source.tree)
            module = source.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            listed[module] = found[1] if found is not None else None
    for source in sources:
        if source.room is None:
            continue
        modules: dict[str, str] = {}
        used: set[tuple[int, str, str]] = set()
        for line, module, name in _imports(source.tree):
            if name is not None and f"{module}.{name}" in listed:
                modules[name] = f"{module}.{name}"
            elif name is not None and module in listed:
                used.add((line, module, name))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                used.add((node.lineno, modules[node.value.id], node.attr))
        for line, module, name in used:
            names = listed[module]
            if names is not None and name not in names and not name.startswith("__"):
                yield Violation(source.path, line, "__all__", f"{module} does not list {name}")


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, those below `if` and `try` as well."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _top_level(getattr(node, inner, []))


def nothing_unfinished(source: Source) -> Iterator[Violation]:
    """What is in the tree is finished; the rest is an issue."""
    for line, text in enumerate(source.text.splitlines(), 1):
        if _UNFINISHED.search(text):
            yield Violation(source.path, line, "unfinished", text.strip())


RULES: Final = (
    imports_run_downward,
    only_here,
    model_is_pure,
    wsa_numbers_have_names,
    no_sleep,
    no_private_names_of_other_rooms,
    opens_with_docstring,
    all_tells_the_truth,
    nothing_unfinished,
)


def check(root: Path) -> list[Violation]:
    """Return every broken rule below a root, by file and line."""
    sources = list(_sources(root))
    found = {violation for source in sources for rule in RULES for violation in rule(source)}
    return sorted(found | set(what_others_use_is_listed(sources)))


def long_files(root: Path) -> list[tuple[str, int]]:
    """Return (path, lines) of the files over LONG lines, longest first."""
    lengths = [(source.path, source.text.count("\n")) for source in _sources(root)]
    return sorted(((path, lines) for path, lines in lengths if lines > LONG), key=lambda row: -row[1])


def main(arguments: list[str]) -> int:
    """Print what is broken and what is long; return 1 if something is broken."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    violations = check(root)
    for violation in violations:
        print(violation)
    for path, lines in long_files(root):
        print(f"{path}: {lines} lines: perhaps two subjects")
    print(f"architecture: {len(violations)} broken rules" if violations else "architecture: ok")
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
