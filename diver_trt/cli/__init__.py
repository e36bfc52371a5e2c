"""The command line: `main` is the entry point of `diver-trt`.

The commands are in `diver_trt.cli.commands`, one module each. `app` is their Typer application, for
programs that run or extend it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

# Nothing heavy is imported here: signals and streams are set up before the first slow import, so
# that Ctrl-C during start-up ends in one line.
from diver_trt.cli.process import run_program

if TYPE_CHECKING:
    from diver_trt.cli.commands import app as app


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


# An import at the top would load Typer and every command before `main` has set up signals
# (https://peps.python.org/pep-0562/).
def __getattr__(name: str) -> object:
    """Import the Typer application on first access."""
    if name == "app":
        from diver_trt.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
