"""One engine held against a reference: the figures on every level, the checks they pass or fail, and what seems to be at fault.

Levels are judged apart, so that a cause is not buried under what follows from it: a wrong encoder spoils every image, but not one
teacher-forced step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diver_trt.comparison.blocks import (
    Probe,
    StageDifference,
    compare_stages,
    first_beyond,
    steepest,
)
from diver_trt.comparison.causes import (
    TermFault,
    fit_gain,
    fit_input_gain,
    fit_step,
    next_latent,
    window_of,
)
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import Absent, Lineup
from diver_trt.comparison.metrics import (
    Difference,
    ImageDifference,
    difference,
    image_difference,
    worst_channel,
)
from diver_trt.comparison.runs import Participant, Recording, Trial, record, try_against
from diver_trt.comparison.tolerances import Limit, Tolerances, tolerances_for
from diver_trt.errors import EngineError
from diver_trt.recipe import Recipe

Float32 = NDArray[np.float32]

FITTED_IMAGES = 4
"""Images that the numbers of a step are fitted on: those that come out worst."""
SHOWN_FAULTS = 3
"""Different values of one number that are told one by one; of more, only the commonest."""
JUMP = 3.0
"""Growth of the error from one place to the next that is worth a word: rounding alone adds little at each."""


@dataclass(frozen=True, slots=True)
class StepDifference:
    """One step of an engine against the reference's.

    Attributes:
        k: The step.
        forced: The next latent, made from the reference's latent.
        free: The next latent, made from the engine's own.
        channel: The latent channel in which `forced` is worst.
        change: Error of `forced` over what the reference's step changes, both as L2 norms.
    """

    k: int
    forced: Difference
    free: Difference
    channel: int
    change: float


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and the limit it is held to.

    Attributes:
        subject: What is judged: `"encoder alone"`.
        measure: What the figure is, with its unit: `"relative L2"`.
        figure: The figure.
        limit: The limit.
        where: Where it was found, in words, or empty.
    """

    subject: str
    measure: str
    figure: float
    limit: Limit
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.limit.holds(self.figure)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One engine against the reference.

    Attributes:
        name: The engine and its precision: `"onnx fp16"`.
        precision: `"fp32"`, `"fp16"` or `"bf16"`.
        networks: Encoder, conditioner and decoder, each alone on the same input.
        steps: Every step, noisiest first.
        images: The final image of every input.
        stage_step: The step whose blocks are looked into: the worst one.
        stages: The places of the denoiser in that step, in order.
        checks: All checks; none where the precision is not judged.
        causes: What seems to be at fault, most likely first; empty if all checks pass.
        gaps: Absolute differences of all teacher-forced latents, [values] float32.
        recovered: The engine's final images.
        seconds: How long it took.
    """

    name: str
    precision: str
    networks: Mapping[str, Difference]
    steps: tuple[StepDifference, ...]
    images: tuple[ImageDifference, ...]
    stage_step: int
    stages: tuple[StageDifference, ...]
    checks: tuple[Check, ...]
    causes: tuple[str, ...]
    gaps: Float32
    recovered: tuple[NDArray[np.uint8], ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """`"passed"`, `"failed"`, or `"not judged"`."""
        if not self.checks:
            return "not judged"
        return "passed" if all(check.passed for check in self.checks) else "failed"

    @property
    def worst_step(self) -> StepDifference:
        """The teacher-forced step with the largest relative L2."""
        return max(self.steps, key=lambda step: step.forced.relative_l2)

    @property
    def median_change(self) -> float:
        """The median error of a step over what it changes."""
        return median_change(self.steps)


@dataclass(frozen=True, slots=True)
class Reference:
    """What engines are held against.

    Attributes:
        participant: The engine, its bundle or model.
        recording: What it made of the inputs.
        probe: A look into its denoiser.
    """

    participant: Participant
    recording: Recording
    probe: Probe


def compare_lineup(
    lineup: Lineup, inputs: Inputs, recipe: Recipe, on_step: Callable[[], None] = lambda: None
) -> tuple[Reference, tuple[Comparison, ...], tuple[Absent, ...]]:
    """Run the reference, and every other engine against it.

    An engine that seemed to work and then fails is no reason to lose what the others showed: it joins those that are absent, as one that
    was asked for.

    Returns:
        The reference, the comparisons, and the engines that could not be compared.

    Raises:
        DiverError: The reference fails or writes values that are no numbers, or a bundle's files have changed.
    """
    recording = record(lineup.reference, inputs, recipe, on_step)
    reference = Reference(lineup.reference, recording, lineup.reference.probe())
    if (where := _first_overflow(reference, inputs)) is not None:
        raise EngineError(
            f"{lineup.reference.name}: the reference itself is not finite, first in {where}; expected numbers throughout to hold engines "
            "against, so mend it or compare against another bundle or model"
        )
    comparisons, absent = [], list(lineup.absent)
    for participant in lineup.others:
        try:
            comparisons.append(compare_engine(reference, participant, inputs, recipe, on_step))
        except EngineError as reason:
            absent.append(
                Absent(
                    participant.name,
                    f"failed on the way: {str(reason).splitlines()[0]}",
                    asked=True,
                )
            )
    return reference, tuple(comparisons), tuple(absent)


def _first_overflow(reference: Reference, inputs: Inputs) -> str | None:
    """Return where a reference first writes values that are no numbers, in words, or None if it does not."""
    recording, steps = reference.recording, len(reference.recording.latents) - 1
    if not np.isfinite(recording.anchor).all():
        return "the encoder"
    if not all(np.isfinite(table).all() for table in recording.modulations.values()):
        return "the conditioner"
    for k, before, after in zip(
        range(steps, 0, -1), recording.latents[:-1], recording.latents[1:], strict=True
    ):
        overflowing = np.flatnonzero(~np.isfinite(after).all(axis=(1, 2, 3))).tolist()[:1]
        if overflowing:
            stages = reference.probe.stages(
                before[overflowing], _modulation_pair(reference, inputs, k, overflowing)
            ).all()
            place = next(
                (place for place, values in stages.items() if not np.isfinite(values).all()), None
            )
            return f"step {k}{f', after {place}' if place else ''}"
    if not np.isfinite(recording.final).all():
        return "the whole run, though not in its steps"
    return None if np.isfinite(recording.decoded).all() else "the decoder"


def compare_engine(
    reference: Reference,
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    on_step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Run an engine on the reference's inputs and judge it.

    Args:
        reference: What it is held against, finite throughout.
        participant: The engine.
        inputs: The images that the reference had.
        recipe: The method's settings.
        on_step: Called after every step of every batch, twice in all.

    Raises:
        EngineError: The engine cannot be opened or run.
        BundleError: Its files have changed, or its denoiser is built differently from the reference's.
        MissingExtraError: A package that it needs is not installed.
    """
    started = time.monotonic()
    trial = try_against(reference.recording, participant, inputs, recipe, on_step)
    networks = _compare_networks(trial, reference.recording)
    steps = _compare_steps(trial, reference.recording)
    recovered = tuple(trial.recording.images)
    images = tuple(
        image_difference(ours, theirs)
        for ours, theirs in zip(recovered, reference.recording.images, strict=True)
    )
    tolerances = tolerances_for(participant.precision, reference.participant.precision)
    worst = max(steps, key=lambda step: step.forced.relative_l2).k
    probe = participant.probe()
    look = _look_inside(reference, probe, inputs, recipe, trial, worst, tolerances)
    checks = (
        _checks(tolerances, networks, steps, look, images, trial, reference.recording, inputs)
        if tolerances
        else ()
    )
    causes: tuple[str, ...] = ()
    if tolerances and not all(check.passed for check in checks):
        causes = tuple(
            _Investigation(reference, participant, probe, inputs, recipe, trial, tolerances).causes(
                networks, steps, look
            )
        )
    theirs = reference.recording.latents[1:]
    return Comparison(
        name=participant.name,
        precision=participant.precision,
        networks=networks,
        steps=steps,
        images=images,
        stage_step=worst,
        stages=look.differences,
        checks=checks,
        causes=causes,
        gaps=np.abs(trial.teacher_forced - theirs).ravel(),
        recovered=recovered,
        seconds=time.monotonic() - started,
    )


