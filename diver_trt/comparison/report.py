"""A comparison as JSON values and as one self-contained HTML page.

Plots are inline SVG, pictures inline PNG.
"""

from __future__ import annotations

import base64
import datetime
import io
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.comparison.checks import Check
from diver_trt.comparison.figures import mean_psnr
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import Absent
from diver_trt.comparison.metrics import ImageDifference
from diver_trt.comparison.verdict import Comparison
from diver_trt.contained_file import open_contained
from diver_trt.errors import MissingExtraError, OutputError
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html.jinja")

PACKAGES = (
    "numpy",
    "torch",
    "diffusers",
    "onnx",
    *(package for backend in BACKENDS.values() for package in backend.packages),
    "scikit-image",
    "matplotlib",
)

WORST_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Result:
    """A whole comparison.

    Attributes:
        reference: Name of what the engines were compared with.
        reference_images: Its final images.
        comparisons: Every engine that was compared.
        absent: Engines that were not.
        inputs: The images that went in.
        recipe: The method's settings.
        seed: Seed of the noise.
        bundles: The bundles under test.
        model: Name of the model, if one was given.
    """

    reference: str
    reference_images: tuple[Pixels, ...]
    comparisons: tuple[Comparison, ...]
    absent: tuple[Absent, ...]
    inputs: Inputs
    recipe: Recipe
    seed: int
    bundles: tuple[Bundle, ...]
    model: str | None

    @property
    def passed(self) -> bool:
        """Whether an engine was judged, none failed, and none that was requested is absent."""
        verdicts = [comparison.verdict for comparison in self.comparisons]
        return (
            "failed" not in verdicts
            and "passed" in verdicts
            and not any(absent.asked for absent in self.absent)
        )

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        by_verdict = {
            kind: [one.name for one in self.comparisons if one.verdict == kind]
            for kind in ("passed", "failed")
        }
        missing = [absent.name for absent in self.absent if absent.asked]
        parts = []
        if failed := by_verdict["failed"]:
            parts.append(
                f"{_listed(failed)} {'leaves' if len(failed) == 1 else 'leave'} {self.reference} "
                "by more than the tolerances allow"
            )
        elif held := by_verdict["passed"]:
            parts.append(
                f"{_listed(held)} {'stays' if len(held) == 1 else 'stay'} with {self.reference}"
            )
        elif not missing:
            parts.append("nothing was judged: bfloat16 has no tolerances")
        if missing:
            parts.append(f"{_listed(missing)} could not be compared")
        return "; ".join(parts)


def result_facts(result: Result) -> dict[str, Any]:
    """Return everything as JSON values; infinite figures and NaN become null."""
    facts: dict[str, Any] = _finite(
        {
            "passed": result.passed,
            "headline": result.headline,
            "reference": result.reference,
            "engines": [
                _comparison_facts(comparison, result.inputs) for comparison in result.comparisons
            ],
            "not_compared": absent_facts(result.absent),
            "inputs": {
                "origin": result.inputs.origin,
                "images": len(result.inputs),
                "seed": result.seed,
            },
            "recipe": result.recipe.to_json(),
            "environment": environment(),
            "bundles": [_bundle_facts(bundle) for bundle in result.bundles],
            "model": result.model,
        }
    )
    return facts


def absent_facts(absent: Sequence[Absent]) -> list[dict[str, Any]]:
    """Return the engines that were not compared as JSON values."""
    return [asdict(one) for one in absent]


def environment() -> dict[str, str]:
    """Return what the figures depend on: kind of machine, and versions of packages."""
    found = {
        "date": str(datetime.date.today()),
        "diver-trt": __version__,
        "Python": platform.python_version(),
    }
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def is_report(path: Path) -> bool:
    """Return whether a path is a regular file that `render` of any release wrote."""
    try:
        with open_contained(path, path.parent, OutputError) as file:
            start = file.read(1024)
    except (OSError, OutputError):
        return False
    return not path.is_symlink() and b"<title>diver-trt compare: " in start


