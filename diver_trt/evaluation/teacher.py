"""A teacher: an ONNX graph that labels training images softly. Any framework can export one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.regular_file import open_regular
from diver_trt.errors import DatasetError, MissingExtraError, first_line, printable
from diver_trt.files import reported
from diver_trt.runtime.backends.onnx_package import import_onnxruntime

NORMALISATION = "imagenet"
"""Statistics that a teacher's input is normalised with."""

# Not all that are available: TensorRT would compile the graph for every size of a batch, and CoreML
# may compute in float16.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Teacher:
    """A graph with one input [n, 3, side, side] float32, normalised as ImageNet is.

    Its first output is the logits, [n, classes] float32, classes in the order of the test set. `n`
    is dynamic; the side may be.

    Args:
        path: The graph, with its weights inside.
        classes: Classes of the test set.
        side: Side of the images in pixels.

    Attributes:
        sha256: Hash of the file.

    Raises:
        DatasetError: If the file is missing, not such a graph, or of another size.
        MissingExtraError: If ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, classes: int, side: int) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except MissingExtraError as cause:
            raise MissingExtraError("onnxruntime", "cpu", "a teacher") from cause
        self._where = printable(str(path))
        with reported(path, "read", DatasetError), open_regular(path, "an ONNX graph") as file:
            # The bytes and not the path: a graph cannot name files beside it as its weights then.
            graph = file.read()
        self.sha256 = hashlib.sha256(graph).hexdigest()
        try:
            available = onnxruntime.get_available_providers()
            self._session = onnxruntime.InferenceSession(
                graph, providers=[name for name in _PROVIDERS if name in available]
            )
        except Exception as cause:  # ONNX Runtime's own exceptions have no common base
            reason = printable(first_line(cause))
            raise DatasetError(
                f"{self._where}: cannot be opened as an ONNX graph with its weights inside "
                f"({reason}). Export the teacher again, without external data."
            ) from cause
        self._input = self._checked_input(side)
        # Tried before any training: a wrong teacher would otherwise show hours later.
        noise = np.random.default_rng(0).standard_normal((2, 3, side, side), np.float32)
        found = self.logits(noise)
        if found.shape != (2, classes):
            raise DatasetError(
                f"{self._where}: its first output is {list(found.shape)} for two images, expected "
                f"[2, {classes}], a logit for each class of the test set. Choose its teacher."
            )
        if np.all(found >= 0) and np.allclose(found.sum(1), 1, atol=1e-3):
            raise DatasetError(
                f"{self._where}: its first output is probabilities, which a softmax at the "
                "protocol's temperature would make nearly uniform; expected logits. Export the "
                "teacher without its softmax."
            )

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the teacher's logits.

        Args:
            images: [n, 3, side, side] float32, normalised as ImageNet is.

        Raises:
            DatasetError: If the graph cannot run, or its first output is not numbers.
        """
        try:
            output = self._session.run(None, {self._input: images})[0]
        except Exception as cause:  # as above
            reason = printable(first_line(cause))
            raise DatasetError(
                f"{self._where}: cannot label images {list(images.shape)} ({reason}). Export the "
                "teacher with a dynamic batch, for images of this size."
            ) from cause
        # A sequence or a map, as converters of scikit-learn's classifiers write it, is a list.
        if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
            found = output.dtype if isinstance(output, np.ndarray) else type(output).__name__
            raise DatasetError(
                f"{self._where}: its first output is {found}, expected logits in float32. Export "
                "the teacher with its logits first."
            )
        if not np.isfinite(output).all():
            raise DatasetError(
                f"{self._where}: its logits have NaN or infinity, expected finite numbers. Choose "
                "another teacher, or export it in float32."
            )
        return output.astype(np.float32, copy=False)

    def _checked_input(self, side: int) -> str:
        inputs: list[Any] = self._session.get_inputs()
        if len(inputs) == 1 and _takes_images(inputs[0], side):
            return str(inputs[0].name)
        found = ", ".join(f"{one.type}{one.shape}" for one in inputs) or "none"
        raise DatasetError(
            f"{self._where}: has the inputs {printable(found)}, expected one, "
            f"tensor(float)[n, 3, {side}, {side}] with a dynamic n. Set --image-size to the "
            "teacher's, or export it again."
        )


def _takes_images(declared: Any, side: int) -> bool:
    """Return whether an input of a graph is [n, 3, side, side] float32, with a dynamic n."""
    sizes = list(declared.shape)
    return (
        declared.type == "tensor(float)"
        and len(sizes) == 4
        and not isinstance(sizes[0], int)
        and all(
            not isinstance(got, int) or got == want
            for got, want in zip(sizes[1:], (3, side, side), strict=True)
        )
    )