def _compare_networks(trial: Trial, reference: Recording) -> dict[str, Difference]:
    labels = sorted(reference.modulations)
    ours, theirs = (
        np.stack([made.modulations[label].astype(np.float32) for label in labels])
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
        StepDifference(
            k=start_step - i,
            forced=difference(trial.teacher_forced[i], reference.latents[i + 1]),
            free=difference(trial.recording.latents[i + 1], reference.latents[i + 1]),
            channel=worst_channel(trial.teacher_forced[i], reference.latents[i + 1]),
            change=difference(
                trial.teacher_forced[i] - reference.latents[i],
                reference.latents[i + 1] - reference.latents[i],
            ).relative_l2,
        )
        for i in range(start_step)
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """A look into both denoisers in one step, on the image that comes out worst there."""

    k: int
    differences: tuple[StageDifference, ...]


def _look_inside(
    reference: Reference,
    probe: Probe,
    inputs: Inputs,
    recipe: Recipe,
    trial: Trial,
    k: int,
    tolerances: Tolerances | None,
) -> _Look:
    i, worst = recipe.start_step - k, _worst_images(reference, trial, recipe, k)[:1]
    latent, pair = (
        reference.recording.latents[i, worst],
        _modulation_pair(reference, inputs, k, worst),
    )
    found, expected = probe.stages(latent, pair), reference.probe.stages(latent, pair)
    return _Look(
        k, tuple(compare_stages(found, expected, tolerances.place.value if tolerances else np.inf))
    )


def _worst_images(reference: Reference, trial: Trial, recipe: Recipe, k: int) -> list[int]:
    """Return the images by how far step k takes them from the reference, furthest first."""
    i = recipe.start_step - k
    gaps = np.nan_to_num(
        trial.teacher_forced[i] - reference.recording.latents[i + 1],
        nan=np.inf,
        posinf=np.inf,
        neginf=np.inf,
    )
    furthest: list[int] = np.argsort(-np.abs(gaps).max(axis=(1, 2, 3)), kind="stable").tolist()
    return furthest


def _modulation_pair(reference: Reference, inputs: Inputs, k: int, images: list[int]) -> Float32:
    """Return the reference's modulations of step k for some images, [2, n, M]: class, then null."""
    tables, null = reference.recording.modulations, reference.participant.bundle.null_label
    by_class = [tables[inputs.labels[image]][k - 1] for image in images]
    return np.stack([np.stack(by_class), np.stack([tables[null][k - 1]] * len(by_class))])


def _class_errors(trial: Trial, reference: Recording) -> dict[str, float]:
    """Return the relative L2 of the modulations of every class that the model has, whether an input is of it or not."""
    pairs = zip(trial.recording.classes, reference.classes, strict=True)
    errors = [difference(ours, theirs).relative_l2 for ours, theirs in pairs]
    return {
        **{f"class {label}": error for label, error in enumerate(errors[:-1])},
        "the null class": errors[-1],
    }


def _worst(errors: Mapping[str, float]) -> str:
    return max(errors, key=lambda name: errors[name])


def _checks(
    tolerances: Tolerances,
    networks: Mapping[str, Difference],
    steps: tuple[StepDifference, ...],
    look: _Look,
    images: tuple[ImageDifference, ...],
    trial: Trial,
    reference: Recording,
    inputs: Inputs,
) -> tuple[Check, ...]:
    alone = [
        Check(f"{name} alone", "relative L2", apart.relative_l2, tolerances.networks[name])
        for name, apart in networks.items()
    ]
    by_class = _class_errors(trial, reference)
    classes = Check(
        "every class alone",
        "relative L2",
        max(by_class.values()),
        tolerances.networks["conditioner"],
        f"worst for {_worst(by_class)}",
    )
    worst = max(steps, key=lambda step: step.forced.relative_l2)
    forced = Check(
        "every step alone",
        "relative L2",
        worst.forced.relative_l2,
        tolerances.step,
        f"worst in step {worst.k}, channel {worst.channel}",
    )
    changes = Check(
        "what steps change",
        "error over the change, median",
        median_change(steps),
        tolerances.change,
    )
    furthest = max(look.differences, key=lambda stage: stage.difference.relative_l2)
    blocks = Check(
        "block by block",
        "relative L2",
        furthest.difference.relative_l2,
        tolerances.place,
        f"worst at {furthest.place}, in step {look.k}",
    )
    whole = Check(
        "the whole run against its own steps",
        "relative L2",
        _replay_error(trial.recording),
        tolerances.step,
    )
    lowest = min(range(len(images)), key=lambda i: images[i].psnr_db)
    most = max(range(len(images)), key=lambda i: images[i].max_levels)
    figures = {
        "max_levels": (
            "largest difference in 8-bit levels",
            float(images[most].max_levels),
            f"image {inputs.keys[most]}",
        ),
        "mean_psnr_db": ("mean PSNR in dB", mean_psnr(images), ""),
        "min_psnr_db": (
            "lowest PSNR in dB",
            images[lowest].psnr_db,
            f"image {inputs.keys[lowest]}",
        ),
    }
    final = [
        Check("final images", *figures[name][:2], limit, figures[name][2])
        for name, limit in tolerances.images.items()
    ]
    return (*alone, classes, forced, changes, blocks, whole, *final)


def _replay_error(recording: Recording) -> float:
    """Return how far a whole run ends from where its own steps end, as relative L2; what is no number in both is no difference."""
    ends, steps_end = recording.final, recording.latents[-1]
    known = np.isfinite(steps_end)
    if not np.array_equal(np.isfinite(ends), known):
        return math.inf
    return difference(np.where(known, ends, 0), np.where(known, steps_end, 0)).relative_l2


def median_change(steps: tuple[StepDifference, ...]) -> float:
    """Return the median error of a step over what it changes."""
    return statistics.median(step.change for step in steps)


def mean_psnr(images: tuple[ImageDifference, ...]) -> float:
    """Return the mean PSNR in dB of the images that differ at all; infinite if none does."""
    finite = [image.psnr_db for image in images if np.isfinite(image.psnr_db)]
    return statistics.fmean(finite) if finite else float("inf")


class _Investigation:
    """Finds what is at fault where a check failed: first the networks alone, then the steps, then what only a whole run shows."""

    def __init__(
        self,
        reference: Reference,
        participant: Participant,
        probe: Probe,
        inputs: Inputs,
        recipe: Recipe,
        trial: Trial,
        tolerances: Tolerances,
    ) -> None:
        self.reference, self.participant, self.probe, self.inputs, self.recipe = (
            reference,
            participant,
            probe,
            inputs,
            recipe,
        )
        self.trial, self.tolerances = trial, tolerances

    def causes(
        self, networks: Mapping[str, Difference], steps: tuple[StepDifference, ...], look: _Look
    ) -> list[str]:
        """Return what seems to be at fault, in words."""
        found = [
            self._network_cause(name, apart)
            for name, apart in networks.items()
            if not self.tolerances.networks[name].holds(apart.relative_l2)
        ]
        errors, limit = (
            _class_errors(self.trial, self.reference.recording),
            self.tolerances.networks["conditioner"],
        )
        if limit.holds(networks["conditioner"].relative_l2) and not limit.holds(
            max(errors.values())
        ):
            wrong = [name for name, error in errors.items() if not limit.holds(error)]
            found.append(
                f"the conditioner is wrong for {len(wrong)} classes that no image is of, most for {_worst(errors)}: look at its table"
            )
        found.extend(self._denoiser_causes(steps, look))
        replay = _replay_error(self.trial.recording)
        if not self.tolerances.step.holds(replay):
            found.append(
                f"the whole run ends a relative {replay:.1e} away from where the same steps end one by one: look at the CUDA graph"
            )
        if not found:
            end = steps[-1].free.relative_l2
            found.append(
                f"every network and every step holds alone; over the free run the errors pile up to a relative L2 of {end:.1e}"
            )
        return found

    def _network_cause(self, name: str, apart: Difference) -> str:
        said = f"the {name} is a relative {apart.relative_l2:.1e} away from the reference on the same input"
        if not apart.finite:
            return f"the {name} writes values that are no numbers: it overflows"
        stated = self.participant.bundle.scaling_factor
        if name == "encoder":
            gain = fit_gain(
                self.trial.recording.anchor,
                self.reference.recording.anchor,
                self.tolerances.networks[name].value,
            )
            if gain is not None:
                return f"{said}: all latents are {gain:.3g} times as large, so look at the scaling factor (bundle.json says {stated:g})"
        if name == "decoder":
            gain = self._decoder_gain()
            if gain is not None:
                return f"{said}: it agrees for latents {gain:.3g} times as large, so look at the scaling factor (bundle.json says {stated:g})"
        return said

    def _decoder_gain(self) -> float | None:
        """Return the factor on the first image's latent with which the decoder agrees."""
        final, expected = self.reference.recording.final[:1], self.reference.recording.decoded[:1]
        session = self.participant.open()
        try:
            decoder = session.open("decoder")

            def run(gain: float) -> Float32:
                decoder.write("latent", (final * np.float32(gain)).astype(np.float32))
                decoder.run()
                return decoder.read("image").astype(np.float32)

            try:
                return fit_input_gain(run, expected, self.tolerances.networks["decoder"].value)
            finally:
                decoder.close()
        finally:
            session.close()

    def _denoiser_causes(self, steps: tuple[StepDifference, ...], look: _Look) -> list[str]:
        """Return the place where the denoiser leaves the reference, and what is wrong with its steps besides.

        Both can be: a step is held against what its right numbers make of the engine's own prediction.
        """
        if overflowing := [step.k for step in steps if not step.forced.finite]:
            place = next(
                (stage.place for stage in look.differences if not stage.difference.finite), None
            )
            return [
                f"{_steps(overflowing)}: values that are no numbers{f', first after {place}' if place else ''}: it overflows"
            ]
        failing = [
            step.k for step in steps if not self.tolerances.step.holds(step.forced.relative_l2)
        ]
        first = first_beyond(look.differences, self.tolerances.place.value)
        if not failing and first is None and self.tolerances.change.holds(median_change(steps)):
            return []
        where, looked = (
            _steps(failing) if failing else "all steps",
            f"(looked into at step {look.k})",
        )
        faults, unexplained = self._fit_steps(steps)
        causes = [f"{where}: {self._place(first, look)} {looked}"] if first else []
        causes += self._number_causes(faults)
        if unexplained:
            said = (
                f"no place in the graph leaves the reference {looked}, so the"
                if first is None
                else "beside what the graph predicts, a"
            )
            causes.append(
                f"{_steps(unexplained)}: {said} fault lies behind the network, in guidance, DDIM or semantic guidance, or in what the "
                "engine made of the graph"
            )
        else:
            causes += self._window_cause(faults)
        if not causes:
            predicted = f"{look.differences[-1].difference.relative_l2:.1e} {looked}"
            causes = [
                f"{where}: every block holds; guidance and the size of the step multiply the rounding of the prediction, {predicted}"
            ]
        return causes

    def _fit_steps(
        self, steps: tuple[StepDifference, ...]
    ) -> tuple[dict[int, TermFault], list[int]]:
        """Return the number that is wrong in each step that has one, and the steps that are wrong and no number explains."""
        faults: dict[int, TermFault] = {}
        wrong, uncertain = [], []
        for step in steps:
            if self._holds(step.forced.relative_l2, step.change):
                continue
            found, latent, anchor, prediction, row = self._step(step.k)
            if not np.isfinite(prediction).all():
                wrong.append(step.k)
                continue
            own = next_latent(
                latent, anchor, prediction, row, self.reference.participant.bundle.layout
            )
            apart = difference(found, own).relative_l2
            if self._holds(apart, difference(found - latent, own - latent).relative_l2):
                continue
            fault = fit_step(
                found, latent, anchor, prediction, row, self.reference.participant.bundle.layout
            )
            if fault is not None:
                faults[step.k] = fault
            elif self.tolerances.step.holds(apart):
                uncertain.append(step.k)
            else:
                wrong.append(step.k)
        # The first steps change next to nothing, and rounding alone is beyond that: like the check, this goes by the median.
        return faults, sorted(wrong + uncertain, reverse=True) if 2 * len(uncertain) > len(
            steps
        ) else wrong

    def _holds(self, forced: float, change: float) -> bool:
        return self.tolerances.step.holds(forced) and self.tolerances.change.holds(change)

    def _step(self, k: int) -> tuple[Float32, Float32, Float32, Float32, Float32]:
        """Return step k on the images that it takes furthest from the reference, as `fit_step` takes it."""
        recording, i = self.reference.recording, self.recipe.start_step - k
        images = _worst_images(self.reference, self.trial, self.recipe, k)[:FITTED_IMAGES]
        latent = recording.latents[i, images]
        prediction = self.probe.stages(
            latent, _modulation_pair(self.reference, self.inputs, k, images)
        ).prediction
        row = self.reference.participant.table(self.recipe)[k - 1]
        return (
            self.trial.teacher_forced[i, images],
            latent,
            recording.anchor[images],
            prediction,
            row,
        )

    def _number_causes(self, faults: Mapping[int, TermFault]) -> list[str]:
        """Return a line for the steps of each fault, or for each number where it is another one in many steps."""
        alike: dict[str, list[tuple[TermFault, list[int]]]] = {}
        for k, fault in faults.items():
            of_term = alike.setdefault(fault.term, [])
            steps = next((steps for first, steps in of_term if fault.like(first)), None)
            if steps is None:
                of_term.append((fault, [k]))
            else:
                steps.append(k)
        causes = []
        for of_term in alike.values():
            if len(of_term) <= SHOWN_FAULTS:
                causes += [f"{_steps(steps)}: {fault}" for fault, steps in of_term]
            else:
                every = sorted((k for _, steps in of_term for k in steps), reverse=True)
                fault, steps = max(of_term, key=lambda one: len(one[1]))
                causes.append(
                    f"{_steps(every)}: {fault} in step {steps[0]}, and likewise in the others"
                )
        return causes

    def _window_cause(self, faults: Mapping[int, TermFault]) -> list[str]:
        if not faults or any(fault.term != "gamma" for fault in faults.values()):
            return []
        column = self.reference.participant.bundle.layout.gamma
        table = self.reference.participant.table(self.recipe)[: self.recipe.start_step, column]
        gammas = {k: float(gamma) for k, gamma in enumerate(table, start=1)}
        wanted = window_of(gammas)
        strongest = max(abs(gamma) for gamma in gammas.values())
        for k, fault in faults.items():
            gammas[k] = 0.0 if abs(fault.fitted[0]) < 0.05 * strongest else fault.fitted[0]
        seen = window_of(gammas)
        if wanted is None or seen == wanted:
            return []
        if not any(gammas.values()):
            return [
                f"semantic guidance acts nowhere instead of in the window {wanted[0]}:{wanted[1]}"
            ]
        return (
            [
                f"semantic guidance acts in the window {seen[0]}:{seen[1]} instead of {wanted[0]}:{wanted[1]}"
            ]
            if seen
            else []
        )

    def _place(self, first: StageDifference, look: _Look) -> str:
        """Return where the denoiser leaves the reference, in words."""
        if first.swapped:
            return f"{first.place} holds the class's row where the null class's belongs and the other way round"
        said = f"{first.place} is the first to leave the reference, by a relative {first.difference.relative_l2:.1e}"
        jump = steepest(look.differences[: look.differences.index(first) + 1], JUMP)
        return said + (
            f", and the error jumps at {jump.place}" if jump and jump is not first else ""
        )


def _steps(steps: list[int]) -> str:
    """Return descending steps as text: `step 40`, `steps 40, 25`, `steps 50 to 41, 25`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] - 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    shown = [
        text
        for run in runs
        for text in ([f"{run[0]} to {run[-1]}"] if len(run) > 3 else map(str, run))
    ]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(shown[:8])}{more}"
