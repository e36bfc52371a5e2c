"""The line above a table: when, where and with what it was measured."""

from __future__ import annotations

import datetime
import platform

from diver_trt.packages import installed


def heading(*packages: str, threads: int | None = None) -> str:
    """Return the date, the machine, its threads where they matter, and versions of packages."""
    machine = [platform.machine(), *([] if threads is None else [f"{threads} threads"])]
    versions = [f"{name} {version}" for name, version in installed(packages).items()]
    parts = [*machine, f"Python {platform.python_version()}", *versions]
    return f"{datetime.date.today()}, {', '.join(parts)}"
