"""A second try in fp32 for images that came out unusable in another precision."""

from __future__ import annotations

import warnings
from operator import attrgetter

from diver_trt.bundle import Bundle
from diver_trt.contract import Precision
from diver_trt.distilled.dataset import Sample
from diver_trt.errors import BundleError, DatasetError, DiverError
from diver_trt.recovered.distilled_input import DistilledInput
from diver_trt.recovered.job import Job
from diver_trt.runtime.events import RecoveredSample
from diver_trt.runtime.recoverer import Recoverer


def second_engine(precision: Precision) -> str:
    """Return what a manifest records as the engine of an image from the second try.

    Args:
        precision: That of the bundle whose image was unusable.
    """
    return f"onnx fp32 (fallback: the {precision} image was unusable)"


class SecondTry:
    """Recovers single samples with the fp32 bundle of the same model, if one lies beside it.

    The bundle is opened when the first sample needs it.

    Args:
        job: The job.
        distilled: Its distilled images.
    """

    def __init__(self, job: Job, distilled: DistilledInput) -> None:
        self._job, self._distilled = job, distilled
        self._twin: Recoverer | None = None
        self._looked_for_twin = False

    def recover(self, sample: Sample) -> RecoveredSample | None:
        """Return a sample recovered in fp32, or None if that cannot be done here.

        Raises:
            DatasetError: If the whole input has become unreadable.
        """
        try:
            if not self._looked_for_twin:
                # Set first: a bundle that cannot be opened is warned of once, not for every image.
                self._looked_for_twin = True
                twin = find_fp32_twin(self._job.bundle)
                # On the CPU, one image at a time: the model in use has the device's memory, and
                # TensorRT engines of the fp32 bundle may never have been built.
                self._twin = (
                    Recoverer(twin, self._job.recipe, engine="onnx", batch=1) if twin else None
                )
            if self._twin is None:
                return None
            image = self._distilled.read(sample)
            # `keep_bad`: a second bad image is a result with its problem, not an EngineError.
            return next(
                self._twin(
                    [image], [sample.label], keys=[sample.key], seed=self._job.seed, keep_bad=True
                )
            )
        # A second try that fails costs this image, not the run.
        except (DiverError, OSError) as error:
            if isinstance(error, DatasetError) and self._distilled.is_gone(sample):
                raise
            warnings.warn(
                f"an unusable image cannot be retried in fp32: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def close(self) -> None:
        """Free the fp32 bundle; the next `recover` looks for it again."""
        if self._twin:
            self._twin.close()
        self._twin, self._looked_for_twin = None, False


def find_fp32_twin(bundle: Bundle) -> Bundle | None:
    """Return the fp32 bundle of the same model in the same folder, or None."""
    if bundle.precision == "fp32":
        return None
    same = attrgetter(
        "model.weights_sha256",
        "latent_shape",
        "image_size",
        "scaling_factor",
        "process",
        "timestep_frequencies",
    )
    # In order, so that of several the same one is taken each time.
    for folder in sorted(bundle.path.resolve().parent.iterdir()):
        try:
            if not (folder / "bundle.json").is_file():
                continue
            other = Bundle.open(folder)
        # In a shared folder such as /tmp some neighbours may not be read.
        except (BundleError, OSError):
            continue
        # The same weights under the same process: another model's image would be a wrong one.
        if other.precision == "fp32" and same(other) == same(bundle):
            return other
    return None
