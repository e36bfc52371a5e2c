"""How work reports its progress to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Receives a phase, how much of it is done, and of how much."""
