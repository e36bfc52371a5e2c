"""Signals and standard streams of a command-line process.

Signals are handled from its first moment on; streams may be closed, full or not UTF-8.

Standard output carries results: where it cannot be written the command fails. Standard error
carries notes: where it cannot be written they are lost, and the work continues.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from diver_trt.errors import printable

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Ctrl-C, `kill`, and a terminal or connection that closes."""


def run_program(program: Callable[[], None]) -> int:
    """Run a program that ends by SystemExit, and return its exit code: 0, 1, 2 or 130."""
    open_streams()
    try:
        with stopping_signals_interrupt():
            program()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        say("interrupted")
        code = 130
    except OSError as error:  # such as --help into a full device
        say(f"error: {where(error)}: {error.strerror or error}")
        code = 1
    try:
        sys.stdout.flush()
    except OSError as error:
        say(f"error: {where(error)}: {error.strerror or error}")
        code = code or 1
    return code


def where(error: OSError) -> str:
    """Return the name of what the system failed at."""
    if error.filename is not None:
        return printable(str(error.filename))
    # Only asking for the current folder fails this way without a name.
    return "the current folder" if error.errno == errno.ENOENT else "input or output"


@contextmanager
def stopping_signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does.

    Signals that are ignored (`nohup`) or already handled stay so.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in STOPPING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a stop request that the block polls.

    The second one interrupts immediately.

    Before the block first polls, there is no batch to finish, and a signal interrupts at once.
    A signal that the caller ignores, as a shell does for background jobs, stays ignored.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}
    watching = threading.current_thread() is not threading.main_thread()

    def ask(number: int, _: object) -> None:
        asked.append(number)
        for kept, handler in before.items():
            signal.signal(kept, handler)
        say("finishing the current batch; press Ctrl-C again to stop now")

    def stopping() -> bool:
        nonlocal watching
        if not watching:
            watching = True
            for number in STOPPING:
                if (handler := signal.getsignal(number)) is signal.default_int_handler:
                    before[number] = handler
                    signal.signal(number, ask)
        return bool(asked)

    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def import_numpy() -> None:
    """Import numpy, and tell the SIGINT that OpenBLAS may raise from one that a user sends.

    OpenBLAS raises SIGINT where it cannot start its threads.

    Raises:
        MemoryError: If OpenBLAS raised it.
    """
    can_tell = hasattr(signal, "sigtimedwait") and hasattr(signal, "pthread_sigmask")
    if not can_tell or threading.current_thread() is not threading.main_thread():
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        import numpy  # noqa: F401

        sent = signal.sigtimedwait({signal.SIGINT}, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if sent is None:
        return
    if sent.si_pid != os.getpid():
        signal.raise_signal(signal.SIGINT)
        return
    raise MemoryError(
        "OpenBLAS cannot start its threads; `ulimit -v` and `ulimit -u` show the limits"
    )


def open_streams() -> None:
    """Make the standard streams usable whatever they are.

    A closed one becomes the null device: the next file that is opened would get its number, and
    with it what C libraries print. Texts that its encoding lacks are written with backslash
    escapes.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    stdout, stderr = (
        cast(TextIO, stream or open(os.devnull, "w"))  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    if getattr(stdout, "errors", "") == "strict" and hasattr(stdout, "reconfigure"):
        stdout.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, _Results(stdout)), cast(TextIO, _Notes(stderr))


class _Results:
    """Standard output whose first error is reported by name; later output is discarded.

    So the interpreter does not fail again when it flushes at its end, with an exit code of its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._named():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._named():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise OSError(error.errno, error.strerror, "standard output") from error


class _Notes:
    """Standard error that discards what cannot be written instead of failing.

    The device may be full, the pipe closed, or the terminal gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """Print a note on standard error, under the program's name."""
    if sys.stderr is not None:  # print would take standard output instead
        print(f"diver-trt: {text}", file=sys.stderr, flush=True)
