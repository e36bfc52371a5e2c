"""The commands, one module each, which parses options, calls the library and prints.

Nothing outside `diver_trt.cli` prints or exits. Exit codes: 0 done, 1 failed with a one-line
reason, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from diver_trt.cli import (
    bench,
    build,
    compare,
    convert,
    doctor,
    evaluate,
    export,
    inspect,
    merge,
    push,
    recover,
)
from diver_trt.cli.arguments import Command
from diver_trt.cli.console import reporting

# Commands import heavy packages in their bodies, so that `--help` answers at once.
app = typer.Typer(
    help="Recover distilled datasets with DIVER: abstract distilled images become realistic ones "
    "that any network learns from.",
    epilog="Try it: diver-trt recover digits recovered",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Every example works with nothing but the wheel: on the digits that it contains, or after the
# examples above it.
# The order is that of `--help`.
COMMANDS: dict[Callable[..., None], str] = {
    recover.recover: "diver-trt recover digits recovered",
    merge.merge: "diver-trt merge part1 part2 part3 recovered",
    export.export: "diver-trt export facebook/DiT-XL-2-256 engines/dit-xl-2-256",
    build.build: "diver-trt build engines/dit-xl-2-256 --sm 86 --batch 8",
    push.push: "diver-trt push engines/dit-xl-2-256 OWNER/NAME --dry-run",
    convert.convert: "diver-trt convert recovered recovered-128 --size 128",
    compare.compare: "diver-trt compare engines/dit-xl-2-256 --model facebook/DiT-XL-2-256",
    bench.bench: "diver-trt bench --batch 1,8",
    evaluate.evaluate: "diver-trt evaluate distilled recovered --test test-images",
    doctor.doctor: "diver-trt doctor",
    inspect.inspect: "diver-trt inspect digits",
}
for command, example in COMMANDS.items():
    app.command(cls=Command, epilog=f"Example: {example}")(reporting(command))


def version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        from diver_trt._version import __version__

        print(f"diver-trt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command line as a whole."""
