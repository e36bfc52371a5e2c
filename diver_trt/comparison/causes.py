"""Why an output is wrong: known faults are fitted to the difference that they would make.

A step is z_{k-1} = a z_k + b eps - gamma sigma (z_k - z_0) with eps = e_u + w (e_c - e_u) (`diver_trt.method.step`). Where one of its
numbers is wrong, the difference to the right latent is a multiple of one known array. A least-squares fit tells which one, and what the
number is. The right latent is that of the engine's own prediction: a prediction that is 1.01 times as large as it should be makes the same
difference as a b that is, so numbers are only fitted to what the prediction does not explain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.comparison.metrics import difference
from diver_trt.method.step import StepLayout, guided_step

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

Term = Literal["guidance", "a", "b", "gamma"]

EXPLAINED = 0.99
"""Share of a difference's energy that one fault must explain to be named: a fault of another kind explains next to nothing."""


@dataclass(frozen=True, slots=True)
class TermFault:
    """One number of a step that seems to be another.

    Attributes:
        term: Which: `"guidance"` is the guidance scale, a number for each channel.
        expected: What the step table says, [c] for the guidance, else [1].
        fitted: What the engine seems to use, of the same shape.
    """

    term: Term
    expected: tuple[float, ...]
    fitted: tuple[float, ...]

    @property
    def exchanged(self) -> bool:
        """Whether the guidance looks as if class and null rows were exchanged: e_c + w (e_u - e_c) has the scale 1 - w."""
        wanted = 1 - np.array(self.expected)
        return self.term == "guidance" and bool(
            np.allclose(self.fitted, wanted, atol=0.05 * float(np.abs(wanted).max()))
        )

    def like(self, other: TermFault) -> bool:
        """Return whether another step's fault is the same: of the same term, with the same numbers to one part in a hundred."""
        ours, theirs = ((*fault.expected, *fault.fitted) for fault in (self, other))
        return self.term == other.term and bool(
            np.allclose(ours, theirs, rtol=0, atol=0.01 * float(np.abs(ours).max()))
        )

    def __str__(self) -> str:
        if self.exchanged:
            return "guidance takes the class's row for the null class's and the other way round"
        names = {
            "guidance": "the guidance scale",
            "a": "DDIM's a",
            "b": "DDIM's b",
            "gamma": "gamma of semantic guidance",
        }
        return f"as if {names[self.term]} were {self._shown(self.fitted)} instead of {self._shown(self.expected)}"

    def _shown(self, values: tuple[float, ...]) -> str:
        """Return numbers as text, as 0 what a fit leaves of one: less than a thousandth of the largest."""
        least = 1e-3 * float(np.abs((*self.expected, *self.fitted)).max())
        shown = [f"{value if abs(value) >= least else 0:.3g}" for value in values]
        return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"


def next_latent(
    latent: Float32,
    anchor: Float32,
    prediction: Float32,
    row: Float32 | Float64,
    layout: StepLayout,
) -> Float64:
    """Return z_{k-1} as a step's numbers make it of a prediction, [n, c, h, w], computed in float64; arguments as in `fit_step`."""
    c = layout.channels
    z, z_0, (by_class, by_null), numbers = (
        values.astype(np.float64) for values in (latent, anchor, prediction, row)
    )
    right: Float64 = guided_step(
        z, z_0, by_class[:, :c], by_null[:, :c], by_class[:, c:], numbers, layout, np.exp
    )
    return right


