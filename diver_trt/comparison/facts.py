"""A comparison as JSON values, for `compare --json` and the report."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.comparison.checks import Check
from diver_trt.comparison.figures import StepDifference, lowest_psnr, mean_psnr
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import Absent
from diver_trt.comparison.result import Result
from diver_trt.comparison.verdict import Comparison
from diver_trt.counted import counted
from diver_trt.packages import installed
from diver_trt.runtime.backends import BACKENDS
from diver_trt.runtime.cores import available_cores

PACKAGES = (
    "numpy",
    "torch",
    "diffusers",
    "onnx",
    *(package for backend in BACKENDS.values() for package in backend.packages),
    "scikit-image",
    "matplotlib",
)
"""Packages whose versions the figures depend on."""


def result_facts(result: Result) -> dict[str, Any]:
    """Return everything as JSON values, but for NaN and infinite figures."""
    return {
        "passed": result.passed,
        "headline": result.headline,
        "reference": result.reference,
        "engines": [
            _comparison_facts(comparison, result.inputs) for comparison in result.comparisons
        ],
        "not_compared": absent_facts(result.absent),
        "inputs": {
            "origin": result.inputs.origin,
            "images": len(result.inputs),
            "seed": result.seed,
        },
        "recipe": result.recipe.to_json(),
        "environment": environment(),
        "bundles": [bundle_facts(bundle) for bundle in result.bundles],
        "model": result.model,
    }


def absent_facts(absent: Sequence[Absent]) -> list[dict[str, Any]]:
    """Return the engines that were not compared as JSON values."""
    return [asdict(one) for one in absent]


def environment() -> dict[str, str]:
    """Return what the figures depend on: the kind of machine and the versions of packages."""
    return {
        "date": str(datetime.date.today()),
        "diver-trt": __version__,
        "Python": platform.python_version(),
        # The kind of machine, never its host name: reports are published.
        "machine": f"{platform.system()} {platform.machine()}, "
        f"{counted(available_cores(), 'core')}",
        **installed(PACKAGES),
    }


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what identifies a bundle."""
    return {
        "name": bundle.path.name,
        "model": bundle.model_id,
        "precision": bundle.precision,
        "timestep_frequencies": bundle.timestep_frequencies,
        "sha256": bundle.sha256,
        "exported_with": dict(bundle.exported_with),
    }


def _comparison_facts(comparison: Comparison, inputs: Inputs) -> dict[str, Any]:
    figures = comparison.figures
    worst = figures.worst_step
    return {
        "name": comparison.name,
        "precision": comparison.precision,
        "verdict": comparison.verdict,
        "causes": list(comparison.causes),
        "checks": [_check_facts(check) for check in comparison.checks],
        "networks": {name: asdict(apart) for name, apart in figures.networks.items()},
        "worst_step": {"step": worst.k, "channel": worst.channel, **asdict(worst.forced)},
        "steps": [_step_facts(step) for step in figures.steps],
        "places": {
            "step": figures.stage_step,
            "relative_l2": {stage.place: stage.difference.relative_l2 for stage in figures.stages},
        },
        "images": {
            key: asdict(image) for key, image in zip(inputs.keys, figures.images, strict=True)
        },
        "mean_psnr_db": mean_psnr(figures.images),
        "lowest_psnr_db": lowest_psnr(figures.images).psnr_db,
        "lowest_ssim": min(image.ssim for image in figures.images),
        "seconds": round(comparison.seconds, 3),
    }


def _check_facts(check: Check) -> dict[str, Any]:
    return {
        "subject": check.subject,
        "measure": check.measure,
        "figure": check.figure,
        "limit": check.limit.value,
        "at_least": check.limit.at_least,
        "passed": check.passed,
        "where": check.where,
    }


def _step_facts(step: StepDifference) -> dict[str, Any]:
    return {
        "step": step.k,
        "channel": step.channel,
        "alone": asdict(step.forced),
        "change": step.change,
        "free_run": asdict(step.free),
    }
