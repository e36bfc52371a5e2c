"""Checks of an ONNX graph's file against what `bundle.json` lists for its network.

The hash in `bundle.json` shows that the file is the exported one. These checks hold even for a
bundle whose hashes were computed after somebody changed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diver_trt.declared_tensors import declared_tensors
from diver_trt.errors import BundleError, EngineError, printable, shown
from diver_trt.external_data import GraphError, external_locations
from diver_trt.tensors import Dim, TensorSpec, describe_all, describe_declared

Found = tuple[str, str, Sequence[Dim | None]]
"""A tensor of a graph: its name, numpy's name of its type, and its shape."""


def require_listed_weights(graph: Path, weights: str | None) -> None:
    """Refuse a graph whose tensors lie in any file but the one that is listed.

    Args:
        graph: The `.onnx` file.
        weights: Name of the file beside it that holds its weights, or None if it holds them itself.

    Raises:
        BundleError: If the file is not an ONNX graph, or reads another file.
    """
    try:
        locations = external_locations(graph)
    except GraphError as cause:
        raise _not_a_graph(graph, cause) from cause
    for location in sorted(locations - {weights or ""}):
        listed = f"only {weights}" if weights else "no such file"
        raise BundleError(
            f"{graph}: reads {shown(repr(location))}, but bundle.json lists {listed} for it; "
            "export the model again"
        )


def require_declared(
    graph: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Refuse a graph that declares other names, types or shapes than those listed.

    Args:
        graph: The `.onnx` file.
        inputs: The inputs that are listed.
        outputs: The outputs that are listed.

    Raises:
        BundleError: If the file is not an ONNX graph, or they differ.
    """
    try:
        declared = declared_tensors(graph)
    except GraphError as cause:
        raise _not_a_graph(graph, cause) from cause
    require_tensors(graph, *declared, inputs, outputs)


def require_utf8(graph: Path, engine: str) -> None:
    """Refuse a path that an engine cannot open.

    Raises:
        EngineError: If it is not UTF-8, the only encoding of paths that the engine takes.
    """
    try:
        str(graph).encode()
    except UnicodeEncodeError as cause:
        raise EngineError(
            f"{printable(str(graph))}: the path is not UTF-8, and {engine} opens no other. Rename "
            "the folder."
        ) from cause


def require_tensors(
    graph: Path,
    reads: Sequence[Found],
    writes: Sequence[Found],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Refuse other names, types or shapes than those listed.

    Args:
        graph: The `.onnx` file.
        reads: Its inputs, as it declares them or as a runtime infers them from its nodes.
        writes: Its outputs.
        inputs: The inputs that are listed.
        outputs: The outputs that are listed.

    Raises:
        BundleError: If they differ.
    """
    for direction, found, specs in (("reads", reads, inputs), ("writes", writes, outputs)):
        # By name and not in order: engines bind tensors by their names.
        by_name = {name: (dtype, shape) for name, dtype, shape in found}
        if not (
            # Two tensors of one name would be one entry of the dict.
            len(found) == len(by_name)
            and by_name.keys() == {spec.name for spec in specs}
            and all(spec.agrees_with(*by_name[spec.name]) for spec in specs)
        ):
            declares = ", ".join(describe_declared(*tensor) for tensor in found) or "nothing"
            raise BundleError(
                f"{graph}: {direction} {shown(declares)}, but bundle.json lists "
                f"{describe_all(specs)}; export the model again"
            )


def _not_a_graph(graph: Path, cause: GraphError) -> BundleError:
    return BundleError(f"{graph}: is not an ONNX graph ({cause}); export the model again")
