"""Running `diver-trt compare` in this process, and any command in another one."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import Result

from tests.cli import command
from tests.cli.command import run
from tests.conftest import DIGITS_MODEL

QUICK = ("--samples", 2, *command.QUICK)


def compare(*arguments: object) -> Result:
    return run("compare", *arguments)


def compare_onnx(*arguments: object) -> Result:
    """Compare the digits on ONNX Runtime with their model, in a few steps."""
    return compare(*arguments, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)


def run_without(packages: set[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, which must not load these packages."""
    code = f"""
import sys
sys.argv = ["diver-trt", *{[str(argument) for argument in arguments]!r}]
from diver_trt.cli import main
try:
    main()
finally:
    loaded = {{name.split(".")[0] for name in sys.modules}}
    assert not {packages!r} & loaded
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found


def refused(result: Result, code: int = 1) -> str:
    """Return the whole of what a failed command prints on stderr, wrong usage in a box included."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr
