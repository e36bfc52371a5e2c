"""Running `diver-trt compare` in this process."""

from __future__ import annotations

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


def refused(result: Result, code: int = 1) -> str:
    """Return the whole of what a failed command prints on stderr, wrong usage in a box included."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr
