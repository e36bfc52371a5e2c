"""How commands print, show progress, and turn errors into exit codes."""

from __future__ import annotations

import errno
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import typer

from diver_trt.cli.process import (
    import_numpy,
    is_interruption,
    say_failed,
    stopping_signals_interrupt,
)
from diver_trt.cli.process import say as say
from diver_trt.errors import DiverError, UsageError, printable, shown
from diver_trt.progress import OnProgress

P = ParamSpec("P")
T = TypeVar("T")


def reporting(command: Callable[P, T]) -> Callable[P, T]:
    """Turn this package's errors, warnings and signals into one line and an exit code."""

    # Typer reads the options from the command's own signature.
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        # Without the file and line of the code that warns, which mean nothing to a user.
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            with stopping_signals_interrupt():
                # Before the command imports numpy, when a SIGINT of OpenBLAS would look like
                # Ctrl-C.
                import_numpy()
                result = command(*args, **kwargs)
            # Here, so that a full device is reported as an error of the command.
            sys.stdout.flush()
            return result
        # Everything else is a defect of this package and keeps its traceback.
        except (DiverError, OSError, MemoryError, KeyboardInterrupt) as error:
            # `run_program` prints that the command was interrupted.
            code = 130 if is_interruption(error) else _report(error)
            raise typer.Exit(code) from error

    return wrapped


def _report(error: BaseException) -> int:
    """Print an error, and return the command's exit code."""
    if isinstance(error, DiverError):
        # Lines after the first are remedies or lists; only the first is the error.
        reason, *remedies = str(error).splitlines()
        say(f"error: {reason}")
        for remedy in remedies:
            say(remedy)
    # Mapping a file fails with ENOMEM where an allocation raises MemoryError.
    elif isinstance(error, OSError) and error.errno != errno.ENOMEM:
        say_failed(error)
    else:
        reason = str(error) or "unknown size"
        say(
            f"error: out of memory ({reason}); close other programs, or reduce the batch or the "
            "input"
        )
    return 2 if isinstance(error, UsageError) else 1


def print_json(**values: Any) -> None:
    """Print one JSON object; NaN and infinities become null."""
    # JSON does not have them (RFC 8259, section 6).
    print(json.dumps(_finite(values), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print facts for people, one line each; nested facts are indented below their name."""
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{printable(key.replace('_', ' '))}")
            print_facts(value, indent + "  ")
        else:
            print(
                f"{indent}{printable(key.replace('_', ' ')):<{width}}  {printable(_shown(value))}"
            )


def _shown(value: object) -> str:
    if value is None or (isinstance(value, (list, dict, str)) and not value):
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    # bool is a subclass of int: True would be printed as 1.
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def end_with_left_out(skipped: Collection[Mapping[str, Any]], *, silent: bool) -> None:
    """Print the images that were left out of a dataset unless `silent`, and exit with 1 for any.

    The dataset is written, but without them: a script should notice.
    """
    for entry in skipped:
        if not silent:
            say(f"left out: {shown(entry['source'])}: {shown(entry['problem'])}")
    if skipped:
        raise typer.Exit(1)


class Progress:
    """Progress on standard error: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, what: str, total: int, bar: Any = None) -> None:
        self.what, self._total, self._bar = what, total, bar
        self._task = bar.add_task(what, total=total) if bar else None
        self._done, self._noted_at = 0, time.monotonic()

    def __call__(self) -> None:
        """Count one more."""
        self.show(self._done + 1, self._total)

    def show(self, done: int, total: int) -> None:
        """Show the amount done and the total."""
        self._done, self._total = done, total
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        else:
            self._note_now_and_then()

    def _note_now_and_then(self) -> None:
        if time.monotonic() - self._noted_at > 10:
            self._noted_at = time.monotonic()
            say(f"{self.what}: {self._done} of {self._total}")

    def note(self, text: str) -> None:
        """Show a text beside the bar."""
        if self._bar:
            self._bar.update(self._task, description=f"{self.what} {text}")


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """Show the progress of a piece of work while the block runs."""
    # A bar in a log file is a stream of control characters.
    if not sys.stderr.isatty():
        yield Progress(what, total)
        return
    from rich import progress as rich
    from rich.console import Console

    description = rich.TextColumn("{task.description}", markup=False)
    columns = (
        description,
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(what, total, bar)


@contextmanager
def phases() -> Iterator[OnProgress]:
    """Show the progress of consecutive phases.

    Each call names the phase, how much of it is done, and its total.
    """
    with ExitStack() as stack:
        current = None

        def show(phase: str, done: int, total: int) -> None:
            nonlocal current
            if current is None or current.what != phase:
                stack.close()
                current = stack.enter_context(progress(phase, total))
            current.show(done, total)

        yield show
