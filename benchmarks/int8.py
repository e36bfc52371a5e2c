"""What eight bits cost in images, and save in bytes: the digits in every precision.

    python -m benchmarks.int8 --folder /tmp/int8

Exports the digits in fp32, fp16, int8 and int8-fp16 below the folder unless they are there, puts
the hundred distilled digits through each on every engine named with `--engine`, and compares the
PNG files with those of fp32 on the same engine. Prints the table of `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.heading import heading
from diver_trt import recover
from diver_trt.bundle import Bundle
from diver_trt.comparison.figures import mean_psnr
from diver_trt.comparison.metrics import image_difference
from diver_trt.contract import PRECISIONS, Precision
from diver_trt.export.exporter import export_bundle
from diver_trt.models.dit import load_model

EXAMPLES = Path(__file__).parent.parent / "examples" / "digits"


def exported(folder: Path, precision: Precision) -> Bundle:
    """Return the digits in a precision, exported unless they are there."""
    if not folder.exists():
        for _ in export_bundle(load_model(str(EXAMPLES / "dit-digits")), folder, precision):
            pass
    return Bundle.open(folder)


def recovered(bundle: Bundle, engine: str) -> np.ndarray:
    """Return the hundred digits as a bundle recovers them, [100, H, W, 3] uint8."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "recovered"
        recover(EXAMPLES / "distilled" / "ipc10", output, bundle=bundle.path, engine=engine)
        files = sorted(output.glob("[0-9]*/[0-9]*.png"))
        return np.stack([np.asarray(Image.open(path)) for path in files])


def difference_cells(images: np.ndarray, reference: np.ndarray) -> list[str]:
    """Return the mean and the lowest PSNR of images, and their largest difference, as cells."""
    found = tuple(map(image_difference, images, reference))
    lowest, largest = min(one.psnr_db for one in found), max(one.max_levels for one in found)
    return [f"{mean_psnr(found):.1f} dB", f"{lowest:.1f} dB", str(largest)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--engine", action="append", help="an engine; repeatable (default: onnx)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    print(heading("torch", "onnxruntime", "openvino", "numpy"), end="\n\n")
    print("| engine | precision | files | mean PSNR | worst PSNR | largest difference, levels |")
    print("|---|---|---:|---:|---:|---:|")
    for engine in arguments.engine or ["onnx"]:
        reference = recovered(exported(arguments.folder / "fp32", "fp32"), engine)
        for precision in PRECISIONS:
            bundle = exported(arguments.folder / precision, precision)
            size = sum(file.size_bytes for net in bundle.networks.values() for file in net.files)
            cells = [engine, precision, f"{size / 1e6:.1f} MB"]
            if precision == "fp32":
                cells += ["", "", ""]
            else:
                cells += difference_cells(recovered(bundle, engine), reference)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
