"""How far an engine is from the reference, level by level.

Every level is measured alone: a wrong encoder spoils every image, but no teacher-forced step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diver_trt.comparison.blocks import Probe, StageDifference, compare_stages
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.metrics import (
    Difference,
    ImageDifference,
    difference,
    image_difference,
    worst_channel,
)
from diver_trt.comparison.runs import Recording, Reference, Trial


@dataclass(frozen=True, slots=True)
class StepDifference:
    """One step of an engine against the reference's.

    Attributes:
        k: The step.
        forced: The next latent, made from the reference's latent.
        free: The next latent, made from the engine's own.
        channel: The latent channel in which `forced` is worst.
        change: L2 norm of the error of `forced`, divided by that of the change that the reference
            makes in this step.
    """

    k: int
    forced: Difference
    free: Difference
    channel: int
    change: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of one engine.

    Attributes:
        networks: Encoder, conditioner and decoder, each alone on the same input.
        classes: Relative L2 of the conditions of every class of the model, by the class in words,
            also of classes without an image.
        steps: Every step, noisiest first.
        replay: Relative L2 between the end of a whole run and the end of its own single steps;
            infinite if only one of them is finite.
        stage_step: The step whose blocks are compared: the teacher-forced step with the largest
            relative L2.
        stages: The places of the denoiser in that step, in order, on the image with the largest
            difference; empty if the reference runs the same graph.
        images: The final image of every input.
    """

    networks: Mapping[str, Difference]
    classes: Mapping[str, float]
    steps: tuple[StepDifference, ...]
    replay: float
    stage_step: int
    stages: tuple[StageDifference, ...]
    images: tuple[ImageDifference, ...]

    @property
    def worst_step(self) -> StepDifference:
        """The teacher-forced step with the largest relative L2."""
        return max(self.steps, key=lambda step: step.forced.relative_l2)

    @property
    def median_change(self) -> float:
        """The median over the steps of `StepDifference.change`."""
        # Not the mean: the first steps change next to nothing, so their quotients are arbitrary.
        return statistics.median(step.change for step in self.steps)

    @property
    def worst_class(self) -> str:
        """The class whose conditions have the largest error, in words."""
        return max(self.classes, key=lambda name: self.classes[name])


def measure(
    reference: Reference,
    trial: Trial,
    probe: Probe | None,
    inputs: Inputs,
    place_tolerance: float,
) -> Figures:
    """Return the figures of an engine.

    Args:
        reference: The reference, finite throughout.
        trial: The engine's run on the inputs, and on the reference's own values.
        probe: The engine's denoiser, or None if the reference runs the same graph.
        inputs: The images that both were given.
        place_tolerance: Relative L2 up to which a place of the denoiser agrees with the reference.

    Raises:
        BundleError: If the engine's denoiser has other places than the reference's.
    """
    steps = _compare_steps(trial, reference.recording)
    worst = max(steps, key=lambda step: step.forced.relative_l2).k
    return Figures(
        networks=_compare_networks(trial, reference.recording),
        classes=_compare_classes(trial, reference.recording),
        steps=steps,
        replay=_replay_error(trial.recording),
        stage_step=worst,
        stages=(
            _compare_blocks(reference, trial, probe, inputs, worst, place_tolerance)
            if probe is not None
            else ()
        ),
        images=tuple(
            image_difference(ours, theirs)
            for ours, theirs in zip(trial.recording.images, reference.recording.images, strict=True)
        ),
    )


def _compare_networks(trial: Trial, reference: Recording) -> dict[str, Difference]:
    labels = sorted(reference.conditions)
    ours, theirs = (
        np.stack([made.conditions[label].astype(np.float32) for label in labels])
        for made in (trial.recording, reference)
    )
    return {
        "encoder": difference(trial.recording.anchor, reference.anchor),
        "conditioner": difference(ours, theirs),
        "decoder": difference(trial.decoded_reference, reference.decoded),
    }


def _compare_steps(trial: Trial, reference: Recording) -> tuple[StepDifference, ...]:
    start_step = len(trial.teacher_forced)
    return tuple(
        # `latents[i]` is what this step reads, and `latents[i + 1]` what it makes.
        StepDifference(
            k=start_step - i,
            forced=difference(trial.teacher_forced[i], reference.latents[i + 1]),
            free=difference(trial.recording.latents[i + 1], reference.latents[i + 1]),
            channel=worst_channel(trial.teacher_forced[i], reference.latents[i + 1]),
            # Both changes start from one latent, so the error is that of `forced`, over a smaller
            # norm.
            change=difference(
                trial.teacher_forced[i] - reference.latents[i],
                reference.latents[i + 1] - reference.latents[i],
            ).relative_l2,
        )
        for i in range(start_step)
    )


def _compare_blocks(
    reference: Reference, trial: Trial, probe: Probe, inputs: Inputs, k: int, tolerance: float
) -> tuple[StageDifference, ...]:
    """Compare both denoisers inside step k, on the image with the largest difference."""
    i = len(trial.teacher_forced) - k
    # An image that overflows counts as the one with the largest difference.
    gaps = np.nan_to_num(
        trial.teacher_forced[i] - reference.recording.latents[i + 1],
        nan=np.inf,
        posinf=np.inf,
        neginf=np.inf,
    )
    # A list, so that indexing keeps the axis of the images.
    worst = [int(np.abs(gaps).max(axis=(1, 2, 3)).argmax())]
    latent = reference.recording.latents[i, worst]
    pair = reference.condition_pair(inputs, k, worst)
    found, expected = probe.stages(latent, pair), reference.probe.stages(latent, pair)
    return tuple(compare_stages(found, expected, tolerance))


def _compare_classes(trial: Trial, reference: Recording) -> dict[str, float]:
    pairs = zip(trial.recording.classes, reference.classes, strict=True)
    errors = [difference(ours, theirs).relative_l2 for ours, theirs in pairs]
    return {
        **{f"class {label}": error for label, error in enumerate(errors[:-1])},
        "the null class": errors[-1],
    }


def _replay_error(recording: Recording) -> float:
    """Return the relative L2 between the ends of a whole run and of its own single steps."""
    ends, steps_end = recording.final, recording.latents[-1]
    # A value that is NaN or infinite in both does not differ: the captured graph is not at fault.
    known = np.isfinite(steps_end)
    if not np.array_equal(np.isfinite(ends), known):
        return math.inf
    return difference(np.where(known, ends, 0), np.where(known, steps_end, 0)).relative_l2


def lowest_psnr(images: tuple[ImageDifference, ...]) -> ImageDifference:
    """Return the image with the lowest PSNR."""
    return min(images, key=lambda image: image.psnr_db)


def mean_psnr(images: tuple[ImageDifference, ...]) -> float:
    """Return the mean PSNR in dB of the images that differ at all; infinite if none differs."""
    # One equal image, at infinity, would hide all others.
    finite = [image.psnr_db for image in images if np.isfinite(image.psnr_db)]
    return statistics.fmean(finite) if finite else float("inf")
