"""What tests of faults share: a registry for a module, and a company of actors for one test."""

from __future__ import annotations

from tests.descriptors.conftest import actors, registry

__all__ = ["actors", "registry"]
