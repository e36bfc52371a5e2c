"""One engine compared with a reference: figures, checks, and where the two diverge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diver_trt.comparison.checks import Check, judge
from diver_trt.comparison.diagnosis import diagnose
from diver_trt.comparison.figures import Figures, measure
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import Absent, Lineup
from diver_trt.comparison.runs import Participant, Reference, record, try_against
from diver_trt.comparison.tolerances import tolerances_for
from diver_trt.errors import EngineError, first_line
from diver_trt.recipe import Recipe

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One engine against the reference.

    Attributes:
        name: The engine and its precision: `"onnx fp16"`.
        precision: The bundle's, or what torch computes in.
        figures: How far it is from the reference.
        checks: All checks; empty if the precision is not judged.
        causes: Where the engine diverges from the reference, in words (network, step, block); empty
            if all checks pass.
        gaps: Absolute differences of all teacher-forced latents, [values] float32.
        recovered: The engine's final images.
        seconds: Duration of the comparison, in seconds.
    """

    name: str
    precision: str
    figures: Figures
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


def compare_lineup(
    lineup: Lineup, inputs: Inputs, recipe: Recipe, on_step: Callable[[], None] = lambda: None
) -> tuple[Reference, tuple[Comparison, ...], tuple[Absent, ...]]:
    """Run the reference, and every other engine against it.

    An engine that fails while it runs is returned among the absent ones; the comparison of the
    others continues.

    Returns:
        The reference, the comparisons, and the engines that could not be compared.

    Raises:
        DiverError: If the reference fails or writes NaN or infinite values, or a bundle's files
            have changed.
    """
    # First, since every engine's trial needs the reference's values.
    recording = record(lineup.reference, inputs, recipe, on_step)
    # One probe for all engines: opening it reads the whole denoiser.
    reference = Reference(lineup.reference, recording, lineup.reference.probe())
    if (where := _first_overflow(reference, inputs)) is not None:
        raise EngineError(
            f"{lineup.reference.name}: the reference itself is not finite, first in {where}; "
            "expected finite values. Use another bundle or model as the reference."
        )
    comparisons, absent = [], list(lineup.absent)
    for participant in lineup.others:
        try:
            comparisons.append(compare_engine(reference, participant, inputs, recipe, on_step))
        except EngineError as reason:
            absent.append(
                Absent(
                    participant.name,
                    f"failed while running: {first_line(reason)}",
                    # It started, so it was expected to finish, requested by name or not.
                    asked=True,
                )
            )
    return reference, tuple(comparisons), tuple(absent)


def _first_overflow(reference: Reference, inputs: Inputs) -> str | None:
    """Return where a reference first writes NaN or infinite values, or None."""
    recording, steps = reference.recording, len(reference.recording.latents) - 1
    if not np.isfinite(recording.anchor).all():
        return "the encoder"
    if not all(np.isfinite(table).all() for table in recording.conditions.values()):
        return "the conditioner"
    for k, before, after in zip(
        range(steps, 0, -1), recording.latents[:-1], recording.latents[1:], strict=True
    ):
        overflowing = np.flatnonzero(~np.isfinite(after).all(axis=(1, 2, 3))).tolist()[:1]
        if overflowing:
            # The whole batch is not probed: one overflowing image shows the place.
            stages = reference.probe.stages(
                before[overflowing], reference.condition_pair(inputs, k, overflowing)
            ).all()
            place = next(
                (place for place, values in stages.items() if not np.isfinite(values).all()), None
            )
            return f"step {k}{f', after {place}' if place else ''}"
    # Only a captured graph can end elsewhere than its own steps.
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
        reference: The reference, finite throughout.
        participant: The engine.
        inputs: The images that the reference was given.
        recipe: The method's settings.
        on_step: Called after every step of every batch, in both runs (`try_against`).

    Raises:
        EngineError: If the engine cannot be opened or run.
        BundleError: If its files have changed, or its denoiser has other places than the
            reference's.
        MissingExtraError: If a package that it needs is not installed.
    """
    started = time.monotonic()
    trial = try_against(reference.recording, participant, inputs, recipe, on_step)
    # Of both: an fp16 reference is itself as far from the model as float16 allows.
    tolerances = tolerances_for(participant.precision, reference.participant.precision)
    # bfloat16 is not judged: without a limit, no place counts as swapped.
    place_tolerance = tolerances.place.value if tolerances else np.inf
    # Probes run on ONNX Runtime's CPU engine, where one graph equals itself whatever engines do.
    same_graph = participant.probed == reference.participant.probed != ()
    probe = None if same_graph else participant.probe()
    figures = measure(reference, trial, probe, inputs, place_tolerance)
    checks = judge(figures, tolerances, inputs.keys) if tolerances else ()
    passed = all(check.passed for check in checks)
    return Comparison(
        name=participant.name,
        precision=participant.precision,
        figures=figures,
        checks=checks,
        causes=diagnose(figures, tolerances) if tolerances and not passed else (),
        gaps=np.abs(trial.teacher_forced - reference.recording.latents[1:]).ravel(),
        recovered=tuple(trial.recording.images),
        seconds=time.monotonic() - started,
    )
