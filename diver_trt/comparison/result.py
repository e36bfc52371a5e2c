"""The result of a whole comparison, and its verdict in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import Absent
from diver_trt.comparison.verdict import Comparison
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Result:
    """A whole comparison.

    Attributes:
        reference: Name of the engine that the others were compared with.
        reference_images: Its final images, each [H, W, 3] uint8.
        comparisons: The engines that were compared.
        absent: The engines that were not, with reasons.
        inputs: The images that every engine was given.
        recipe: The method's settings.
        seed: Seed of the noise.
        bundles: The bundles under test.
        model: Name of the model, or None if none was given.
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
        """Whether an engine passed, none failed, and no requested engine is absent."""
        verdicts = [comparison.verdict for comparison in self.comparisons]
        return (
            "failed" not in verdicts
            # Without this, a run in which only bfloat16 took part would pass unjudged.
            and "passed" in verdicts
            and not any(absent.asked for absent in self.absent)
        )

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        failed = self._with_verdict("failed")
        passed = self._with_verdict("passed")
        missing = [absent.name for absent in self.absent if absent.asked]
        parts = []
        # Failures hide successes: the sentence is read as the reason for the exit code.
        if failed:
            verb = "leaves" if len(failed) == 1 else "leave"
            parts.append(
                f"{_listed(failed)} {verb} {self.reference} by more than the tolerances allow"
            )
        elif passed:
            verb = "stays" if len(passed) == 1 else "stay"
            parts.append(f"{_listed(passed)} {verb} with {self.reference}")
        elif not missing:
            parts.append("nothing was judged: bfloat16 has no tolerances")
        if missing:
            parts.append(f"{_listed(missing)} could not be compared")
        return "; ".join(parts)

    def _with_verdict(self, verdict: str) -> list[str]:
        return [one.name for one in self.comparisons if one.verdict == verdict]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
