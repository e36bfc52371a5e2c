"""Running `diver-trt compare` in this process."""

from __future__ import annotations

from typer.testing import Result

from tests.cli.command import run

QUICK = ("--samples", 2, "--steps", 6, "--inherit-step", 3, "--start-step", 6, "--window", "5:3")


def compare(*arguments: object) -> Result:
    return run("compare", *arguments)


def refused(result: Result, code: int = 1) -> str:
    """Return the whole of what a failed command prints on stderr, wrong usage in a box included."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr
