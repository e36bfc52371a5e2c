"""A batch that several cores share gives what one run of the whole batch gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import Recipe
from diver_trt.runtime import microbatches
from diver_trt.runtime.backends import onnx
from diver_trt.runtime.backends.onnx import OnnxEngine, OnnxSession
from diver_trt.runtime.microbatches import LEAD, MicrobatchedDenoiser, microbatch_size
from diver_trt.runtime.stepping import SteppedDenoiser
from tests.conftest import ROOT
from tests.runtime.python import run_python

STEPS = 12
RECIPE = Recipe(steps=20, inherit_step=10, start_step=STEPS, window=(8, 3))

Open = Callable[[int, int], Any]


@pytest.fixture
def open_denoiser(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open the digits' denoiser for a batch on a number of cores."""
    opened = []

    def opening(batch: int, cores: int) -> Any:
        monkeypatch.setattr(onnx, "available_cores", lambda: cores)
        table = Schedule(digits.process, RECIPE, digits.layout).table
        opened.append(OnnxSession(digits, batch).open_denoiser(table, STEPS))
        return opened[-1]

    yield opening
    for denoiser in opened:
        denoiser.close()


def load(denoiser: Any, batch: int, images: int, width: int, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    start, anchor, noise = generator.standard_normal((3, 32, 4, 8, 8)).astype(np.float32)
    tables = list((0.1 * generator.standard_normal((32, STEPS, width))).astype(np.float32))
    denoiser.load(start[:batch], anchor[:batch], noise[:batch], tables[:images], tables[-1])


@pytest.mark.parametrize(
    ("batch", "cores", "size"),
    [
        *((batch, 1, batch) for batch in (1, 2, 8)),
        *((batch, 4, batch) for batch in (1, 2, 3)),
        (2, 2, 1),
        (3, 2, 2),
        (16, 2, 8),
        (17, 2, 5),
        (100, 2, 8),
        (9, 1, 5),
        (16, 16, 1),
        (17, 16, 2),
    ],
)
def test_cores_share_a_batch_evenly(batch: int, cores: int, size: int) -> None:
    assert microbatch_size(batch, cores) == size


@pytest.mark.parametrize("cores", [1, 2, 3, 5])
@pytest.mark.parametrize(("batch", "images"), [(5, 5), (8, 3), (19, 19), (19, 11)])
def test_every_latent_is_that_of_the_whole_batch_to_the_last_bit(
    open_denoiser: Open, digits: Bundle, batch: int, images: int, cores: int
) -> None:
    shared, whole = open_denoiser(batch, cores), open_denoiser(batch, 32)
    assert isinstance(shared, MicrobatchedDenoiser) == (cores > 1 or batch > 8)
    assert isinstance(whole, SteppedDenoiser)
    for denoiser in (shared, whole):
        load(denoiser, batch, images, digits.condition_width)
    steps = []
    for k, expected in zip(shared.run(), whole.run(), strict=True):
        assert k == expected
        steps.append(k)
        np.testing.assert_array_equal(shared.latent()[:images], whole.latent()[:images])
    assert steps == list(range(STEPS, 0, -1))


def test_a_step_alone_or_a_run_left_half_way_changes_no_later_run(
    open_denoiser: Open, digits: Bundle
) -> None:
    denoiser = open_denoiser(9, 2)
    load(denoiser, 9, 9, digits.condition_width)
    (*_,) = denoiser.run()
    expected = denoiser.latent().copy()
    load(denoiser, 9, 9, digits.condition_width, seed=1)
    left = denoiser.run()
    next(left)
    denoiser.step(3, expected)
    load(denoiser, 9, 9, digits.condition_width)
    (*_,) = denoiser.run()
    np.testing.assert_array_equal(denoiser.latent(), expected)


@pytest.mark.parametrize("end", ["close", "load", "step"])
def test_a_run_that_was_ended_gives_no_more_steps(
    open_denoiser: Open, digits: Bundle, end: str
) -> None:
    """Neither what the cores had run ahead, nor a wait for threads that are gone."""
    denoiser = open_denoiser(4, 2)
    load(denoiser, 4, 4, digits.condition_width)
    run = denoiser.run()
    next(run)
    if end == "close":
        denoiser.close()
    elif end == "load":
        load(denoiser, 4, 4, digits.condition_width)
    else:
        denoiser.step(3, np.zeros((4, 4, 8, 8), np.float32))
    with pytest.raises(EngineError, match="closed, or has begun another run"):
        next(run)


def test_no_core_runs_far_ahead_of_the_caller(
    open_denoiser: Open, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, taken, ahead = OnnxEngine.run, [0], []

    def counting(engine: OnnxEngine) -> None:
        counts[id(engine)] = counts.get(id(engine), 0) + 1
        ahead.append(counts[id(engine)] - taken[0])
        run(engine)

    counts: dict[int, int] = {}
    monkeypatch.setattr(OnnxEngine, "run", counting)
    denoiser = open_denoiser(4, 2)
    load(denoiser, 4, 4, digits.condition_width)
    for _ in denoiser.run():
        taken[0] += 1
    assert set(counts.values()) == {STEPS}
    # A step begins when the one `LEAD` before it was taken, and is counted by the caller only then.
    assert max(ahead) <= LEAD + 2


def test_what_a_core_raises_is_raised_to_the_caller(
    open_denoiser: Open, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, runs = OnnxEngine.run, iter(range(1_000))

    def failing(engine: OnnxEngine) -> None:
        if next(runs) == 7:
            raise EngineError("the seventh")
        run(engine)

    monkeypatch.setattr(OnnxEngine, "run", failing)
    denoiser = open_denoiser(4, 2)
    load(denoiser, 4, 4, digits.condition_width)
    with pytest.raises(EngineError, match="the seventh"):
        list(denoiser.run())
    load(denoiser, 4, 4, digits.condition_width)
    assert list(denoiser.run()) == list(range(STEPS, 0, -1))


def test_no_thread_is_left_of_a_run_that_is_interrupted_while_it_starts(
    digits: Bundle, open_denoiser: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches a thread that waits, and starting another one is waiting for it."""

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    denoiser = open_denoiser(5, 2)
    load(denoiser, 5, 5, digits.condition_width)
    before = {*threading.enumerate()}
    monkeypatch.setattr(microbatches, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(denoiser.run())
    assert not {*threading.enumerate()} - before


def test_a_process_ends_though_a_run_was_left_half_way() -> None:
    done = run_python(f"""
import numpy as np
from diver_trt import Bundle, Recoverer
from diver_trt.runtime.backends import onnx
onnx.available_cores = lambda: 2
recoverer = Recoverer(Bundle.open({str(ROOT / "engines" / "digits")!r}), batch=4, engine="onnx")
noise = np.zeros((4, 4, 8, 8), np.float32)
steps = recoverer.denoise(noise, noise, noise, [0, 1, 2, 3])
print(next(steps))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "50\n", "")
