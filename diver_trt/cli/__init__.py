"""The command line: `main` is what `diver-trt` runs.

The commands are in `diver_trt.cli.commands`, a module for each.

Importing this package loads next to nothing, so that signals and streams are seen to before the
first heavy import.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from diver_trt.cli.process import run_program

if TYPE_CHECKING:
    from diver_trt.cli.commands import app as app


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run_program(_program))


def _program() -> None:
    from diver_trt.cli.commands import app

    app()


def __getattr__(name: str) -> object:
    """Import the Typer application when it is first asked for."""
    if name == "app":
        from diver_trt.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