def render(result: Result) -> str:
    """Return the report as one HTML page.

    Raises:
        MissingExtraError: matplotlib or Jinja is not installed.
    """
    jinja = import_report_packages()
    page = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    page.filters.update(
        figure=show_figure,
        decibels=show_decibels,
        shown=show_check,
        coded=_coded,
        percent=lambda share: f"{share:.1%}",
    )
    comparisons = result.comparisons
    return str(
        page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            result=result,
            colours={
                comparison.name: COLOURS[i % len(COLOURS)]
                for i, comparison in enumerate(comparisons)
            },
            rows=[
                (comparison, _lowest(comparison), mean_psnr(comparison.images))
                for comparison in comparisons
            ],
            steps_plot=steps_plot(comparisons, result.recipe) if comparisons else "",
            blocks_plot=blocks_plot(comparisons) if comparisons else "",
            spread_plot=spread_plot(comparisons, result.reference_images) if comparisons else "",
            samples={
                comparison.name: worst_samples(comparison, result) for comparison in comparisons
            },
            environment=environment(),
            bundles=[_bundle_facts(bundle) for bundle in result.bundles],
        )
    )


def import_report_packages() -> Any:
    """Import Jinja, and make sure that matplotlib is there.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise MissingExtraError(
            cause.name or "matplotlib", "compare", "writing a report"
        ) from cause
    return jinja2


def show_figure(figure: float) -> str:
    """Return a figure as text: `2.6e-04`, `0`, or `not finite`."""
    if not math.isfinite(figure):
        return "not finite"
    return (
        f"{figure:.1e}"
        if figure and (abs(figure) < 0.01 or abs(figure) >= 1000)
        else f"{figure:.4g}"
    )


def show_decibels(figure: float) -> str:
    """Return a PSNR as text; that of equal images is infinite."""
    return "no difference" if math.isinf(figure) else f"{figure:.1f} dB"


def show_check(check: Check) -> str:
    """Return a check's figure as text, in its unit."""
    return show_decibels(check.figure) if check.limit.at_least else show_figure(check.figure)


# --- plots
# -------------------------------------------------------------------------------------------------

COLOURS = ("#3987d6", "#e08a1e", "#2ba37a", "#c765a6", "#8a7fe0", "#d4573b", "#8c8c3a", "#5aa9b5")
"""Mid tones that can be distinguished on white and on black."""

_INK = "#123456"
"""Stands for the page's own text colour, which is put in its place when the SVG is done."""


