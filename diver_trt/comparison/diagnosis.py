"""Where an engine diverges from the reference: the network, the step, the block.

Each level is measured alone, so a fault is not hidden by its consequences.
"""

from __future__ import annotations

from diver_trt.comparison.blocks import StageDifference, first_beyond, steepest
from diver_trt.comparison.figures import Figures
from diver_trt.comparison.tolerances import Tolerances
from diver_trt.counted import counted, few

JUMP = 3.0
"""Growth of the error from one place to the next that is reported; rounding alone grows slowly."""


def diagnose(figures: Figures, tolerances: Tolerances) -> tuple[str, ...]:
    """Return where a failing engine diverges from the reference, in the order of a recovery."""
    found = [
        *_networks(figures, tolerances),
        *_classes(figures, tolerances),
        *_denoiser(figures, tolerances),
    ]
    if not tolerances.step.holds(figures.replay):
        found.append(
            f"the whole run ends a relative {figures.replay:.1e} away from where the same steps "
            "end one by one: check the CUDA graph"
        )
    if not found:
        end = figures.steps[-1].free.relative_l2
        found.append(
            "every network and every step holds alone; over the free run the errors accumulate to "
            f"a relative L2 of {end:.1e}"
        )
    return tuple(found)


def _networks(figures: Figures, tolerances: Tolerances) -> list[str]:
    """Return a line for each of encoder, conditioner and decoder that is wrong by itself."""
    return [
        f"the {name} is a relative {apart.relative_l2:.1e} away from the reference on the same "
        "input"
        if apart.finite
        else f"the {name} writes NaN or infinite values: it overflows"
        for name, apart in figures.networks.items()
        if not tolerances.networks[name].holds(apart.relative_l2)
    ]


def _classes(figures: Figures, tolerances: Tolerances) -> list[str]:
    """Return a line if the conditioner is wrong only for classes without an image."""
    limit = tolerances.networks["conditioner"]
    wrong = [name for name, error in figures.classes.items() if not limit.holds(error)]
    # If classes of the images are also wrong, `_networks` has named the conditioner.
    if not wrong or not limit.holds(figures.networks["conditioner"].relative_l2):
        return []
    return [
        f"the conditioner is wrong for {counted(len(wrong), 'class')} without an image, most for "
        f"{figures.worst_class}: check its label table"
    ]


def _denoiser(figures: Figures, tolerances: Tolerances) -> list[str]:
    """Return the steps that are wrong, and the first place inside the denoiser that is."""
    compared = f"(compared in step {figures.stage_step})"
    overflowing = [step.k for step in figures.steps if not step.forced.finite]
    # Everything after an overflow also overflows, which hides other causes.
    if overflowing:
        place = next((stage.place for stage in figures.stages if not stage.difference.finite), None)
        first_after = f", first after {place}" if place else ""
        return [f"{_steps(overflowing)}: NaN or infinite values{first_after}: it overflows"]
    failing = [
        step.k for step in figures.steps if not tolerances.step.holds(step.forced.relative_l2)
    ]
    # A fault below the limit of every single step can still be large compared with what the steps
    # change. No step then stands out, so all are named.
    where = _steps(failing) if failing else "all steps"
    first = first_beyond(figures.stages, tolerances.place.value)
    if first is not None:
        return [f"{where}: {_place(first, figures.stages)} {compared}"]
    if not failing and tolerances.change.holds(figures.median_change):
        return []
    if not figures.stages:
        return [
            f"{where}: the reference runs the same graph, so the fault lies in an engine's "
            "computation of it; --model compares block by block"
        ]
    prediction = figures.stages[-1].difference.relative_l2
    return [
        f"{where}: every block holds and the prediction is a relative {prediction:.1e} away "
        f"{compared}, so the fault lies behind the network: guidance (which multiplies the "
        "rounding of the prediction), DDIM, semantic guidance, or the engine's computation of the "
        "graph"
    ]


def _place(first: StageDifference, stages: tuple[StageDifference, ...]) -> str:
    """Return in words where the denoiser diverges from the reference."""
    if first.swapped:
        return f"{first.place} has the class's row in place of the null class's, and vice versa"
    # A small fault stays below the tolerance at its own place and exceeds it only further on; the
    # jump is nearer to it.
    jump = steepest(stages[: stages.index(first) + 1], JUMP)
    jumps = f", and the error jumps at {jump.place}" if jump and jump is not first else ""
    error = first.difference.relative_l2
    return (
        f"{first.place} is the first to diverge from the reference, by a relative "
        f"{error:.1e}{jumps}"
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
    return f"step{'s' if len(steps) > 1 else ''} {few(shown, 8)}"
