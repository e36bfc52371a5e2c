"""Connecting to Ray: a cluster that runs already, or one that is started for this run alone."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from diver_trt.errors import EngineError, UsageError, first_line, shown, shown_value
from diver_trt.packages import required
from diver_trt.runtime.cores import available_cores

LOCAL, RUNNING = "local", "auto"
"""Addresses: Ray is started for this run, or the cluster that runs on this machine is used."""

_OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a Ray that is started here. The pool keeps a few batches in it; Ray's own
default is a third of the machine's memory.
"""

_REACHABLE_S = 5.0
"""How long an address may take to answer; Ray itself would try for longer."""

_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = b"\4"
"""How a connection of gRPC begins on both sides (RFC 9113, section 3.4): each sends a frame of
type 4.
"""


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return required("ray", "ray", "recovering on several workers", "Ray")


def check_ray(address: object, workers: object) -> None:
    """Check where Ray is and how many workers it has; Ray must be installed to be used.

    Args:
        address: `local`, `auto` or `HOST:PORT`, or None for a run without Ray.
        workers: A whole number, 1 or more, or None.

    Raises:
        UsageError: If one of them is anything else, or there are workers and no address.
        MissingExtraError: If there is an address and Ray is not installed.
    """
    if workers is not None and (type(workers) is not int or workers < 1):
        raise UsageError(
            f"workers is {shown_value(workers)}; expected a whole number, 1 or more, or None"
        )
    if address is None:
        if workers is not None:
            raise UsageError(
                f"workers is {workers} without Ray; choose where Ray is, such as local"
            )
        return
    if not is_address(address):
        raise UsageError(
            f"ray is {shown_value(address)}; expected {LOCAL}, {RUNNING}, or the HOST:PORT of a "
            "cluster"
        )
    if find_spec("ray") is None:  # loading it takes a second
        import_ray()


def is_address(address: object) -> bool:
    """Return whether a value is `local`, `auto` or `HOST:PORT`."""
    if not isinstance(address, str):
        return False
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5
    return address in (LOCAL, RUNNING) or (bool(host) and "/" not in host and is_port)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected during the block.

    A process that is connected already stays so.

    Args:
        address: See `check_ray`.

    Raises:
        MissingExtraError: If Ray is not installed.
        EngineError: If no cluster answers at the address, or Ray cannot be started.
    """
    ray = import_ray()
    # Here `ray.init` would raise, and our shutdown would end the caller's own connection.
    if ray.is_initialized():
        yield ray
        return
    if address not in (LOCAL, RUNNING):
        _require_reachable(address)
    with _quiet(ray), _restored():
        try:
            try:
                with _without_side_effects(), _undrawn():
                    _connect(ray, address)
            # Ray raises many classes here, down to its own C++ errors.
            except Exception as cause:
                # Ray's own advice names options of `ray.init`.
                reason = (
                    "no cluster runs on this machine; start one with `ray start --head`, or use "
                    "--ray local"
                    if address == RUNNING and isinstance(cause, ConnectionError)
                    else f"cannot be used ({shown(first_line(cause))})"
                )
                raise EngineError(f"Ray at {address}: {reason}") from cause
            yield ray
        finally:
            with _undrawn():
                ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address != LOCAL:
        ray.init(address=address, **quiet)
        return
    # SECURITY.md promises it: https://docs.ray.io/en/latest/cluster/usage-stats.html
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without this, Ray announces a future change of its own on every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address=LOCAL,
        # Ray itself does not look at the cores to which this process is restricted (its affinity).
        num_cpus=available_cores(),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        **quiet,
    )


def nodes_of(ray: Any) -> Sequence[Mapping[str, float]]:
    """Return the resources of each node that is alive."""
    # Nodes that died stay in Ray's list.
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _require_reachable(address: str) -> None:
    """Check that a server of Ray's protocol answers, which Ray would wait for during minutes."""
    host, _, port = address.rpartition(":")
    try:
        # A HOST may be an IPv6 address in brackets.
        with socket.create_connection((host.strip("[]"), int(port)), _REACHABLE_S) as connection:
            connection.sendall(_HTTP2_GREETING)
            answer = connection.recv(9)
    except (OSError, OverflowError) as cause:
        raise EngineError(
            f"Ray at {address}: cannot be reached ({shown(str(cause))}); start it there with "
            f"`ray start --head --port {port}`, and this command on one of its nodes"
        ) from cause
    # A frame's type is its fourth byte (RFC 9113, section 4.1). With TLS the greeting in clear text
    # is not answered by one.
    if not os.environ.get("RAY_USE_TLS") and answer[3:4] != _SETTINGS:
        raise EngineError(
            f"Ray at {address}: another server answers there; expected the address that "
            "`ray start --head` prints, not that of Ray's dashboard"
        )


@contextmanager
def _without_side_effects() -> Iterator[None]:
    """Undo what `ray.init` does to SIGTERM, and ignore its warnings."""
    # Its handler of SIGTERM would exit at once, while the command line finishes the batch first.
    ours = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    # Ray's processes inherit the mask: a closed terminal signals them too, and they would be gone
    # before the batch is finished. Ray itself blocks Ctrl-C in them.
    hangup = {signal.SIGHUP} if hasattr(signal, "SIGHUP") else set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, hangup) if hangup else None
        try:
            yield
        finally:
            if masked is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            if ours:
                signal.signal(signal.SIGTERM, handler)


@contextmanager
def _undrawn() -> Iterator[None]:
    """Restore the state of `random`, from which Ray draws; the program may have seeded it."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _restored() -> Iterator[None]:
    """Undo what a connection leaves: its environment, Ray's own `breakpoint()`, a mute logger."""
    logger, before = logging.getLogger("ray"), _settings()
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in _settings().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _settings() -> dict[str, str]:
    """Return the variables of the environment that Ray, or `_connect`, sets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"
    }


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Keep the failures of other processes from standard output; the pool reports what matters."""
    # A thread prints them there with twenty lines of a log file, and no setting prevents it:
    # `listen_error_messages` in ray/_private/worker.py.
    module, name = getattr(getattr(ray, "_private", None), "worker", None), "print_to_stdstream"
    printing = getattr(module, name, None)
    if printing is None:
        yield
        return
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, printing)
