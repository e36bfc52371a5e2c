"""Optional packages: a missing one is distinguished from a broken one, however the import fails."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from diver_trt.errors import MissingExtraError, UsageError
from diver_trt.packages import importing, required

MODULES = {
    "broken": "import absent",
    "without_library": "raise ImportError('libfoo.so: not found')",
    "without_dll": "raise OSError('Error loading foo.dll')",
    "for_another_numpy": "raise AttributeError('_ARRAY_API not found')",
    "too_old": "from os import nothing",
    # As diffusers imports its modules, with the reason in the exception's cause alone.
    "lazy": """
try:
    import too_old
except ImportError as cause:
    raise RuntimeError("Failed to import lazy.models, see:\\n") from cause
""",
    "of_ours": "from diver_trt.errors import UsageError\nraise UsageError('no such class')",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("module", "problem", "message"),
    [
        ("absent", None, "a report needs absent, which is not installed; run `pip install 'diver"),
        ("absent.inner", None, "a report needs absent.inner, which is not installed"),
        ("broken", "No module named 'absent'", "installed but cannot be imported (No mod"),
        ("without_library", "libfoo.so: not found", "imported (libfoo.so: not found); reinstall"),
        (
            "without_dll",
            "Error loading foo.dll",
            "`pip install --force-reinstall without_dll`",
        ),
        (
            "for_another_numpy",
            "_ARRAY_API not found",
            "needs for_another_numpy, which is",
        ),
    ],
)
def test_a_package_that_cannot_be_imported(module: str, problem: str, message: str) -> None:
    with pytest.raises(MissingExtraError) as error:
        required(module, "compare", "a report")
    assert error.value.problem == problem
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("absent.inner", "needs absent, which is not installed; run `pip install 'diver-trt[sd]'`"),
        ("broken", "needs absent, which is not installed"),
        (
            "without_library",
            "needs without_library, which is installed but cannot be import",
        ),
        ("without_dll", "needs without_dll, which is installed but cannot be imported (Error load"),
        ("too_old", "needs os, which is installed but cannot be imported (cannot import name 'not"),
        (
            "lazy",
            "needs os, which is installed but cannot be imported (cannot import name 'not",
        ),
    ],
)
def test_the_package_at_fault_in_a_block_of_imports(module: str, message: str) -> None:
    with pytest.raises(MissingExtraError) as error, importing("sd", "a text encoder"):
        import_module(module)
    assert f"a text encoder {message}" in str(error.value)


def test_faults_of_our_own_code_are_not_blamed_on_a_package() -> None:
    with pytest.raises(UsageError, match="no such class"), importing("sd", "a text encoder"):
        import_module("of_ours")
    with pytest.raises(KeyError), importing("sd", "a text encoder"):
        raise KeyError
    with pytest.raises(ImportError, match="nothing"), importing("sd", "a text encoder"):
        from diver_trt.errors import nothing  # type: ignore[attr-defined]  # noqa: F401