def steps_plot(comparisons: Sequence[Comparison], recipe: Recipe) -> str:
    """Return the error of every step as SVG: alone on the left, in the free run on the right."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = _axes(
        2, "Step k (time runs to the right)", "Relative L2 of the next latent"
    )
    for axes, title, which in (
        (left, "Each step alone, on the reference's latent", "forced"),
        (right, "Free run, on the engine's own latent", "free"),
    ):
        axes.set_title(title, loc="left")
        for i, comparison in enumerate(comparisons):
            errors = [getattr(step, which).relative_l2 for step in comparison.steps]
            axes.plot(
                [step.k for step in comparison.steps],
                _drawable(errors),
                color=COLOURS[i % len(COLOURS)],
                label=_label(comparison),
                lw=1.8,
            )
        if recipe.guided_steps:
            axes.axvspan(
                recipe.guided_steps[-1] - 0.5,
                recipe.guided_steps[0] + 0.5,
                color="#888888",
                alpha=0.14,
                lw=0,
            )
        _make_logarithmic(axes)
        axes.set_xlim(recipe.start_step + 0.5, 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom, top = left.get_ylim()[0], max(axes.get_ylim()[1] for axes in (left, right))
    judged = [
        (comparison.precision, check)
        for comparison in comparisons
        for check in comparison.checks
        if check.subject == "every step alone"
    ]
    for limit, precision in {check.limit.value: precision for precision, check in judged}.items():
        left.axhline(limit, color=_INK, lw=1, ls=(0, (4, 3)), alpha=0.7)
        offset = {"xytext": (0, 2), "textcoords": "offset points"}
        left.annotate(
            f"limit for {precision}",
            (1.5, limit),
            ha="right",
            va="bottom",
            color=_INK,
            fontsize=9,
            **offset,
        )
        top = max(top, 4 * limit)
    for axes in (left, right):
        axes.set_ylim(bottom, top)
    return _svg(figure, "Error of every step, for every engine")


def blocks_plot(comparisons: Sequence[Comparison]) -> str:
    """Return the error after every attention and MLP of the worst step as SVG."""
    figure, (axes,) = _axes(1, "Place in the denoiser", "Relative L2 of the residual stream")
    for i, comparison in enumerate(comparisons):
        errors = [stage.difference.relative_l2 for stage in comparison.stages]
        label = f"{_label(comparison)}, step {comparison.stage_step}"
        axes.plot(
            range(len(errors)),
            _drawable(errors),
            color=COLOURS[i % len(COLOURS)],
            marker="o",
            ms=3,
            lw=1.5,
            label=label,
        )
    places = [stage.place for stage in comparisons[0].stages]
    blocks = (len(places) - 2) // 2
    every = max(1, round(blocks / 14))
    ticks = [
        (0, "patches"),
        *((2 * block, f"block {block}") for block in range(every, blocks + 1, every)),
        (len(places) - 1, "final"),
    ]
    axes.set_xticks(
        [at for at, _ in ticks], [label for _, label in ticks], rotation=0 if blocks <= 10 else 45
    )
    _make_logarithmic(axes)
    return _svg(figure, "Error through the denoiser, block by block")


def spread_plot(comparisons: Sequence[Comparison], reference: Sequence[Pixels]) -> str:
    """Return the distribution of differences as SVG: latents of all steps, and final pixels."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = _axes(2, "", "Share of all values, %")
    left.set_title("Latents, all steps alone", loc="left")
    left.set_xlabel("Absolute difference of a value")
    right.set_title("Final images", loc="left")
    right.set_xlabel("Difference of a pixel value, in levels of 255")
    right.set_ylabel("Share of values with at least this, %")
    edges = np.logspace(-10, 1, 89)
    for i, comparison in enumerate(comparisons):
        colour = COLOURS[i % len(COLOURS)]
        gaps = comparison.gaps[np.isfinite(comparison.gaps)]
        counts, _ = np.histogram(gaps.clip(edges[0], edges[-1]), edges)
        left.stairs(
            100 * counts / comparison.gaps.size,
            edges,
            color=colour,
            label=_label(comparison),
            fill=True,
            alpha=0.25,
        )
        left.stairs(100 * counts / comparison.gaps.size, edges, color=colour, lw=1.4)
        levels = np.abs(np.stack(comparison.recovered).astype(int) - np.stack(list(reference)))
        shares = [
            100 * float((levels >= level).mean()) for level in range(min(int(levels.max()), 32) + 1)
        ]
        right.plot(range(len(shares)), _drawable(shares), color=colour, marker="o", ms=4, lw=1.5)
    left.set_xscale("log")
    left.set_xticks(
        [edges[0], 1e-8, 1e-6, 1e-4, 1e-2, 1],
        ["equal", *(f"$10^{{{exponent}}}$" for exponent in (-8, -6, -4, -2, 0))],
    )
    _make_logarithmic(right)
    right.set_ylim(top=200)
    right.set_xlim(-0.3, max(1.3, right.get_xlim()[1]))
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=2))
    return _svg(figure, "How differences are spread")


def _label(comparison: Comparison) -> str:
    """Return an engine's name for a legend, with dollar signs escaped: they start formulas."""
    return comparison.name.replace("$", r"\$")


