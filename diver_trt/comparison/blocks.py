"""Inside the denoiser: its residual stream, and where it first leaves the reference.

The graph looked into is the bundle's own denoiser: its file is hashed, extra outputs are declared
in memory, and not one node or weight is changed. A DiT block normalises its tokens twice, before
the attention and before the MLP, and the final layer once more. So the inputs of the 2 B + 1
normalisations are the embedded patches, then the stream after every attention and every MLP: no
names are needed to find them, and torch's modules are listened to at the same places. ONNX Runtime
runs the graph; what a TensorRT engine made of it cannot be seen.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.comparison.metrics import Difference, difference
from diver_trt.errors import BundleError, MissingExtraError
from diver_trt.runtime.backends.onnx import import_onnxruntime

Float32 = NDArray[np.float32]

PREDICTION = "final layer"


@dataclass(frozen=True, slots=True)
class Stages:
    """What one run of the DiT passes through.

    Attributes:
        stream: The residual stream by place, in order, each [2 n, tokens, width] float32: the
            class's rows, then the null class's.
        prediction: Noise, and variance if it is learned, [2, n, c or 2 c, h, w] float32: by class,
            then by null class.
    """

    stream: Mapping[str, Float32]
    prediction: Float32

    def all(self) -> dict[str, Float32]:
        """Return the stream and the prediction, in order."""
        return {**self.stream, PREDICTION: self.prediction}


class Probe(Protocol):
    """Whatever can be looked into: the torch model, or a bundle's graph."""

    def stages(self, latent: Float32, condition: NDArray[np.generic]) -> Stages:
        """Run the DiT on z_k [n, c, h, w] with the conditions [2, n, M]."""


class GraphProbe:
    """A bundle's denoiser graph on the CPU, with residual stream and prediction as outputs.

    Args:
        bundle: The bundle; the denoiser's files are hashed.

    Raises:
        BundleError: A file has changed, or the graph is not built like a DiT that `diver-trt
            export` wrote.
        MissingExtraError: onnx or ONNX Runtime is not installed.
    """

    def __init__(self, bundle: Bundle) -> None:
        runtime, onnx = import_onnxruntime(), import_onnx()
        path = bundle.verified("denoiser")
        model = onnx.load(path, load_external_data=False)
        self._taps = find_taps(model.graph, bundle.places, str(path))
        known = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in self._taps.values() if name not in known
        )
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(bundle.path.resolve())
        )
        self._session: Any = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._condition_dtype = bundle.networks["denoiser"].inputs[2].dtype
        self._row = np.zeros(bundle.layout.width, np.float32)

    def stages(self, latent: Float32, condition: NDArray[np.generic]) -> Stages:
        """Run the graph; guidance and DDIM run too, on coefficients of 0, and are not looked at."""
        inputs = {
            "latent": latent,
            "anchor": latent,
            "condition": condition.astype(self._condition_dtype),
            "coefficients": self._row,
        }
        *stream, prediction = (
            value.astype(np.float32)
            for value in self._session.run(list(self._taps.values()), inputs)
        )
        prediction = prediction.reshape(2, len(latent), -1, *latent.shape[2:])
        return Stages(dict(zip(list(self._taps)[:-1], stream, strict=True)), prediction)


@dataclass(frozen=True, slots=True)
class StageDifference:
    """How far one place is from the reference.

    Attributes:
        place: Such as `"block 4, MLP"`.
        difference: Over both rows, class and null.
        swapped: Whether exchanging the class's and the null class's rows brings it back within the
            tolerance.
    """

    place: str
    difference: Difference
    swapped: bool


def compare_stages(found: Stages, expected: Stages, tolerance: float) -> list[StageDifference]:
    """Compare two runs of a DiT on the same input, place by place.

    Raises:
        BundleError: They pass through different places: these are not two forms of one model.
    """
    ours, theirs = found.all(), expected.all()
    if list(ours) != list(theirs):
        raise BundleError(
            f"the denoiser has {len(ours)} places to compare, the reference {len(theirs)}; "
            "compare bundles of one model"
        )
    compared = []
    for place, values in ours.items():
        apart = difference(values, theirs[place])
        swapped = (
            apart.relative_l2 > tolerance
            and difference(_exchanged(values), theirs[place]).relative_l2 <= tolerance
        )
        compared.append(StageDifference(place, apart, swapped))
    return compared


def first_beyond(stages: Sequence[StageDifference], tolerance: float) -> StageDifference | None:
    """Return the first place whose relative L2 exceeds the tolerance, or None."""
    return next((stage for stage in stages if not stage.difference.relative_l2 <= tolerance), None)


def steepest(stages: Sequence[StageDifference], least: float) -> StageDifference | None:
    """Return the place where the error grows most, or None if never by the factor `least`.

    In float16 a small fault passes below the tolerance where it is and only exceeds it further on;
    the jump is where it is.
    """
    errors = [(stage, stage.difference.relative_l2) for stage in stages]
    grown = [
        (error / before, stage)
        for (_, before), (stage, error) in itertools.pairwise(errors)
        if before > 0
    ]
    factor, stage = max(grown, key=lambda pair: pair[0], default=(0.0, None))
    return stage if factor >= least else None


def _exchanged(values: Float32) -> Float32:
    half = len(values) // 2
    return np.concatenate([values[half:], values[:half]])


def find_taps(graph: Any, places: Sequence[str], where: str) -> dict[str, str]:
    """Return the name of a denoiser graph's value at every place, the prediction last.

    The prediction is the first value after the last normalisation that two nodes read: one takes
    the class's half, one the null class's.

    Raises:
        BundleError: The graph is not built like a DiT that `diver-trt export` wrote; `where` names
            it.
    """
    writers = {name: node for node in graph.node for name in node.output}
    reads = Counter(name for node in graph.node for name in node.input)
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    if not places or len(norms) != len(places):
        raise BundleError(
            f"{where}: has {len(norms)} layer normalisations, but bundle.json names {len(places)} "
            "places to look at, expected as many, one or more; export the model again"
        )
    stream = [_before_casts(node.input[0], writers) for node in norms]
    value = norms[-1].output[0]
    while reads[value] == 1:
        (reader,) = (node for node in graph.node if value in node.input)
        value = reader.output[0]
    if reads[value] == 0:
        raise BundleError(
            f"{where}: no node separates class and null predictions, so it has no guidance; "
            "export the model again"
        )
    return {**dict(zip(places, stream, strict=True)), PREDICTION: value}


def _before_casts(name: str, writers: Mapping[str, Any]) -> str:
    while name in writers and writers[name].op_type == "Cast":
        name = writers[name].input[0]
    return name


def import_onnx() -> Any:
    """Import onnx.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnx
    except ImportError as cause:
        raise MissingExtraError("onnx", "compare", "looking into a denoiser") from cause
    return onnx
