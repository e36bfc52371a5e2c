"""Ctrl-C while TensorRT runs: neither its compiler nor its runtime may lose it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from diver_trt.bundle import Bundle
from diver_trt.runtime.backends.tensorrt import compiler as engine_compiler
from diver_trt.runtime.backends.tensorrt import module as trt_module
from diver_trt.runtime.backends.tensorrt.builder import build_plan
from diver_trt.runtime.backends.tensorrt.interrupts import interrupts_held
from diver_trt.runtime.backends.tensorrt.sidecar import Profile
from diver_trt.runtime.backends.tensorrt.target import resolve_target
from tests.stand_in import (
    StandInCuda,
    stand_in_session,
    stand_in_tensorrt,
    write_stand_in_plan,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX signals")


@pytest.fixture(autouse=True)
def signals_interrupt() -> Iterator[None]:
    """As the command line has them, whatever the tests inherited."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("failure", [None, ValueError("canceled")], ids=["returns", "raises"])
def test_a_signal_interrupts_after_whatever_native_code_makes_of_it(
    number: signal.Signals, failure: Exception | None
) -> None:
    passed = []
    with pytest.raises(KeyboardInterrupt), interrupts_held() as interrupted:
        assert not interrupted()
        with suppress(BaseException):  # as a logger's exceptions are dropped
            signal.raise_signal(number)
            passed.append(number)
        assert interrupted()
        if failure is not None:
            raise failure
    assert passed == [number]


def test_without_a_signal_nothing_changes() -> None:
    with pytest.raises(ValueError, match="as it was"), interrupts_held():
        raise ValueError("as it was")


def test_a_signal_that_is_ignored_or_handled_stays_so() -> None:
    seen = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with interrupts_held() as interrupted:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert not interrupted()
    assert seen == [signal.SIGTERM]
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def test_a_signal_while_an_engine_is_loaded_is_not_lost(bundle: Bundle) -> None:
    api = StandInCuda()
    module = stand_in_tensorrt(api)
    runtime = module.Runtime

    def interrupted(log: Any) -> Any:
        loaded = runtime(log).deserialize_cuda_engine

        def deserialize(engine: bytes) -> Any:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return loaded(engine)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    module.Runtime = interrupted
    session = stand_in_session(bundle, write_stand_in_plan(bundle, 2), api, module)
    with pytest.raises(KeyboardInterrupt):
        session.open("encoder")
    session.close()


@pytest.mark.parametrize("network", ["encoder", "decoder"])
@pytest.mark.parametrize("where", ["log", "progress"])
def test_a_signal_while_the_compiler_runs_ends_the_build(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    where: str,
    network: str,
) -> None:
    """In its logger, where an exception is dropped, and its progress monitor, where it cancels."""
    pytest.importorskip("tensorrt_rtx")
    target = resolve_target("rtx", [86], Profile.parse("2"))
    current: list[str] = [""]
    sent: list[str] = []

    def send() -> None:
        if current[0] == network and not sent:
            sent.append(network)
            signal.raise_signal(signal.SIGINT)

    def on_progress(name: str, *_: object) -> None:
        current[0] = name
        if where == "progress":
            send()

    make_logger = trt_module.logger

    def logger(module: Any) -> Any:
        class Sending(type(make_logger(module))):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if where == "log":
                    send()
                super().log(severity, message)

        return Sending()

    monkeypatch.setattr(engine_compiler, "logger", logger)
    with pytest.raises(KeyboardInterrupt):
        list(build_plan(bundle, target, on_progress))
    assert sent == [network]
    left = [path for path in target.folder(bundle).parent.iterdir() if path.is_dir()]
    assert left == []
    assert capfd.readouterr().out == ""
