"""Running a command in this process, and reading how it failed."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from diver_trt.cli import app

QUICK = ("--steps", "6", "--inherit-step", "3", "--start-step", "6", "--window", "5:3")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: object) -> Result:
    """Run a command that must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fails(result: Result, code: int = 1) -> str:
    """Return the one line of error that a failed command prints."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]
