"""The settings of DIVER (arXiv 2605.12649) as one frozen, checked object.

Steps count down: of `steps` DDIM steps, step `k = steps` is the noisiest and step 1 the last. The
paper's symbols are `t_f` = `inherit_step`, `t_r` = `start_step`, `[t_h, t_l]` = `window`, `w` =
`cfg_scale`.

The defaults of `steps`, `inherit_step`, `start_step`, `gamma`, `window` and `guide` are the
paper's, as is the scaling of the gradient by sigma_t. The paper's text does not state the rest: the
guidance scale 4.0, the number of guided channels, which sigma_t is meant, and that DDIM adds no
noise (eta 0). These follow DiT's sampler and the mode-guided samplers built on it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from diver_trt.errors import RecipeError, shown_value

Sigma = Literal["learned", "posterior", "marginal"]
SIGMAS: tuple[Sigma, ...] = get_args(Sigma)

Guide = Literal["latent", "noised", "x0"]
GUIDE_KINDS: tuple[Guide, ...] = get_args(Guide)

STEP_RANGES = ("window", "cfg_window")
"""Settings that are two steps, the noisier first."""

MAX_SCALE = 1000.0
"""Largest `cfg_scale` and `gamma`: hundreds of times what any image survives, and far from values
that overflow float16.
"""


def _setting(default: Any, help: str, *, paper: bool = False) -> Any:  # noqa: A002
    """Return a field with the texts of its option on the command line.

    Args:
        default: The default.
        help: The option's help text.
        paper: Whether the paper states this default.
    """
    return field(default=default, metadata={"help": help, "paper": paper})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a distilled image is recovered.

    The module's docstring lists the defaults that are the paper's.

    Attributes:
        steps: DDIM steps `K`, 2 to the model's number of training timesteps. The other settings
            keep their steps: `Recipe().scaled_to(100)` scales them, as `--steps 100` does.
        inherit_step: Noise level `t_f` that the distilled latent is lifted to, 1 to `steps`; None
            starts from pure noise (ablation "inheritance off").
        start_step: Step `t_r` at which sampling starts, 1 to `steps`. With `start_step ==
            inherit_step` (a *matched* start) the stated noise level is the actual one,
            and only those steps are run.
        cfg_scale: Classifier-free guidance `w`, 1 (off) to `MAX_SCALE`.
        cfg_channels: Number of latent channels that it guides, from the first; the others keep the
            class-conditional prediction. None is what the base model's own sampler guides: three of
            four for DiT (diffusers' pipeline guides all four).
        cfg_window: `(high, low)`: classifier-free guidance acts at steps `high >= k > low` (a
            guidance interval, arXiv 2404.07724); None is every step.
        gamma: Strength of semantic guidance, 0 (ablation "guidance off") to `MAX_SCALE`.
        window: `(t_h, t_l)`: semantic guidance acts at steps `t_h >= k > t_l`; `(steps, 0)` is
            every step.
        sigma: Scale of semantic guidance per step: `"learned"` is the model's own standard
            deviation (a model without one uses `"posterior"`), `"posterior"` that of q(z_{k-1} |
            z_k, z_0), `"marginal"` that of the noise in z_k. None is `"learned"` for a DDPM chain
            and `"marginal"` for a flow, which has no other.
        guide: What semantic guidance brings together: `"latent"` the noisy latent and the clean one
            (the paper's text), `"noised"` the noisy latent and the clean one at the same noise
            level, `"x0"` the predicted clean latent and the clean one (as MGD3 does).

    Raises:
        RecipeError: If a value is out of range, or two settings contradict each other.
    """

    steps: int = _setting(50, "DDIM steps K; settings that name a step scale with it", paper=True)
    inherit_step: int | None = _setting(
        25, "Noise level t_f the distilled latent is lifted to", paper=True
    )
    # Noisier than t_f on purpose: the paper samples from a higher step than it lifts latents to.
    start_step: int = _setting(
        50, "Step t_r sampling starts at, or matched (= the inherit step)", paper=True
    )
    cfg_scale: float = _setting(4.0, "Classifier-free guidance w")
    cfg_channels: int | None = _setting(
        None, "Latent channels it guides, 1 to all; DiT's own sampler guides 3 of 4"
    )
    cfg_window: tuple[int, int] | None = _setting(
        None, "Steps HIGH:LOW that it acts in, HIGH >= k > LOW, or full"
    )
    gamma: float = _setting(0.1, "Strength of semantic guidance", paper=True)
    window: tuple[int, int] = _setting(
        (40, 25), "Steps HIGH:LOW it acts in, HIGH >= k > LOW, or full", paper=True
    )
    sigma: Sigma | None = _setting(  # noqa: RUF009
        None, "Its scale: learned or posterior (of a DDPM chain), or marginal"
    )
    guide: Guide = _setting(  # noqa: RUF009
        "latent", "Where it pulls: latent, noised or x0", paper=True
    )

    def __post_init__(self) -> None:
        # object.__setattr__ is how a frozen dataclass normalises its fields.
        for name in ("steps", "inherit_step", "start_step", "cfg_scale", "cfg_channels", "gamma"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name in STEP_RANGES:
            if isinstance(value := getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(map(_plain, value)))
        # After the numbers are plain: the checks below refuse every type but Python's own.
        self._check_ranges()
        for name in ("cfg_scale", "gamma"):
            # 4 equals 4.0, but JSON writes them differently.
            object.__setattr__(self, name, float(getattr(self, name)))
        self._check_windows()
        if self.inherit_step is None and self.start_step != self.steps:
            raise RecipeError(
                f"start_step is {self.start_step} of {self.steps} but inheritance is off: the "
                f"model expects pure noise at step {self.steps} only. Set start_step to "
                f"{self.steps}, or give an inherit_step."
            )

    def _check_ranges(self) -> None:
        _require_int("steps", self.steps, 2, None)
        hint = self._proportions_hint
        _require_int("start_step", self.start_step, 1, self.steps, hint)
        if self.inherit_step is not None:
            _require_int("inherit_step", self.inherit_step, 1, self.steps, hint)
        if self.cfg_channels is not None:
            # The upper limit is the model's, so `method.schedule` checks it.
            _require_int("cfg_channels", self.cfg_channels, 1, None)
        _require_float("cfg_scale", self.cfg_scale, 1.0, MAX_SCALE)
        _require_float("gamma", self.gamma, 0.0, MAX_SCALE)
        if self.sigma not in (None, *SIGMAS):
            raise RecipeError(f"sigma is {self.sigma!r}; expected one of {', '.join(SIGMAS)}.")
        if self.guide not in GUIDE_KINDS:
            raise RecipeError(f"guide is {self.guide!r}; expected one of {', '.join(GUIDE_KINDS)}.")

    def _check_windows(self) -> None:
        high, low = self._checked_range("window", self.window)
        if self.cfg_window is not None:
            first, last = self._checked_range("cfg_window", self.cfg_window)
            if self.cfg_scale > 1 and last >= self.start_step:
                raise RecipeError(
                    f"cfg_window is {first}:{last} but sampling starts at step {self.start_step}, "
                    "so classifier-free guidance would never act. Set its last step below "
                    f"{self.start_step}, or cfg_scale to 1."
                )
        if self.gamma > 0 and low >= self.start_step:
            # 0.4 is 10 of 25, where the window of `matched` ends.
            raise RecipeError(
                f"window is {high}:{low} but sampling starts at step {self.start_step}, so "
                "semantic guidance would never act. Set the window to "
                f"{self.start_step}:{round(self.start_step * 0.4)} (as the preset `matched` does), "
                "or gamma to 0."
            )

    def _checked_range(self, name: str, steps: object) -> tuple[int, int]:
        if not (isinstance(steps, tuple) and len(steps) == 2):
            raise RecipeError(f"{name} is {steps!r}; expected two steps, such as (40, 25).")
        high, low = steps
        _require_int(f"{name}'s first step", high, 1, self.steps, self._proportions_hint)
        _require_int(f"{name}'s last step", low, 0, self.steps)
        if low == high:
            raise RecipeError(
                f"{name} is {high}:{low}, which holds no step; expected a last step below {high}."
            )
        if low > high:
            raise RecipeError(
                f"{name} is {high}:{low}; it runs downwards, so expected the larger step first, "
                f"{low}:{high}."
            )
        return high, low

    # A function and no text: PRESETS does not exist while its own recipes are checked.
    def _proportions_hint(self) -> str:
        """Return the paper's settings, which are steps of 50, at the same fractions of `steps`."""
        if self.steps == PRESETS["paper"].steps:
            return ""
        paper = PRESETS["paper"].scaled_to(self.steps)
        high, low = paper.window
        return (
            f" The paper's settings are for 50 steps; for {self.steps} they are "
            f"Recipe().scaled_to({self.steps}): "
            f"--inherit-step {paper.inherit_step} --start-step {paper.start_step} --window "
            f"{high}:{low}."
        )

    @property
    def doubt(self) -> str | None:
        """A note where the steps of other settings are still the paper's of 50, or None.

        With fewer steps such a recipe is refused; with more of them it is another method: it
        inherits and starts at a lower noise level.
        """
        paper = PRESETS["paper"]
        named = ("inherit_step", "start_step", "window")
        if self.steps == paper.steps or any(
            getattr(self, name) != getattr(paper, name) for name in named
        ):
            return None
        return (
            f"steps is {self.steps}, but the settings that name a step are those for "
            f"{paper.steps}.{self._proportions_hint()}"
        )

    @property
    def guided_steps(self) -> range:
        """Steps at which semantic guidance acts, noisiest first."""
        high, low = self.window
        return range(min(high, self.start_step), low, -1) if self.gamma > 0 else range(0)

    def scaled_to(self, steps: int) -> Recipe:
        """Return this recipe for another number of steps; steps in other settings are scaled.

        Raises:
            RecipeError: If `steps` is not a whole number, 2 or more.
        """
        _require_int("steps", steps, 2, None)

        # Halves are rounded up. round() takes them to the even number: 25 of 50 steps would become
        # 2 of 5 and 4 of 7.
        def scaled(step: int) -> int:
            return (2 * step * steps + self.steps) // (2 * self.steps)

        inherit = None if self.inherit_step is None else max(1, scaled(self.inherit_step))
        start = max(1, scaled(self.start_step))

        # With few steps, both ends may round to the same step, or the lower one to the start: such
        # a window would be empty, or never act.
        def scaled_range(steps: tuple[int, int]) -> tuple[int, int]:
            high = max(1, scaled(steps[0]))
            return high, min(scaled(steps[1]), high - 1, start - 1)

        return replace(
            self,
            steps=steps,
            inherit_step=inherit,
            start_step=start,
            window=scaled_range(self.window),
            cfg_window=None if self.cfg_window is None else scaled_range(self.cfg_window),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> Recipe:
        """Return the recipe that `to_json` wrote.

        Raises:
            RecipeError: If a setting is unknown, or out of range.
        """
        if not isinstance(settings, dict):
            raise RecipeError(f"settings are {shown_value(settings)}; expected an object of them.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(settings.keys() - known):
            raise RecipeError(
                f"unknown settings {', '.join(unknown)}; expected some of "
                f"{', '.join(sorted(known))}."
            )
        ranges = {
            # JSON turns tuples into lists.
            name: tuple(settings[name])
            for name in STEP_RANGES
            if isinstance(settings.get(name), list)
        }
        return cls(**{**settings, **ranges})


def setting_text(value: object) -> str:
    """Return a setting as the command line takes it: steps as `40:25`."""
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> Any:
    """Return a numpy number as a Python one, which JSON can hold, and anything else unchanged."""
    # A bool is an Integral; _require_int refuses it, which int(True) would get past.
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _require_int(
    name: str, value: object, low: int, high: int | None, hint: Callable[[], str] = str
) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        expected = (
            f"a whole number from {low} to {high}"
            if high is not None
            else f"a whole number, {low} or more"
        )
        raise RecipeError(f"{name} is {shown_value(value)}; expected {expected}.{hint()}")


def _require_float(name: str, value: object, low: float, high: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not low <= value <= high  # False for NaN, and exact for integers beyond float64
    ):
        raise RecipeError(
            f"{name} is {shown_value(value)}; expected a number from {low:g} to {high:g}."
        )


# Measured on ImageFruit with MTT at 10 images per class, five architectures (the paper's table):
# distilled 18.9 %.
# fmt: off
PRESETS: dict[str, Recipe] = {
    "paper":   Recipe(),                                # 29.8 % in the paper
    "ncfm":    Recipe(gamma=0.02),                      # the paper's, for sets distilled with NCFM
    "matched": Recipe(start_step=25, window=(25, 10)),  # ours: half the steps; examples/digits
    "d4m":     Recipe(cfg_scale=8.0),                   # the paper's, with D4M's guidance (SD-1.5)
    # Ours: starts and pulls at each step's own noise level; docs/results.md.
    "level":   Recipe(inherit_step=40, start_step=40, window=(40, 16), guide="noised"),
}
# fmt: on
