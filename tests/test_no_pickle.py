"""Unpickling runs code from a file. The package unpickles only models that are exported.

This file lists every such place.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import diver_trt
from diver_trt.distilled.torch_pickle import NAMES

PACKAGE = Path(diver_trt.__file__).parent
UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "pandas",
    "yaml",
}
RUNNERS = {"eval", "exec", "compile", "__import__"}

PERMITTED = {
    # weights_only loads torch's own names alone.
    ("models/weights.py", "torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)"),
    # An empty text: it only resets a mark of the interpreter's.
    ("cli/process.py", "exec('')"),
}


def uses(source: str) -> Iterator[str]:
    """Yield what could unpickle or run a file in a module.

    These are imports of such packages, and calls of their loaders or of torch's and numpy's.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                f"import {name.name}"
                for name in node.names
                if name.name.split(".")[0] in UNPICKLERS
            )
        elif isinstance(node, ast.ImportFrom):
            names = {name.name for name in node.names}
            if (node.module or "").split(".")[0] in UNPICKLERS or (
                node.module in ("torch", "numpy") and "load" in names
            ):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            loads = called.split(".")[-1] in (
                "load",
                "loads",
                "Unpickler",
                "read_array",
                "fromfile",
            ) and called.split(".")[0] in ("torch", "np", "numpy")
            if (
                loads
                or called in RUNNERS
                or any(keyword.arg == "allow_pickle" for keyword in node.keywords)
            ):
                yield ast.unparse(node)


def test_nothing_else_is_unpickled() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), use)
        for path in PACKAGE.rglob("*.py")
        for use in uses(path.read_text(encoding="utf-8"))
    }
    assert found == PERMITTED


def test_the_names_that_mean_something_in_a_file_of_tensors_are_these() -> None:
    """They are words to `TorchPickle`, never imported or called; any other name is refused."""
    kinds = ("Half", "Float", "Double", "Char", "Short", "Int", "Long", "Byte", "Bool")
    dtypes = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
    rebuilds = ("tensor", "tensor_v2", "parameter", "parameter_with_state")
    assert {
        *(f"torch.{kind}Storage" for kind in kinds),
        *(f"torch.{dtype}" for dtype in dtypes),
        *(f"torch._utils._rebuild_{name}" for name in rebuilds),
        *(
            "torch._tensor._rebuild_from_type_v2",
            "torch.Tensor",
            "torch.nn.parameter.Parameter",
            "torch.Size",
            "torch.device",
        ),
        *("collections.OrderedDict", "__builtin__.set", "builtins.set", "_codecs.encode"),
        *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    } == NAMES


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