def fit_step(
    found: Float32,
    latent: Float32,
    anchor: Float32,
    prediction: Float32,
    row: Float32,
    layout: StepLayout,
) -> TermFault | None:
    """Return the one number of a step that explains the difference to the right next latent, if one does.

    Args:
        found: The engine's next latent, [n, c, h, w].
        latent: z_k, [n, c, h, w].
        anchor: z_0, [n, c, h, w].
        prediction: The engine's own prediction at z_k, [2, n, c or 2 c, h, w]: by class, then by null class.
        row: The right row of the step table, [C].
        layout: Its columns.
    """
    right = next_latent(latent, anchor, prediction, row, layout)
    gap = found - right
    if not 0 < float((gap**2).sum()) < np.inf:
        return None
    scale, numbers = row[: layout.channels].astype(np.float64), row.astype(np.float64)
    exchanged = (
        next_latent(latent, anchor, prediction[::-1], row, layout) - right
    )  # inside the window the variance is exchanged too
    if _explained(gap, exchanged) >= EXPLAINED:
        return TermFault("guidance", tuple(scale.tolist()), tuple((1 - scale).tolist()))
    e_c, e_u = prediction[:, :, : layout.channels].astype(np.float64)
    guided = e_u + scale.reshape(1, -1, 1, 1) * (e_c - e_u)
    one = numbers.copy()
    one[layout.gamma] += 1
    pulled = next_latent(latent, anchor, prediction, one, layout) - right
    fits = [
        ("guidance", scale, *_fit(gap, numbers[layout.b] * (e_c - e_u), per_channel=True)),
        ("a", numbers[[layout.a]], *_fit(gap, latent.astype(np.float64))),
        ("b", numbers[[layout.b]], *_fit(gap, guided)),
        ("gamma", numbers[[layout.gamma]], *_fit(gap, pulled)),
    ]
    term, expected, change, explained = max(fits, key=lambda fit: fit[3])
    if explained < EXPLAINED:
        return None
    kind: Term = term  # type: ignore[assignment]
    return TermFault(kind, tuple(expected.tolist()), tuple((expected + change).tolist()))


def fit_gain(found: Float32, expected: Float32, tolerance: float) -> float | None:
    """Return the factor between two arrays if it is not 1 and all that differs: see `_is_all` for what counts, by relative L2."""
    gain = float(
        (found.astype(np.float64) * expected).sum() / (expected.astype(np.float64) ** 2).sum()
    )
    if not np.isfinite(gain) or gain <= 0:
        return None
    before, left = (
        difference(values, expected).relative_l2 for values in (found, found / np.float32(gain))
    )
    return gain if _is_all(gain, before, left, tolerance) else None


def fit_input_gain(
    run: Callable[[float], Float32], expected: Float32, tolerance: float
) -> float | None:
    """Return the factor on a network's input that brings its output to the expected one, if one between 1/8 and 8 other than 1 does.

    Args:
        run: The network in question, with its input multiplied by what it is given.
        expected: What its output should be.
        tolerance: Relative L2 that counts as equal; see `_is_all`.
    """
    from scipy.optimize import minimize_scalar

    def error(exponent: float) -> float:
        return difference(run(2.0**exponent), expected).relative_l2

    found = minimize_scalar(error, bounds=(-3, 3), method="bounded", options={"xatol": 1e-7})
    gain = float(2.0**found.x)
    return gain if _is_all(gain, error(0.0), found.fun, tolerance) else None


def _is_all(gain: float, before: float, left: float, tolerance: float) -> bool:
    """Return whether a gain is all that is wrong: it is not 1, and takes an error to below the tolerance and to a tenth.

    Some gain takes something off almost any error, and a small one below the tolerance: that alone says nothing.
    """
    return abs(gain - 1) > tolerance and left <= min(tolerance, before / 10)


def window_of(gammas: dict[int, float]) -> tuple[int, int] | None:
    """Return the window `(t_h, t_l)` that gammas by step amount to, if those that act are neighbours of one strength."""
    acting = {step: gamma for step, gamma in gammas.items() if abs(gamma) > 1e-6}
    if not acting or np.ptp(list(acting.values())) > 0.05 * max(map(abs, acting.values())):
        return None
    first, last = min(acting), max(acting)
    return (last, first - 1) if len(acting) == last - first + 1 else None


def _fit(gap: Float64, term: Float64, per_channel: bool = False) -> tuple[Float64, float]:
    """Return the multiple of a term that is nearest to a gap, [1] or [c], and the share of the gap's energy that it explains."""
    axes = (0, 2, 3) if per_channel else None
    energy = np.atleast_1d((term * term).sum(axis=axes))
    along = np.atleast_1d((gap * term).sum(axis=axes))
    multiple = np.divide(along, energy, out=np.zeros_like(along), where=energy > 0)
    return multiple, _explained(gap, multiple.reshape((1, -1, 1, 1)) * term)


def _explained(gap: Float64, by: Float64) -> float:
    """Return the share of a gap's energy that something explains; negative if it makes it worse."""
    return 1 - float(((gap - by) ** 2).sum() / (gap**2).sum())
