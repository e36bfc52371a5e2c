"""What the commands print with, and how each of them ends."""

from __future__ import annotations

import functools
import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer

from diver_trt.errors import DiverError, UsageError, printable

P = ParamSpec("P")


T = TypeVar("T")


def reporting(command: Callable[P, T]) -> Callable[P, T]:
    """Turn this package's errors, warnings, Ctrl-C and SIGTERM into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            with _sigterm_is_ctrl_c():
                return command(*args, **kwargs)
        except DiverError as error:
            reason, *remedies = str(error).splitlines()
            say(f"error: {reason}")
            for remedy in remedies:
                say(remedy)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
        except OSError as error:
            say(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
            raise typer.Exit(1) from error
        except MemoryError as error:
            say(
                f"error: out of memory ({str(error) or 'no size is known'}); close other programs, or ask for less at once"
            )
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            say("interrupted")
            raise typer.Exit(130) from interrupt

    return wrapped


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """Let SIGTERM interrupt the block as Ctrl-C does, unless somebody ignores or handles it already."""
    ours = (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and threading.current_thread() is threading.main_thread()
    )
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM ask for an end, which the block looks out for; the second one ends it at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        say("finishing the batch in hand; once more to stop at once")
        for kept, handler in before.items():
            signal.signal(kept, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """Say it on standard error, under the program's name."""
    print(f"diver-trt: {text}", file=sys.stderr, flush=True)


def print_json(**values: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(values, indent=1))


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print facts for people: a line each, those within one indented below its name."""
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
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class Progress:
    """Counts up to a total on standard error: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, what: str, total: int, bar: Any = None) -> None:
        self._what, self._total, self._bar = what, total, bar
        self._task = bar.add_task(what, total=total) if bar else None
        self._done, self._told = 0, time.monotonic()

    def __call__(self) -> None:
        """Count one more."""
        self._done += 1
        if self._bar:
            self._bar.advance(self._task)
        elif time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            say(f"{self._what}: {self._done} of {self._total}")

    def restart(self, total: int) -> None:
        """Count again from nothing, up to another total."""
        self._total, self._done = total, 0
        if self._bar:
            self._bar.reset(self._task, total=total)

    def note(self, text: str) -> None:
        """Show what is going on beside the bar."""
        if self._bar:
            self._bar.update(self._task, description=f"{self._what} {text}")


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """Show how far a piece of work has come while the block runs."""
    if not sys.stderr.isatty():
        yield Progress(what, total)
        return
    from rich import progress as rich
    from rich.console import Console

    description = rich.TextColumn("{task.description}")
    columns = (
        description,
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(what, total, bar)