def _axes(count: int, x_label: str, y_label: str) -> tuple[Any, list[Any]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = dict.fromkeys(
        (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        _INK,
    )
    with rc_context(
        {
            **colours,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.15,
            "axes.titlesize": 11,
        }
    ):
        figure = Figure(figsize=(10.4, 3.7), layout="constrained")
        axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for each in axes:
        each.set_xlabel(x_label)
        each.set_ylabel(y_label)
        each.patch.set_visible(False)
    return figure, axes


def _make_logarithmic(axes: Any) -> None:
    """Give an axis a logarithmic scale, also where nothing can be drawn on one."""
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.set_ylim(1e-10, 1)
        axes.text(
            0.5,
            0.5,
            "every value is 0 or not finite",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=_INK,
        )
    axes.set_yscale("log")


def _svg(figure: Any, title: str) -> str:
    """Return a figure as inline SVG in the page's text colour, with its legend below."""
    from matplotlib import rc_context

    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, len(labels)),
        frameon=False,
        labelcolor=_INK,
    )
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title}
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _drawable(values: Sequence[float]) -> NDArray[np.float64]:
    """Return values for a logarithmic axis: 0 and non-finite values leave a gap."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


# --- pictures
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One image of a report, as data URLs.

    Attributes:
        key: Its name.
        difference: How far it is from the reference's.
        distilled: What went in.
        expected: What the reference made of it.
        found: What the engine made of it.
        amplified: The absolute difference, times `factor`.
        factor: What brings the largest difference near white.
    """

    key: str
    difference: ImageDifference
    distilled: str
    expected: str
    found: str
    amplified: str
    factor: int


def worst_samples(comparison: Comparison, result: Result) -> list[ShownSample]:
    """Return the images of an engine that are furthest from the reference's, worst first."""
    order = sorted(range(len(comparison.images)), key=lambda i: comparison.images[i].psnr_db)
    samples = []
    for i in order[:WORST_SAMPLES]:
        expected, found = result.reference_images[i], comparison.recovered[i]
        gap = np.abs(found.astype(int) - expected)
        factor = max(1, 255 // max(1, int(gap.max())))
        samples.append(
            ShownSample(
                key=result.inputs.keys[i],
                difference=comparison.images[i],
                distilled=_data_url(result.inputs.images[i]),
                expected=_data_url(expected),
                found=_data_url(found),
                amplified=_data_url((gap * factor).clip(0, 255).astype(np.uint8)),
                factor=factor,
            )
        )
    return samples


def _data_url(image: Pixels) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- values
# -------------------------------------------------------------------------------------------------


def _comparison_facts(comparison: Comparison, inputs: Inputs) -> dict[str, Any]:
    worst = comparison.worst_step
    return {
        "name": comparison.name,
        "precision": comparison.precision,
        "verdict": comparison.verdict,
        "causes": list(comparison.causes),
        "checks": [
            {
                "subject": check.subject,
                "measure": check.measure,
                "figure": check.figure,
                "limit": check.limit.value,
                "at_least": check.limit.at_least,
                "passed": check.passed,
                "where": check.where,
            }
            for check in comparison.checks
        ],
        "networks": {name: asdict(apart) for name, apart in comparison.networks.items()},
        "worst_step": {"step": worst.k, "channel": worst.channel, **asdict(worst.forced)},
        "steps": [
            {
                "step": step.k,
                "channel": step.channel,
                "alone": asdict(step.forced),
                "change": step.change,
                "free_run": asdict(step.free),
            }
            for step in comparison.steps
        ],
        "places": {
            "step": comparison.stage_step,
            "relative_l2": {
                stage.place: stage.difference.relative_l2 for stage in comparison.stages
            },
        },
        "images": {
            key: asdict(image) for key, image in zip(inputs.keys, comparison.images, strict=True)
        },
        "mean_psnr_db": mean_psnr(comparison.images),
        "lowest_psnr_db": _lowest(comparison).psnr_db,
        "lowest_ssim": min(image.ssim for image in comparison.images),
        "seconds": round(comparison.seconds, 3),
    }


def _lowest(comparison: Comparison) -> ImageDifference:
    return min(comparison.images, key=lambda image: image.psnr_db)


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.path.name,
        "model": bundle.model_id,
        "precision": bundle.precision,
        "timestep_frequencies": bundle.timestep_frequencies,
        "sha256": bundle.sha256,
        "exported_with": dict(bundle.exported_with),
    }


def _coded(text: str) -> Markup:
    """Return text with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
