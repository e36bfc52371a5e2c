"""The command line: `main` is the entry point of `diver-trt`.

The commands are in `diver_trt.cli.commands`, one module each.
"""

from __future__ import annotations

import sys

# Nothing heavy is imported here: signals and streams are set up before the first slow import, so
# that Ctrl-C during start-up ends in one line.
from diver_trt.cli.process import run_program


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        code = run_program(_program)
    except KeyboardInterrupt:  # a signal before `run_program` has begun, or while it ends
        code = 130
    sys.exit(code)


def _program() -> None:
    from diver_trt.cli.commands import app

    app()
