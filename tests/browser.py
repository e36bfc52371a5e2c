"""Opening a page from the disk in headless Chromium, where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import pytest

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZE = (1180, 3000)
TIMEOUT = 120

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on this machine to open the page in"
)


def browse(path: Path, *more: str, width: int = SIZE[0], address: str = "") -> str:
    """Open a page and return the resulting document.

    Args:
        path: The page.
        more: Further options of Chromium.
        width: Of the window in pixels.
        address: What follows the page's own address, such as `"#class=3"`.
    """
    command = [*_command(path, *more, width=width), path.as_uri() + address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    return done.stdout


def _command(path: Path, *more: str, width: int) -> list[str]:
    assert CHROMIUM is not None
    profile = path.with_suffix(".profile")
    size = f"--window-size={width},{SIZE[1]}"
    return [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", size, *more]


def seen(path: Path, script: str, *more: str, width: int = SIZE[0], address: str = "") -> Any:
    """Open a page, and return what a script in it returns.

    Args:
        path: The page.
        script: The body of an asynchronous function, run when the page has been loaded.
        more, width, address: See `browse`.
    """
    with _pipe(path, *more, width=width) as call:
        target = call("Target.createTarget", url="about:blank")["targetId"]
        session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        call("Page.enable", session)
        call("Page.navigate", session, until="Page.loadEventFired", url=path.as_uri() + address)
        expression = f"(async () => {{ {script} }})()"
        found = call(
            "Runtime.evaluate",
            session,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")


_START = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, copy in zip((3, 4), copies):
    os.dup2(copy, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Runs a command with two descriptors as 3 and 4, which are Chromium's for requests and answers."""


@contextmanager
def _pipe(path: Path, *more: str, width: int) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run Chromium, and yield a function that calls a method of its DevTools protocol.

    Not with `--virtual-time-budget`, whose clock runs on while a busy machine decodes pictures.
    https://chromedevtools.github.io/devtools-protocol/
    """
    requests, to_send = os.pipe()
    to_read, answers = os.pipe()
    command = _command(path, "--remote-debugging-pipe", *more, width=width)
    with subprocess.Popen(
        [sys.executable, "-c", _START, str(requests), str(answers), *command],
        pass_fds=(requests, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(requests)
        os.close(answers)
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            with os.fdopen(to_send, "wb", 0) as sending, os.fdopen(to_read, "rb") as reading:
                yield partial(_call, sending, _messages(reading))
        finally:
            watchdog.cancel()
            process.kill()


def _messages(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the messages of the protocol, each ended by a zero byte."""
    message = bytearray()
    while byte := stream.read(1):
        if byte != b"\0":
            message += byte
            continue
        yield json.loads(message)
        message.clear()


def _call(
    sending: RawIOBase,
    messages: Iterator[dict[str, Any]],
    method: str,
    session: str | None = None,
    until: str | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Call a method; return its result, once an event has come too if one is named."""
    request: dict[str, Any] = {"id": 1, "method": method, "params": parameters}
    if session:
        request["sessionId"] = session
    sending.write(json.dumps(request).encode() + b"\0")
    result: dict[str, Any] | None = None
    waiting = until is not None
    for message in messages:
        assert "error" not in message, message
        if message.get("id") == 1:
            result = message["result"]
        waiting = waiting and message.get("method") != until
        if result is not None and not waiting:
            return result
    raise AssertionError(f"Chromium ended, or took more than {TIMEOUT} s, during {method}")
