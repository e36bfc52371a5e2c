"""Signals and standard streams of a command-line process.

Signals are handled from the start of the process. Streams may be closed, full or not UTF-8.

Standard output carries results: if it cannot be written, the command fails. Standard error carries
notes: if it cannot be written, they are lost and the work continues.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TextIO, cast

from diver_trt.errors import printable

# SIGHUP is not available on Windows: https://docs.python.org/3/library/signal.html#signal.SIGHUP
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Ctrl-C, `kill`, and a closed terminal or connection."""


def run_program(program: Callable[[], None]) -> int:
    """Run a program that ends by SystemExit, and return its exit code: 0, 1, 2 or 130.

    Afterwards Ctrl-C, SIGTERM and SIGHUP are ignored: the process is about to end.
    """
    open_streams()
    try:
        with stopping_signals_interrupt(after=signal.SIG_IGN):
            program()
        code = 0
    except BaseException as end:
        # Including SIGINT, which the block above leaves to Python's own handler.
        _ignore_stopping_signals()
        if is_interruption(end):
            _forget_interruption()
            say("interrupted")
            # What shells report for a program that Ctrl-C ended: 128 + SIGINT.
            code = 130
        elif isinstance(end, SystemExit):
            # None is success, any other object a failure:
            # https://docs.python.org/3/library/sys.html#sys.exit
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        elif isinstance(end, OSError):  # such as --help into a full device
            say_failed(end)
            code = 1
        else:
            raise
    _ignore_stopping_signals()
    try:
        # Here: at the interpreter's end a full device would change the exit code to 120.
        sys.stdout.flush()
    except OSError as error:
        say_failed(error)
        code = code or 1
    return code


def is_interruption(error: BaseException) -> bool:
    """Return whether an exception is a KeyboardInterrupt, or was raised on account of one."""
    # Native code that calls Python may raise its own error in place of the interrupt: a module that
    # pybind11 initialises (ImportError), torch's writer of zip files (RuntimeError), and Python
    # 3.11 itself around __set_name__.
    # `__context__` can be set to anything, so that a chain may lead back to itself.
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if isinstance(one, KeyboardInterrupt):
            return True
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            # Both: `raise … from None` hides the context and keeps it.
            pending += [one.__cause__, one.__context__]
    return False


def _ignore_stopping_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _forget_interruption() -> None:
    """Keep the interpreter from ending by SIGINT, and with it without the exit code 130."""
    # A KeyboardInterrupt that leaves `exec` of a text, as dataclasses call it, counts as unhandled
    # even if it is handled further up. The next `exec` takes that back, see run_eval_code_obj in
    # https://github.com/python/cpython/blob/v3.11.7/Python/pythonrun.c
    exec("")


def say_failed(error: OSError) -> None:
    """Print an operation's error with the name of the file or stream that it failed on."""
    if error.filename is not None:
        where = printable(str(error.filename))
    else:
        # Of the calls that name no file, only os.getcwd() fails with ENOENT.
        where = "the current folder" if error.errno == errno.ENOENT else "input or output"
    say(f"error: {where}: {error.strerror or error}")


@contextmanager
def stopping_signals_interrupt(after: signal.Handlers = signal.SIG_DFL) -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does.

    Signals that are ignored (`nohup`) or already handled stay so.

    Args:
        after: What happens to these signals after the block.
    """
    ours = []
    # Python lets only the main thread set signal handlers.
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in STOPPING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, after)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a stop request that the block polls.

    The second one interrupts immediately, and so does a signal before the block first polls: no
    batch has then begun. A signal that is ignored, as a shell does for background jobs, stays
    ignored.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}
    # In another thread nothing is watched: only the main one may set handlers.
    watching = threading.current_thread() is not threading.main_thread()

    def ask(number: int, _: object) -> None:
        asked.append(number)
        # Restored first, so that the next signal interrupts even during a batch.
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
    """Import numpy, and distinguish a SIGINT that OpenBLAS raises from one that a user sends.

    Raises:
        MemoryError: If OpenBLAS raised it.
    """
    # OpenBLAS raises SIGINT if it cannot start its threads:
    # https://github.com/OpenMathLib/OpenBLAS/issues/668
    # A blocked signal waits, and sigtimedwait then reports the process that sent it.
    can_wait = hasattr(signal, "sigtimedwait") and hasattr(signal, "pthread_sigmask")
    if not can_wait or threading.current_thread() is not threading.main_thread():
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
        # A user's Ctrl-C, which was held back; it is delivered now that nothing blocks it.
        signal.raise_signal(signal.SIGINT)
        return
    raise MemoryError(
        "OpenBLAS cannot start its threads; `ulimit -v` and `ulimit -u` show the limits"
    )


def open_streams() -> None:
    """Make the standard streams usable, even if they are closed or not UTF-8.

    Characters that an encoding lacks are written as backslash escapes.
    """
    # A closed stream becomes the null device. Otherwise the next file that is opened would get its
    # number, and with it everything that C libraries print.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    stdout, stderr = (
        # None if its descriptor was closed at the start:
        # https://docs.python.org/3/library/sys.html#sys.__stdout__
        cast(TextIO, stream or open(os.devnull, "w"))  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    # Python's own handlers, the second one in the C locale; another is the user's choice
    # (PYTHONIOENCODING). The undecodable bytes of a file's name, which surrogateescape would write
    # as they were, are escaped in our messages anyway.
    # https://docs.python.org/3/using/cmdline.html#envvar-PYTHONUTF8
    if getattr(stdout, "errors", "") in ("strict", "surrogateescape") and hasattr(
        stdout, "reconfigure"
    ):
        stdout.reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, _Guarded(stdout, lambda: _named_once(stdout)))
    # What standard error cannot take, full or closed, is lost without a failure.
    sys.stderr = cast(TextIO, _Guarded(stderr, lambda: suppress(OSError)))


class _Guarded:
    """A stream whose every write runs in a context that handles errors."""

    def __init__(self, stream: TextIO, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._guard = stream, guard

    def write(self, text: str) -> int:
        with self._guard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guard():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _named_once(stdout: TextIO) -> Iterator[None]:
    """Raise the first error of standard output with its name, and discard later output."""
    try:
        yield
    except OSError as error:
        # What is still buffered goes to the null device: the interpreter flushes once more at its
        # end, and an error there would replace the exit code by 120.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def say(text: str) -> None:
    """Print a note on standard error, under the program's name."""
    if sys.stderr is not None:  # print would take standard output instead
        print(f"diver-trt: {text}", file=sys.stderr, flush=True)
