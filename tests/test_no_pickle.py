"""Unpickling runs whatever a file says. The package does it nowhere but in torch's allow-listed loader, and this file lists where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import diver_trt

PACKAGE = Path(diver_trt.__file__).parent
UNPICKLERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "pandas", "yaml"}
RUNNERS = {"eval", "exec", "compile", "__import__"}

PERMITTED = {
    ("datasets/stored_array.py", "import pickle"),  # for the name of an error that torch raises
    (
        "datasets/stored_array.py",
        "torch.load(path, map_location=device, weights_only=True)",
    ),  # with four names of numpy's beyond torch's own
    ("merging.py", "np.load(path)"),  # which by itself refuses Python objects
    ("export/checkpoint.py", "torch.load(path, map_location='cpu', weights_only=True, mmap=True)"),  # with torch's own names alone
}


def uses(source: str) -> Iterator[str]:
    """Yield what could unpickle or run a file in a module: imports of such packages, and calls of their loaders or torch's and numpy's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom):
            names = {name.name for name in node.names}
            if (node.module or "").split(".")[0] in UNPICKLERS or (node.module in ("torch", "numpy") and "load" in names):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            loads = called.split(".")[-1] in ("load", "loads", "Unpickler", "read_array", "fromfile") and called.split(".")[0] in (
                "torch",
                "np",
                "numpy",
            )
            if loads or called in RUNNERS or any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                yield ast.unparse(node)


def test_nothing_is_unpickled_outside_the_allow_listed_loader() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), use) for path in PACKAGE.rglob("*.py") for use in uses(path.read_text(encoding="utf-8"))
    }
    assert found == PERMITTED


def test_the_allow_list_is_these_four_names() -> None:
    import numpy as np

    from diver_trt.datasets.stored_array import _allowed_globals

    scalar = np.float64(0).__reduce__()[0]
    expected = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
    assert _allowed_globals() == expected


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill",
        "from pickle import loads",
        "from torch import load",
        "import yaml.loader",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.jit.load(path)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.lib.format.read_array(file)",
        "read(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_such_a_use_is_noticed(source: str) -> None:
    assert list(uses(source))
