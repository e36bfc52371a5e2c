"""What a diffusion process gives a step, and the registry of processes.

A process is the path from an image to noise that a model was trained on. Its level `k` of `K` holds
`z_k = alpha_k z_0 + sigma_k n`, with `z_0` the clean latent and `n ~ N(0, I)`. Every deterministic
step is `z_{k-1} = a_k z_k + b_k p`, with `p` what the network predicts, so the graph of a step is
the same for all of them. A new process is one file and one entry of `PROCESSES`.
"""

from __future__ import annotations

from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from diver_trt.method.ddpm import Ddpm
from diver_trt.method.flow import Flow
from diver_trt.recipe import Sigma
from diver_trt.structs import Tagged

Float64 = NDArray[np.float64]


class Process(Protocol):
    """One process with its parameters; equal processes compare equal, and `str` describes one.

    It is a frozen dataclass that a bundle stores as it is (`diver_trt.documents`); its field `kind`
    is its name in `PROCESSES`.

    Tables over steps are ascending: step `k` is entry `k - 1`. Tables over levels start with the
    clean level: level `k` is entry `k`.
    """

    def times(self, steps: int) -> NDArray[np.float32]:
        """Return the time that the network is given at each step, [K] float32, in its own unit.

        Raises:
            RecipeError: If the process has fewer steps.
        """

    def levels(self, steps: int) -> tuple[Float64, Float64]:
        """Return alpha_k and sigma_k of each level, two arrays [K + 1] float64.

        Entry 0 is where the last step ends: 1 and 0, or nearly so on a chain that stops before.

        Raises:
            RecipeError: If the process has fewer steps, or steps that cannot be computed.
        """

    def coefficients(self, steps: int) -> tuple[Float64, Float64]:
        """Return a_k and b_k of the step `z_{k-1} = a_k z_k + b_k p`, each [K] float64.

        Raises:
            RecipeError: See `levels`.
        """

    def clean_estimate(self, steps: int) -> tuple[Float64, Float64]:
        """Return the factors of the clean latent that a prediction implies, each [K] float64.

        `x0_hat = first_k z_k + second_k p`.

        Raises:
            RecipeError: See `levels`.
        """

    def log_variance_bounds(
        self, steps: int, sigma: Sigma | None, learned: bool
    ) -> tuple[Float64, Float64]:
        """Return the two bounds of each step's log-variance, each [K] float64.

        Both are equal where the variance is fixed.

        Args:
            steps: Number of steps `K`.
            sigma: The recipe's choice of the variance; None is the process's own.
            learned: Whether the network predicts its variance.

        Raises:
            RecipeError: See `levels`; also if the process does not define this variance.
        """


PROCESSES: dict[str, type[Process]] = {"ddpm": Ddpm, "flow": Flow}
"""Every process by its `kind` in a bundle."""

StoredProcess = Annotated[Process, Tagged(PROCESSES)]
"""A process as a field of a document."""
