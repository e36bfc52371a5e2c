"""The inputs and outputs that a runtime finds in a graph, compared with the manifest's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diver_trt.bundle import MANIFEST, Network
from diver_trt.errors import BundleError, shown
from diver_trt.tensors import Dim, TensorSpec, describe_declared

Found = tuple[str, str, Sequence[Dim | None]]
"""A tensor that a runtime found: its name, numpy's name of its type, and its shape."""


def check_inferred(
    graph: Path, network: Network, inputs: Sequence[Found], outputs: Sequence[Found]
) -> None:
    """Compare a graph's inputs and outputs in a runtime with the manifest's.

    What the graph itself declares was compared before; this is what its nodes give.

    Raises:
        BundleError: If a name, a type or a shape differs.
    """
    _check(graph, "reads", inputs, network.inputs)
    _check(graph, "writes", outputs, network.outputs)


def _check(
    graph: Path, direction: str, tensors: Sequence[Found], specs: Sequence[TensorSpec]
) -> None:
    found, expected = [name for name, _, _ in tensors], [spec.name for spec in specs]
    if sorted(found) != sorted(expected):
        listed = shown(", ".join(found)) or "nothing"
        raise BundleError(
            f"{graph}: {direction} {listed}, but {MANIFEST} says {', '.join(expected)}; export the "
            "model again"
        )
    declared = {name: (dtype, shape) for name, dtype, shape in tensors}
    for spec in specs:
        dtype, shape = declared[spec.name]
        if not spec.agrees_with(dtype, shape):
            raise BundleError(
                f"{graph}: {direction} {shown(describe_declared(spec.name, dtype, shape))}, but "
                f"{MANIFEST} says {spec}; export the model again"
            )
