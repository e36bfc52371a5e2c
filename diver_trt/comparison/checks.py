"""The checks of an engine: each figure against its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diver_trt.comparison.figures import Figures, mean_psnr
from diver_trt.comparison.tolerances import Limit, Tolerances


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and its limit.

    Attributes:
        subject: What is judged: `"encoder alone"`.
        measure: The kind of figure, with its unit: `"relative L2"`.
        figure: The figure.
        limit: The limit.
        where: Where the figure was found, in words, or empty.
    """

    subject: str
    measure: str
    figure: float
    limit: Limit
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is within the limit."""
        return self.limit.holds(self.figure)


def judge(figures: Figures, tolerances: Tolerances, keys: Sequence[str]) -> tuple[Check, ...]:
    """Return every check of an engine.

    Args:
        figures: The engine's measured figures.
        tolerances: The limits.
        keys: The names of the images, in order.
    """
    return (
        *_network_checks(figures, tolerances),
        *_denoiser_checks(figures, tolerances),
        *_image_checks(figures, tolerances, keys),
    )


def _network_checks(figures: Figures, tolerances: Tolerances) -> list[Check]:
    return [
        *(
            Check(f"{name} alone", "relative L2", apart.relative_l2, tolerances.networks[name])
            for name, apart in figures.networks.items()
        ),
        # Ten images do not cover the other rows of the label table.
        Check(
            "every class alone",
            "relative L2",
            figures.classes[figures.worst_class],
            tolerances.networks["conditioner"],
            f"worst for {figures.worst_class}",
        ),
    ]


def _denoiser_checks(figures: Figures, tolerances: Tolerances) -> list[Check]:
    worst = figures.worst_step
    return [
        Check(
            "every step alone",
            "relative L2",
            worst.forced.relative_l2,
            tolerances.step,
            f"worst in step {worst.k}, channel {worst.channel}",
        ),
        # A latent hides the error of a small step; its change does not.
        Check(
            "what steps change",
            "error over the change, median",
            figures.median_change,
            tolerances.change,
        ),
        *_block_check(figures, tolerances),
        # A captured graph may lack operations that the same steps have when enqueued one by one.
        Check(
            "the whole run against its own steps",
            "relative L2",
            figures.replay,
            tolerances.step,
        ),
    ]


def _block_check(figures: Figures, tolerances: Tolerances) -> list[Check]:
    if not figures.stages:
        return []
    furthest = max(figures.stages, key=lambda stage: stage.difference.relative_l2)
    return [
        Check(
            "block by block",
            "relative L2",
            furthest.difference.relative_l2,
            tolerances.place,
            f"worst at {furthest.place}, in step {figures.stage_step}",
        )
    ]


def _image_checks(figures: Figures, tolerances: Tolerances, keys: Sequence[str]) -> list[Check]:
    images = figures.images
    lowest = min(range(len(images)), key=lambda i: images[i].psnr_db)
    most = max(range(len(images)), key=lambda i: images[i].max_levels)
    # Each precision limits some of these: fp32 the levels, the others the PSNR.
    measured = {
        "max_levels": (
            "largest difference in 8-bit levels",
            float(images[most].max_levels),
            f"image {keys[most]}",
        ),
        "mean_psnr_db": ("mean PSNR in dB", mean_psnr(images), ""),
        "min_psnr_db": ("lowest PSNR in dB", images[lowest].psnr_db, f"image {keys[lowest]}"),
    }
    return [
        Check("final images", *measured[name][:2], limit, measured[name][2])
        for name, limit in tolerances.images.items()
    ]
