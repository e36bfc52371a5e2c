"""A step of a Ray Data pipeline that recovers images."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.errors import DatasetError, shown_value
from diver_trt.method.noise import checked_seed
from diver_trt.recipe import Recipe
from diver_trt.runtime.cores import limit_cores
from diver_trt.runtime.recoverer import Recoverer

Columns = dict[str, NDArray[Any]]

COLUMNS = ("image", "label", "key")
"""The columns that a batch needs."""
PROBLEM = "problem"
"""The column that `keep_bad` adds."""


class RecoverBatch:
    """Recovers batches of a Ray Data pipeline; handed to `map_batches` as it is.

    Each actor of the pool opens the model once, and uses as many cores as Ray gives it
    (`num_cpus`). An image's noise follows from the seed and its key, so the result depends neither
    on the number of actors nor on how Ray divides the rows.

    Example:
        >>> recovered = distilled.map_batches(
        ...     RecoverBatch,
        ...     fn_constructor_kwargs={"bundle": "engines/digits"},
        ...     batch_size=8,
        ...     num_cpus=1,
        ...     compute=ray.data.ActorPoolStrategy(size=2),
        ... )

    Args:
        bundle: The exported model: a folder that exists on every node; None is the digits model.
        recipe: The method's settings; the paper's by default.
        seed: Seed of the noise, from -2^63 to 2^63 - 1.
        engine: A name of `diver_trt.runtime.backends.BACKENDS`, or `"auto"`.
        batch: Images per batch; None leaves it to the engine. Any `batch_size` is divided into
            such batches.
        memory_budget: Limit on engine memory in bytes, for TensorRT.
        trust: Whether TensorRT engines that were built elsewhere may run.
        keep_bad: Whether an image that comes out with NaN or infinite values, or all in one
            colour, is kept and described in a column `problem`, instead of ending the pipeline.

    Raises:
        BundleError: If the bundle is missing on this node, or damaged.
        EngineError: If the engine cannot run here.
        UsageError: If a number is out of range.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        recipe: Recipe | None = None,
        *,
        seed: int = 0,
        engine: str = "auto",
        batch: int | None = None,
        memory_budget: int | None = None,
        trust: bool = False,
        keep_bad: bool = False,
    ) -> None:
        self._seed, self._keep_bad = checked_seed(seed), keep_bad
        limit_cores_to_assigned()
        self._recoverer = Recoverer(
            Bundle.open(os.fspath(bundle) if bundle is not None else default_bundle()),
            recipe,
            engine=engine,
            batch=batch,
            memory_budget=memory_budget,
            trust=trust,
        )

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> Columns:
        """Recover the images of a batch.

        Args:
            batch: The columns `image` (n images, uint8 [H, W, 3]), `label` (the model's class of
                each) and `key` (its name, a text). Other columns are passed on.

        Returns:
            The batch with the recovered images, uint8 [n, S, S, 3], and with `keep_bad` a column
            `problem`: why an image is unusable, or an empty text.

        Raises:
            DatasetError: If a column is missing, a column `problem` would be replaced, or a value
                does not fit the model.
            EngineError: If the engine fails, or an image is unusable and `keep_bad` is not set.
        """
        # Not isinstance(batch, Mapping): a pandas DataFrame is accepted.
        if not hasattr(batch, "keys"):
            raise DatasetError(
                f"the batch is a {type(batch).__name__}; expected columns of numpy arrays, which "
                'map_batches gives with batch_format="numpy"'
            )
        if missing := [name for name in COLUMNS if name not in batch]:
            raise DatasetError(
                f"the batch has the columns {shown_value(sorted(batch))}; expected also "
                f"{', '.join(missing)}"
            )
        if self._keep_bad and PROBLEM in batch:
            raise DatasetError(
                f"the batch has a column {PROBLEM}, which keep_bad adds; rename it, or drop it"
            )
        results = list(
            self._recoverer(
                # A list, because Ray hands over images of several sizes as an array of objects.
                list(batch["image"]),
                batch["label"],
                keys=batch["key"],
                seed=self._seed,
                keep_bad=self._keep_bad,
            )
        )
        side = self._recoverer.bundle.image_size
        # Filled one by one: numpy.stack refuses an empty batch.
        images = np.zeros((len(results), side, side, 3), np.uint8)
        for number, result in enumerate(results):
            images[number] = result.image
        columns = {**batch, "image": images}
        if self._keep_bad:
            columns[PROBLEM] = np.array([result.problem or "" for result in results], object)
        return columns


def limit_cores_to_assigned() -> None:
    """Let engines use as many cores as Ray has assigned to this actor, at least one.

    Outside Ray nothing is limited.
    """
    # Not imported: without Ray the class is a plain callable, and in an actor Ray is loaded.
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    context = ray.get_runtime_context()
    if context.get_actor_id() is not None:
        limit_cores(max(1, int(context.get_assigned_resources().get("CPU", 1))))
