"""Optional packages: a missing one and a broken one are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.errors import MissingExtraError
from diver_trt.packages import required


@pytest.mark.parametrize(
    ("module", "problem", "message"),
    [
        ("absent", None, "a report needs absent, which is not installed; run `pip install"),
        ("absent.inner", None, "a report needs absent.inner, which is not installed"),
        ("broken", "No module named 'absent'", "which is installed but cannot be imported (No mod"),
        ("without_library", "libfoo.so: not found", "imported (libfoo.so: not found); reinstall"),
    ],
)
def test_a_package_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, problem: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text("import absent")
    (tmp_path / "without_library.py").write_text("raise ImportError('libfoo.so: not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError) as error:
        required(module, "compare", "a report")
    assert error.value.problem == problem
    assert message in str(error.value)
