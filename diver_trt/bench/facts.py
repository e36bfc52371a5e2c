"""A benchmark as JSON values; docs/benchmarking.md describes every field."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from diver_trt.bench.result import Result, Row
from diver_trt.bench.timing import LEAST_ROUNDS, WARM_UP_RUNS

SCHEMA = 1
OWN_FIELDS = frozenset({"schema", "machine", "measuring", "ceilings", "rows"})
"""Fields by which an earlier benchmark is recognised; every schema has them."""
_MS = 1e3
_DIGITS = 6
"""Significant digits of a time, which is all that a clock resolves."""


def result_facts(result: Result) -> dict[str, Any]:
    """Return everything that a benchmark found as JSON values."""
    plan, bundle = result.plan, result.plan.bundle
    machine = {**asdict(result.machine), "busy": result.machine.busy}
    versions = machine.pop("versions")
    return {
        "schema": SCHEMA,
        "date": machine.pop("date"),
        "machine": machine,
        "versions": versions,
        "bundle": {
            "name": bundle.path.name,
            "model": bundle.model_id,
            "precision": bundle.precision,
            "sha256": bundle.sha256,
        },
        "recipe": plan.recipe.to_json(),
        "measuring": {
            "seconds": plan.seconds,
            "least_rounds": LEAST_ROUNDS,
            "warm_up_runs": WARM_UP_RUNS,
            "batches": list(plan.batches),
            "contestants": [contestant.name for contestant in plan.contestants],
        },
        "ceilings": list(result.ceilings),
        "notes": list(result.notes),
        "not_measured": list(result.absent),
        "rows": [_row_facts(row, plan.contestants[0].name) for row in result.rows],
    }


def _row_facts(row: Row, first: str) -> dict[str, Any]:
    timing, limit, work = row.timing, row.limit, row.cost
    return {
        "subject": row.subject,
        "batch": row.batch,
        "contestant": row.contestant,
        "images": row.images,
        "latency_ms": {
            **{f"p{percent}": _ms(timing.percentile(percent)) for percent in (50, 90, 99)},
            "runs": len(timing.seconds),
            "rounds": len(timing.rounds),
            "warm_up_runs": timing.warm_up,
        },
        "images_per_second": _rounded(row.images_per_second),
        "limit": limit
        and {
            "latency_ms": _ms(limit.seconds),
            "compute_ms": _ms(limit.compute_s),
            "memory_ms": _ms(limit.memory_s),
            "bound": limit.bound,
            "reached": _rounded(row.of_limit or 0.0),
        },
        "work": work
        and {
            "flops": work.flops,
            "least_bytes": work.least_bytes,
            "operator_bytes": work.operator_bytes,
        },
        "speed_ratio": row.ratio
        and {
            "against": first,
            **{name: _rounded(value) for name, value in asdict(row.ratio).items()},
        },
        "python_ms_per_step": None if row.python_s is None else _ms(row.python_s),
        "peak_host_bytes": row.host_bytes,
        "peak_device_bytes": row.device_bytes,
        "phases_ms": row.phases and {phase: _ms(taken) for phase, taken in row.phases.items()},
        "largest_difference": row.largest_difference,
    }


def _ms(seconds: float) -> float:
    return _rounded(seconds * _MS)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
