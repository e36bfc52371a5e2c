"""Inside the denoiser: its residual stream, and where it first diverges from the reference.

The probed graph is the bundle's own denoiser: its file is hashed, extra outputs are declared in
memory, and no node or weight is changed. A DiT block normalises its tokens twice, before the
attention and before the MLP, and the final layer normalises them once more. The inputs of these
2 B + 1 normalisations are the embedded patches, then the stream after every attention and every
MLP; a UNet's transformer blocks have three each. They are found without knowing a name, and torch's
modules are hooked at the same places. ONNX Runtime runs the graph; the inside of a TensorRT engine
cannot be observed.
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
from diver_trt.errors import BundleError
from diver_trt.packages import required
from diver_trt.runtime.backends.failures import reported
from diver_trt.runtime.backends.onnx_package import import_onnxruntime, read_weights_from

Float32 = NDArray[np.float32]

PREDICTION = "final layer"


@dataclass(frozen=True, slots=True)
class Stages:
    """The intermediate values of one run of the predictor.

    Attributes:
        stream: The residual stream by place, in order, each [2 n, tokens, width] float32: the
            class's rows, then the null class's.
        prediction: Noise, and variance if it is learned, [2, n, c or 2 c, h, w] float32: for the
            class, then for the null class.
    """

    stream: Mapping[str, Float32]
    prediction: Float32

    def all(self) -> dict[str, Float32]:
        """Return the stream and the prediction, in order."""
        return {**self.stream, PREDICTION: self.prediction}


class Probe(Protocol):
    """A denoiser whose intermediate values can be read: the torch model, or a bundle's graph."""

    def stages(self, latent: Float32, condition: NDArray[np.generic]) -> Stages:
        """Run the DiT on z_k [n, c, h, w] float32 under the conditions [2, n, M]."""


class GraphProbe:
    """A bundle's denoiser graph on the CPU, with residual stream and prediction as outputs.

    Args:
        bundle: The bundle; the denoiser's files are hashed.

    Raises:
        BundleError: If a file has changed, or the graph does not have the structure of a DiT that
            `diver-trt export` wrote.
        MissingExtraError: If onnx or ONNX Runtime is not installed.
    """

    def __init__(self, bundle: Bundle) -> None:
        runtime, onnx = import_onnxruntime(), import_onnx()
        path = bundle.verified("denoiser")
        # Weights stay in their file, for ONNX Runtime to read: protobuf messages end at 2 GB
        # (https://protobuf.dev/programming-guides/encoding/#size-limit).
        model = onnx.load(path, load_external_data=False)
        self._taps = find_taps(model.graph, bundle.places, str(path))
        # Types and shapes are left out: ONNX Runtime infers them for outputs.
        known = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in self._taps.values() if name not in known
        )
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        read_weights_from(options, bundle.path)
        # On the CPU for every engine: what is looked into is its graph, and not the engine.
        with reported("ONNX Runtime", "cannot open the denoiser with its places"):
            self._session: Any = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        self._condition_dtype = bundle.condition_pair.dtype
        self._row = np.zeros(bundle.layout.width, np.float32)

    def stages(self, latent: Float32, condition: NDArray[np.generic]) -> Stages:
        """Run the graph and return its intermediate values (see `Probe`)."""
        inputs = {
            "latent": latent,
            "anchor": latent,
            "noise": latent,
            # fp16 bundles read float16; that rounding is part of their error.
            "condition": condition.astype(self._condition_dtype),
            # Guidance and DDIM run too, on coefficients of 0; their output is not read.
            "coefficients": self._row,
        }
        *stream, prediction = (
            value.astype(np.float32)
            for value in self._session.run(list(self._taps.values()), inputs)
        )
        # => [2, n, c or 2 c, h, w]
        prediction = prediction.reshape(2, len(latent), -1, *latent.shape[2:])
        return Stages(dict(zip(list(self._taps)[:-1], stream, strict=True)), prediction)


@dataclass(frozen=True, slots=True)
class StageDifference:
    """How far one place is from the reference.

    Attributes:
        place: Such as `"block 4, MLP"`.
        difference: Over both rows, class and null.
        swapped: Whether the place exceeds the tolerance, and no longer does once the class's and
            the null class's rows are exchanged.
    """

    place: str
    difference: Difference
    swapped: bool


def compare_stages(found: Stages, expected: Stages, tolerance: float) -> list[StageDifference]:
    """Compare two runs of a DiT on the same input, place by place.

    Raises:
        BundleError: If they have different places: then they are not two forms of one model.
    """
    ours, theirs = found.all(), expected.all()
    if list(ours) != list(theirs):
        raise BundleError(
            f"the denoiser has {len(ours)} places, the reference {len(theirs)}. "
            "Compare bundles of one model."
        )
    compared = []
    for place, values in ours.items():
        apart = difference(values, theirs[place])
        # The class's and the null class's rows change places.
        exchanged = np.roll(values, len(values) // 2, axis=0)
        swapped = (
            apart.relative_l2 > tolerance
            and difference(exchanged, theirs[place]).relative_l2 <= tolerance
        )
        compared.append(StageDifference(place, apart, swapped))
    return compared


def first_beyond(stages: Sequence[StageDifference], tolerance: float) -> StageDifference | None:
    """Return the first place whose relative L2 exceeds the tolerance, or None."""
    # Written with `not`, so that NaN exceeds every tolerance.
    return next((stage for stage in stages if not stage.difference.relative_l2 <= tolerance), None)


def steepest(stages: Sequence[StageDifference], least: float) -> StageDifference | None:
    """Return the place where the error grows most, or None if it never grows `least`-fold."""
    # In float16 a small fault stays below the tolerance at its own place, and exceeds it only
    # further on. The error still jumps at its own place.
    errors = [(stage, stage.difference.relative_l2) for stage in stages]
    grown = [
        (error / before, stage)
        for (_, before), (stage, error) in itertools.pairwise(errors)
        # A place that equals the reference's has an undefined ratio.
        if before > 0
    ]
    factor, stage = max(grown, key=lambda pair: pair[0], default=(0.0, None))
    return stage if factor >= least else None


def find_taps(graph: Any, places: Sequence[str], where: str) -> dict[str, str]:
    """Return the name of a denoiser graph's value at every place, the prediction last.

    Args:
        graph: The `GraphProto`.
        places: The places that `bundle.json` names, in order.
        where: What messages call the graph.

    Raises:
        BundleError: If the graph does not have the structure that `diver-trt export` wrote.
    """
    writers = {name: node for node in graph.node for name in node.output}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    if not places or len(norms) != len(places):
        raise BundleError(
            f"{where}: has {len(norms)} layer normalisations, but bundle.json names {len(places)} "
            "places, expected one place for each. Export the model again."
        )
    # Casts in front of a normalisation are skipped: the value wanted is the stream's own.
    stream = [_before_casts(node.input[0], writers) for node in norms]
    # Guidance takes the class's half of the prediction in one Gather, the null class's in another.
    gathered = Counter(node.input[0] for node in graph.node if node.op_type == "Gather")
    predictions = [name for name, count in gathered.items() if count == 2 and name in writers]
    if len(predictions) != 1:
        raise BundleError(
            f"{where}: no node separates class and null predictions, so guidance is missing. "
            "Export the model again."
        )
    return {**dict(zip(places, stream, strict=True)), PREDICTION: predictions[0]}


def _before_casts(name: str, writers: Mapping[str, Any]) -> str:
    while name in writers and writers[name].op_type == "Cast":
        name = writers[name].input[0]
    return name


def import_onnx() -> Any:
    """Import onnx.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return required("onnx", "compare", "probing a denoiser")
