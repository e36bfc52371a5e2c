"""What ONNX Runtime is given on CUDA: options of its provider, and graphs with fused nodes."""

from __future__ import annotations

import warnings
from pathlib import Path

from diver_trt.contract import HALF_PRECISIONS, Precision
from diver_trt.errors import MissingExtraError
from diver_trt.packages import required

CUDA_OPTIONS = {
    "use_tf32": "0",
    "enable_cuda_graph": "1",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
"""Options of the CUDA provider that differ from its defaults, with the figures of DiT-XL/2 in fp16.

- A float32 bundle promises float32, and TF32 rounds factors to 10 bits.
- Hundreds of small kernels take longer to launch than to run: one CUDA graph halves a step's time.
- The exhaustive search, the default, chose kernels for the decoder that took five times as long as
  those of the heuristic.
- Memory grows by what is needed, and not to the next power of two: a fifth less at batch 8.

Figures: benchmarks/README.md, "On a GPU". Options:
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

UNFIT_OPTIMIZERS = ["SkipLayerNormFusion"]
"""Optimizers of ONNX Runtime that are switched off.

1.21 joins an Add with the LayerNormalization after it, also where the result cannot run: its
weights are [n, 1, D] (`diver_trt.runtime.backends.onnx_fusion`).
"""


def with_fused_nodes(graph: Path, precision: Precision) -> Path | bytes:
    """Return what ONNX Runtime opens for a graph: a model with fused nodes, or the file as it is.

    Warns that the file is opened as it is where onnx-ir, which rewrites it, is not installed.

    Args:
        graph: The `.onnx` file.
        precision: The bundle's.
    """
    try:
        required("onnx_ir", "gpu", "fusing the nodes of a graph", "onnx-ir")
    except MissingExtraError as missing:
        warnings.warn(f"steps take longer than necessary: {missing}", RuntimeWarning, stacklevel=2)
        return graph
    from diver_trt.runtime.backends.onnx_fusion import fused

    # In float32, the kernels of fused attention may round factors as TF32 does.
    return fused(graph, attention=precision in HALF_PRECISIONS) or graph
