"""The cores that a process may use, in a container too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diver_trt.runtime import cores

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, ALL),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1000000000 100000\n"}, ALL),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, ALL),
        ({"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.cfs_quota_us": "100000\n"}, ALL),
        ({"cpu.max": "nonsense"}, ALL),
        ({}, ALL),
    ],
)
def test_no_more_cores_are_used_than_a_container_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    quotas = (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us")
    monkeypatch.setattr(cores, "QUOTAS", quotas)
    assert cores.available_cores() == expected
