"""The cores that this process may use, and whether they are idle."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
"""Linux' account of how long tasks waited for a core, since 4.20:
https://docs.kernel.org/accounting/psi.html
"""

QUOTAS = (
    Path("/sys/fs/cgroup/cpu.max"),
    Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
)
"""Limits on the CPU time of a container, of cgroups in versions 2 and 1."""

IDLE_PERCENT = 5.0
"""Cores are idle if some task waited for one in less than this share of the last ten seconds.

Not zero, since the system has its own tasks; a second process that computes on the same cores makes
tasks wait most of the time.
"""


_limit: int | None = None


def limit_cores(count: int) -> None:
    """Let engines that this process opens from now on use at most `count` cores.

    For processes that share a machine, each with an engine of its own.
    """
    global _limit
    _limit = count


def available_cores() -> int:
    """Return how many cores this process may use, 1 or more.

    Engines would otherwise count all cores of the machine.
    """
    # os.cpu_count also counts the cores that taskset or a container's cpuset takes away. On macOS
    # and Windows Python cannot ask for them.
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # Threads beyond a quota only make the container stop more often.
    limits = [math.ceil(quota) for path in QUOTAS if (quota := _quota(path)) is not None]
    return max(1, min([count, *limits, *([] if _limit is None else [_limit])]))


def cores_are_idle() -> bool:
    """Return whether threads that spin while they wait would take no other task's core.

    False where that cannot be found out. The load average would not do: it still counts the run
    that ended a minute ago, and a process that has the cores to itself.
    """
    # A thread that spins uses up the quota, and then all threads of the container are stopped.
    if any(_quota(path) is not None for path in QUOTAS):
        return False
    try:
        found = re.match(r"some avg10=([0-9]+\.[0-9]+)", PRESSURE.read_text())
    except OSError:
        return False
    return found is not None and float(found[1]) < IDLE_PERCENT


def _quota(path: Path) -> float | None:
    """Return how many cores' time a container may use, or None without a limit."""
    try:
        # Version 2 has `QUOTA PERIOD` in one file, version 1 a file for each. Unlimited is `max` in
        # version 2 and -1 in version 1: https://docs.kernel.org/admin-guide/cgroup-v2.html
        quota, *period = path.read_text().split()
        period = period or [path.with_name("cpu.cfs_period_us").read_text()]
        return int(quota) / int(period[0]) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
