"""Names, shapes and element types of the tensors that cross a network's border."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from diver_trt.structs import Check, one_of

DTYPES = ("float32", "float16", "int64")
# A bundle that asks for terabytes is refused in one line, not where memory is allocated.
MAX_WIDTH = 1 << 24
"""Largest size of an axis that a bundle may declare; no model has a condition as wide."""

Dim = int | str
"""A size, or the name of a dynamic axis: `"n"` images, `"m"` conditions."""


def _is_dim(value: Dim) -> bool:
    return value in ("n", "m") if isinstance(value, str) else 1 <= value <= MAX_WIDTH


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a network.

    Attributes:
        name: The graph's own name for it.
        dtype: `"float32"`, `"float16"` or `"int64"`.
        shape: Sizes, with a text in place of a dynamic axis: `("n", 4, 32, 32)`.
    """

    name: str
    dtype: Annotated[str, one_of(DTYPES)]
    shape: tuple[Annotated[Dim, Check(_is_dim, f'a size from 1 to {MAX_WIDTH:,}, "n" or "m"')], ...]

    def concrete(self, size: int) -> tuple[int, ...]:
        """Return the shape with every dynamic axis set to `size`."""
        return tuple(size if isinstance(dim, str) else dim for dim in self.shape)

    def size_bytes(self, size: int) -> int:
        """Return its size in bytes with every dynamic axis set to `size`."""
        return math.prod(self.concrete(size)) * np.dtype(self.dtype).itemsize

    def allocate(self, size: int) -> NDArray[np.generic]:
        """Return zeros of this type with every dynamic axis set to `size`."""
        return np.zeros(self.concrete(size), dtype=self.dtype)

    def agrees_with(self, dtype: str, shape: Sequence[Dim | None], size: int | None = None) -> bool:
        """Return whether a declared type and shape agree with this specification.

        Args:
            dtype: Its element type.
            shape: Its sizes; a text, None or -1 stands for a size that it leaves open.
            size: The size to which it may fix a dynamic axis; None means that it must leave such
                an axis open.
        """
        if dtype != self.dtype or len(shape) != len(self.shape):
            return False
        # Runtimes write an open size as a name, as None or as -1.
        return all(
            not isinstance(found, int)
            or found == -1
            or found == (size if isinstance(expected, str) else expected)
            for found, expected in zip(shape, self.shape, strict=True)
        )

    def __str__(self) -> str:
        return describe_declared(self.name, self.dtype, self.shape)


def describe_declared(name: str, dtype: str, shape: Sequence[Dim | None]) -> str:
    """Return a declared tensor as `TensorSpec` prints it: `image: float32[?, 3, 32, 32]`."""
    sizes = ("?" if dim is None or dim == -1 else str(dim) for dim in shape)
    return f"{name}: {dtype}[{', '.join(sizes)}]"


def describe_all(specs: Sequence[TensorSpec]) -> str:
    """Return specifications on one line, or `nothing` without any."""
    return ", ".join(map(str, specs)) or "nothing"


def describe(array: NDArray[np.generic]) -> str:
    """Return an array's type and shape as errors print them: `float32[4, 3, 32, 32]`."""
    return f"{array.dtype}[{', '.join(str(size) for size in array.shape)}]"
