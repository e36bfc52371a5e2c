"""What `compare --json` prints, as far as a model card quotes it."""

from __future__ import annotations

import json
from pathlib import Path

from diver_trt.bundle import Bundle


def write_comparison(folder: Path, bundle: Bundle) -> Path:
    """Write the result of comparing a bundle on three engines: near, equal, and broken."""
    engine: dict[str, object] = {"name": "openvino fp32", "verdict": "passed", "seconds": 1.5}
    figures: list[dict[str, object]] = [
        {"mean_psnr_db": 61.25, "lowest_psnr_db": 48.04, "lowest_ssim": 0.99987},
        {"mean_psnr_db": None, "lowest_psnr_db": None, "lowest_ssim": 1.0},
        {"mean_psnr_db": None, "lowest_psnr_db": None, "lowest_ssim": None},
    ]
    result = {
        "passed": True,
        "headline": "openvino fp32 stays with onnx fp32",
        "reference": "onnx fp32",
        "engines": [engine | one for one in figures],
        "inputs": {"origin": "10 distilled images", "images": 10, "seed": 7},
        "recipe": {"steps": 25, "window": [25, 10], "cfg_window": None, "guide": "a `|` b"},
        "environment": {"date": "2026-11-26", "machine": "Linux x86_64, 2 cores"},
        "bundles": [{"name": "digits", "sha256": bundle.sha256}],
    }
    path = folder / "compared.json"
    path.write_text(json.dumps(result))
    return path
