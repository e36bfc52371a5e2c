"""The pool hands out batches, replaces workers and stops; Ray itself is a stand-in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import BundleError, DeviceMemoryError, EngineError
from diver_trt.method.noise import sample_noise
from diver_trt.ray import pool as pool_module
from diver_trt.ray.plan import WorkerPlan
from diver_trt.ray.pool import WorkerPool
from diver_trt.ray.worker import Failure, Ready, Recovered, Worker
from diver_trt.recipe import Recipe
from diver_trt.runtime.chunks import CHUNK_IMAGES
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.events import BatchStarts, RecoveredSample, StepDone
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.samples import Sample
from tests.ray.stand_in import ActorDiedError, Ray

RECIPE = Recipe(steps=2, inherit_step=1, start_step=2, window=(2, 1))
MODEL = Ready("node", "onnx", 2, 2, None, ())


class Echo(Worker):
    """Returns the distilled images, in batches of two, on an engine of the given name."""

    def __init__(self, engine: str = "onnx") -> None:
        self.engine, self.seen = engine, list[str]()

    def open(
        self, bundle: Path, sha256: str, recipe: Recipe, placement: Placement
    ) -> Ready | Failure:
        return replace(MODEL, engine=self.engine)

    def recover(self, samples: list[Sample]) -> Recovered | Failure:
        self.seen += [sample.key for sample in samples]
        return Recovered([RecoveredSample(s.key, s.label, s.image) for s in samples], ())


class Mortal(Echo):
    """Dies of the samples that it is told to."""

    def __init__(self, *deadly: str) -> None:
        super().__init__()
        self.deadly = deadly

    def recover(self, samples: list[Sample]) -> Recovered | Failure:
        if any(sample.key in self.deadly for sample in samples):
            raise ActorDiedError("the actor died\nand twenty more lines")
        return super().recover(samples)


def samples(count: int, bundle: Bundle | None = None) -> list[Sample]:
    shape = bundle.latent_shape if bundle else (1, 1, 1)
    side = bundle.image_size if bundle else 1
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    keys = [f"00000/{number:05d}" for number in range(count)]
    return [
        Sample(key, 0, image, sample_noise(0, key, shape))
        for key, image in zip(keys, images, strict=True)
    ]


def pool(
    ray: Ray,
    bundle: Bundle,
    *,
    workers: int = 2,
    stopping: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
    disconnect: Callable[[], None] = lambda: None,
) -> WorkerPool:
    placement = Placement(engine="onnx", batch=3)
    plan = WorkerPlan(workers, 1, 0)
    return WorkerPool(
        ray,
        bundle,
        RECIPE,
        placement,
        plan,
        stopping=stopping,
        say=say,
        disconnect=disconnect,
    )


def recovered(opened: WorkerPool, given: list[Sample]) -> dict[str, RecoveredSample]:
    results = [event for event in opened.events(given) if isinstance(event, RecoveredSample)]
    assert len({result.key for result in results}) == len(results)
    return {result.key: result for result in results}


def test_workers_recover_the_images_of_a_single_recoverer(digits: Bundle) -> None:
    given = samples(7, digits)
    with Recoverer(digits, RECIPE, engine="onnx", batch=3) as recoverer:
        expected = [
            event for event in recoverer.events(given) if isinstance(event, RecoveredSample)
        ]
    with pool(Ray(lambda _: Worker()), digits) as opened:
        assert (opened.engine, opened.batch, opened.steps_per_batch) == ("onnx", 3, 2)
        found = recovered(opened, given)
    assert len(found) == 7
    for result in expected:
        np.testing.assert_array_equal(found[result.key].image, result.image)


@pytest.mark.parametrize(
    ("seconds", "what"),
    [((0, 31), "Ray to start 1 worker with 1 core"), ((0, 0, 31), "a worker to open the model")],
)
def test_long_waiting_is_reported_with_its_reason(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, seconds: tuple[int, ...], what: str
) -> None:
    notes, clock = list[str](), iter(seconds)
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pool(Ray(lambda _: Echo()), digits, workers=1, say=notes.append):
        assert notes == [f"waiting for {what}"]


def test_a_task_of_a_worker_that_died_is_done_by_another(digits: Bundle) -> None:
    given = samples(20)
    ray = Ray(lambda number: Mortal(*["00000/00004"] * (number < 2)))
    with (
        pytest.warns(RuntimeWarning, match=r"a worker on node died \(the actor died\); another"),
        pool(ray, digits) as opened,
    ):
        assert recovered(opened, given).keys() == {sample.key for sample in given}
    assert 3 <= ray.started <= 4
    assert not ray.living


def test_a_batch_that_kills_three_workers_ends_the_run(digits: Bundle) -> None:
    ray = Ray(lambda _: Mortal("00000/00004"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            pool(ray, digits) as opened,
            pytest.raises(EngineError, match="the third one on the batch of 00000/00004"),
        ):
            recovered(opened, samples(20))
    assert not ray.living


def test_workers_that_die_before_any_result_end_the_run(digits: Bundle) -> None:
    class Stillborn(Echo):
        def open(self, *_: object) -> Ready | Failure:
            raise ActorDiedError("killed")

    closed: list[bool] = []
    ray = Ray(lambda _: Stillborn())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(EngineError, match="a worker on a node died"):
            pool(ray, digits, disconnect=lambda: closed.append(True))
    assert not ray.living
    assert closed == [True]


def test_a_machine_without_the_package_is_reported_at_once(digits: Bundle) -> None:
    class Unknown(Echo):
        def version(self) -> tuple[str, str]:
            raise ActorDiedError(
                "The actor died because of an error raised in its creation task, x\n"
                "ModuleNotFoundError: No module named 'diver_trt'"
            )

    with pytest.raises(EngineError, match=r"cannot start \(ModuleNotFound.*; install diver-trt"):
        pool(Ray(lambda _: Unknown()), digits)


def test_another_version_on_a_machine_is_refused(digits: Bundle) -> None:
    class Old(Echo):
        def version(self) -> tuple[str, str]:
            return "far", "0.0.1"

    with pytest.raises(EngineError, match=r"far has diver-trt 0\.0\.1, and this machine"):
        pool(Ray(lambda _: Old()), digits)


def test_two_engines_in_one_run_are_refused(digits: Bundle) -> None:
    ray = Ray(lambda number: Echo(["onnx", "rtx"][number]))
    refused = pytest.raises(EngineError, match=r"engine auto is .* choose one that runs on both")
    with refused, pool(ray, digits) as opened:
        recovered(opened, samples(20))


def test_a_bundle_that_a_machine_does_not_have_is_named(digits: Bundle, tmp_path: Path) -> None:
    gone = replace(digits, path=tmp_path / "gone")
    with pytest.raises(BundleError, match="gone: is not on this machine; every machine needs"):
        pool(Ray(lambda _: Worker()), gone)
    with pytest.raises(BundleError, match="is another bundle"):
        pool(Ray(lambda _: Worker()), replace(digits, sha256="0" * 64))


def test_an_unexpected_exception_of_a_worker_is_one_line(digits: Bundle) -> None:
    class Broken(Echo):
        def recover(self, samples: list[Sample]) -> Recovered | Failure:
            raise ValueError("a bug\nin two lines")

    with (
        pool(Ray(lambda _: Broken()), digits) as opened,
        pytest.raises(EngineError, match=r"^a worker failed: a bug$"),
    ):
        recovered(opened, samples(4))


def test_samples_are_read_as_they_are_needed(digits: Bundle) -> None:
    pulled, done, ahead = 0, 0, list[int]()

    def reading() -> Iterator[Sample]:
        nonlocal pulled
        for sample in samples(40):
            pulled += 1
            yield sample

    with pool(Ray(lambda _: Echo()), digits) as opened:
        for event in opened.events(reading()):
            done += isinstance(event, RecoveredSample)
            ahead.append(pulled - done)
    assert done == 40
    assert max(ahead) <= 2 * 2 * 2  # two workers, two tasks each, of a batch of two


def test_a_stopped_run_finishes_the_batches_that_have_begun(digits: Bundle) -> None:
    asked = False
    workers = [Echo(), Echo()]
    ray = Ray(lambda number: workers[number])
    with pool(ray, digits, stopping=lambda: asked) as opened:
        found: list[str] = []
        events = []
        for event in opened.events(samples(40)):
            events.append(event)
            if isinstance(event, RecoveredSample):
                found.append(event.key)
                asked = len(found) >= 12
    # The tasks so far, and the one that each worker has begun by then; the waiting ones go back.
    assert sorted(found) == sorted(key for worker in workers for key in worker.seen)
    assert len(found) <= 12 + 2 * 2
    assert ray.cancelled > 0
    assert [number for number, event in enumerate(events) if isinstance(event, BatchStarts)] == [
        0,
        len(events) - 1,
    ]
    assert sum(isinstance(event, StepDone) for event in events) == len(found) // 2 * 2


def test_a_worker_that_loads_its_networks_in_turn_takes_a_chunk_at_a_time(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diver_trt.runtime.session.Opened.resident", False)
    placement = Placement(engine="onnx", batch=3)
    ready = Worker().open(digits.path, digits.sha256, RECIPE, placement)
    assert isinstance(ready, Ready)
    assert (ready.batch, ready.task) == (3, CHUNK_IMAGES)


def test_a_worker_without_memory_halves_its_batch(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Recoverer.events

    def short(self: Recoverer, given: list[Sample]) -> Iterator[object]:
        if self.batch > 1:
            raise DeviceMemoryError("no room")
        return events(self, given)

    monkeypatch.setattr(Recoverer, "events", short)
    with (
        pytest.warns(RuntimeWarning, match="continuing in smaller batches"),
        pool(Ray(lambda _: Worker()), digits, workers=1) as opened,
    ):
        assert len(recovered(opened, samples(3, digits))) == 3
