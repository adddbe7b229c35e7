"""One target under atheris, which watches the parser's branches: python -m tests.campaigns.coverage_guided TARGET ...

Arguments after the target are libFuzzer's: a directory for its corpus, -runs=N, -seed=N. Ends with libFuzzer's status.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["sharedsock.registry", "sharedsock.descriptors.sharing"]):
    from tests.campaigns.targets import TARGETS


def main(arguments: list[str]) -> None:
    """Fuzz until the runs are over; does not return."""
    target = TARGETS[arguments[1]]
    atheris.Setup([arguments[0], *arguments[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
