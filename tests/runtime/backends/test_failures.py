"""Importing an engine's package: whether it is missing, broken, or too large for the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.runtime.backends.failures import imported


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # As TensorRT's and ONNX Runtime's packages do where their libraries are not found
        (
            "raise FileNotFoundError('Could not find: nvinfer_10.dll. Is it on your PATH?')",
            "is installed but cannot be loaded (Could not find: nvinfer_10.dll. Is it on your PAT",
        ),
        (
            "import an_engine.capi.binding",
            "is installed but cannot be loaded (No module named 'an_engine.capi'; ",
        ),
        (
            "raise AttributeError('_ARRAY_API not found')",
            "is installed but cannot be loaded (_ARRAY_API not found); buy another",
        ),
        (
            "raise ImportError('libfoo.so: failed to map segment from shared object')",
            "there is too little memory to load an_engine (libfoo.so: failed to map segment",
        ),
    ],
)
def test_a_broken_engine_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "an_engine.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError) as error:
        imported("an_engine", "cpu", "running a bundle", "buy another")
    assert message in str(error.value)


def test_a_missing_engine_is_its_install_line() -> None:
    with pytest.raises(MissingExtraError, match=r"running a bundle needs an_engine, .*\[cpu\]'"):
        imported("an_engine", "cpu", "running a bundle", "buy another")
