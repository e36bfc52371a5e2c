"""ONNX Runtime: importing it, which two packages install into one folder, and models from bytes."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

from diver_trt.errors import EngineError
from diver_trt.packages import installed
from diver_trt.runtime.backends.failures import imported

_REINSTALL = (
    "run `pip uninstall -y onnxruntime onnxruntime-gpu`, "
    "then install 'diver-trt[cpu]' or 'diver-trt[gpu]'"
)


ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""The packages that have ONNX Runtime, of which one is installed."""


def import_onnxruntime(extra: str = "cpu") -> Any:
    """Import ONNX Runtime, and warn where both of its packages are installed over each other.

    Args:
        extra: The extra that installs the package that is needed: `"cpu"` or `"gpu"`.

    Raises:
        MissingExtraError: If neither package is installed.
        EngineError: If what is installed is not whole.
    """
    onnxruntime = imported("onnxruntime", extra, "running a bundle", _REINSTALL)
    # Uninstalling one of the two packages deletes files of the other, and leaves a folder that
    # still imports.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineError(
            "onnxruntime is installed but half of it is missing, as after removing one of its "
            f"two packages; {_REINSTALL}"
        )
    if len(found := installed_packages()) > 1:
        warnings.warn(
            f"{' and '.join(found)} are both installed and overwrite each other's files, so the "
            f"CUDA provider may be gone; {_REINSTALL}",
            RuntimeWarning,
            stacklevel=2,
        )
    if extra == "gpu":
        # CUDA and cuDNN installed by pip lie where the dynamic linker does not look. It prints what
        # it does not find, which opening a network reports as an error.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return onnxruntime


def read_weights_from(options: Any, folder: Path) -> None:
    """Let a session that is opened from bytes read its external weights from a folder.

    Args:
        options: The session's options.
        folder: The folder of the weights, which ONNX Runtime knows only for a model from a file.
    """
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )


def installed_packages() -> list[str]:
    """Return the installed packages of ONNX Runtime, each with its version."""
    found = installed(ONNXRUNTIMES)
    return [f"{package} {version}" for package, version in found.items()]
