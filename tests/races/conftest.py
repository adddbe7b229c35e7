"""Races are held at probe points, in the way the data plane's own tests do it."""

from __future__ import annotations

from tests.kernel.conftest import kind, pair, points, way

__all__ = ["kind", "pair", "points", "way"]
