"""Running `diver-trt compare` in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from diver_trt.cli import app

QUICK = ("--samples", 2, "--steps", 6, "--inherit-step", 3, "--start-step", 6, "--window", "5:3")


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *(str(argument) for argument in arguments)])


def refused(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr
