"""The recoverer: the same results in any batch, no allocation per step, inputs that do not fit."""

from __future__ import annotations

import multiprocessing
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.cli.recover import recover as recover_command
from diver_trt.errors import (
    BundleError,
    DatasetError,
    DeviceMemoryError,
    DiverError,
    EngineError,
    RecipeError,
    UsageError,
)
from diver_trt.method.noise import sample_noise
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.runtime.backends.onnx import OnnxEngine
from diver_trt.runtime.events import BatchStarts, RecoveredSample, StepDone
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.samples import checked_samples

Images = NDArray[np.uint8]
QUICK = replace(PRESETS["matched"], steps=10, inherit_step=5, start_step=5, window=(5, 2))


def recover(
    bundle: Bundle,
    images: Any,
    labels: Any,
    *,
    batch: int = 8,
    recipe: Recipe = QUICK,
    **options: Any,
) -> list[RecoveredSample]:
    with Recoverer(bundle, recipe, batch=batch) as recoverer:
        return list(recoverer(images, labels, **options))


LABELS = [3, 1, 3, 9, 0, 3]


def test_samples_come_in_order_with_their_class_and_number(digits: Bundle, images: Images) -> None:
    samples = recover(digits, images, LABELS)
    assert [sample.key for sample in samples] == [
        "00003/00000",
        "00001/00000",
        "00003/00001",
        "00009/00000",
        "00000/00000",
        "00003/00002",
    ]
    assert [sample.label for sample in samples] == LABELS
    assert {(sample.image.dtype.name, sample.image.shape) for sample in samples} == {
        ("uint8", (32, 32, 3))
    }


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_the_batch_changes_nothing(digits: Bundle, images: Images, batch: int) -> None:
    expected = recover(digits, images, LABELS, batch=8, recipe=Recipe())
    for ours, theirs in zip(
        recover(digits, images, LABELS, batch=batch, recipe=Recipe()), expected, strict=True
    ):
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_order_and_neighbours_change_nothing(digits: Bundle, images: Images) -> None:
    keys = [str(i) for i in range(6)]
    expected = {sample.key: sample.image for sample in recover(digits, images, LABELS, keys=keys)}
    shuffled = [4, 2, 5]
    found = recover(
        digits,
        images[shuffled],
        [LABELS[i] for i in shuffled],
        batch=2,
        keys=[keys[i] for i in shuffled],
    )
    for sample in found:
        np.testing.assert_array_equal(sample.image, expected[sample.key])


def test_the_seed_changes_the_image(digits: Bundle, images: Images) -> None:
    first, again, other = (
        recover(digits, images[:1], [3], seed=seed)[0].image for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_may_be_given(digits: Bundle, images: Images) -> None:
    noise = np.stack(
        [sample_noise(5, f"{label:05d}/00000", digits.latent_shape) for label in (1, 2)]
    )
    given, seeded = (
        recover(digits, images[:2], [1, 2], noise=noise),
        recover(digits, images[:2], [1, 2], seed=5),
    )
    for ours, theirs in zip(given, seeded, strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_images_are_taken_one_batch_at_a_time(digits: Bundle, images: Images) -> None:
    taken = 0

    def stream() -> Any:
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    with Recoverer(digits, QUICK, batch=2) as recoverer:
        next(recoverer(stream(), LABELS))
    assert taken == 2


def test_every_step_is_reported(digits: Bundle, images: Images) -> None:
    steps: list[None] = []
    with Recoverer(digits, QUICK, batch=4) as recoverer:
        list(recoverer(images, LABELS, on_step=lambda: steps.append(None)))
        assert len(steps) == 2 * recoverer.steps_per_batch == 10


def test_the_denoise_loop_allocates_nothing_per_step(digits: Bundle, images: Images) -> None:
    """No array the size of a latent is allocated, and nothing that stays.

    This is Python's and numpy's memory, as tracemalloc sees it. What is left are the views that a
    step makes and drops, some 5 kB whatever the batch.
    """
    with Recoverer(digits, Recipe(), batch=16) as recoverer:
        anchor = recoverer.encode([images[i % 6] for i in range(16)])
        steps = recoverer.denoise(anchor, anchor, anchor, [i % 10 for i in range(16)])
        for _ in range(3):
            next(steps)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(40):
                next(steps)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        runs = []
        for _ in range(2):
            steps = recoverer.denoise(anchor, anchor, anchor, [0] * 16)
            runs.append({recoverer.latent.ctypes.data for _ in steps})
    assert anchor.nbytes == 16 * 4 * 8 * 8 * 4
    assert peak - before < anchor.nbytes
    assert after - before < anchor.nbytes
    assert runs[0] == runs[1]
    assert len(runs[0]) <= 10


def test_only_the_conditions_of_the_current_classes_are_kept(
    digits: Bundle, images: Images
) -> None:
    with Recoverer(digits, QUICK, batch=2) as recoverer:
        list(recoverer(images, LABELS))
        assert recoverer._conditions.labels == {0, 3, digits.null_label}


def test_other_sizes_are_resized_and_cropped_to_the_middle(digits: Bundle) -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 24:104] = 200  # the middle square and what the bicubic filter sees beside it
    middle = np.full((32, 32, 3), 200, np.uint8)
    (cropped,), (plain,) = recover(digits, wide[None], [1]), recover(digits, middle[None], [1])
    np.testing.assert_array_equal(cropped.image, plain.image)


ONE, TWO = (np.zeros((count, 32, 32, 3), np.uint8) for count in (1, 2))


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (TWO, [1], {}, "there are 2 images but 1 labels"),
        (ONE, [1, 2], {}, "there are 1 images but 2 labels"),
        (ONE, [10], {}, "label 10; the model has classes 0 to 9"),
        (ONE, [-1], {}, "label -1"),
        (np.float32(ONE), [1], {}, r"got float32\[32, 32, 3\], expected uint8\[H, W, 3\]"),
        (
            np.zeros((1, 3, 32, 32), np.uint8),
            [1],
            {},
            r"got uint8\[3, 32, 32\], expected uint8\[H, W, 3\]",
        ),
        (ONE, [1], {"noise": [np.zeros((4, 8, 8))]}, r"noise of image 0: got float64"),
        (ONE, [1], {"keys": []}, "there are 1 images but 0 keys"),
        (ONE[0], [3], {}, r"an array of 3 dimensions, expected uint8\[n, H, W, 3"),
        (dict(enumerate(TWO)), [1, 2], {}, "images is a dict; expected a sequence"),
        (
            [Image.new("RGBA", (32, 32))],
            [1],
            {},
            "image 0: got a PIL image of mode RGBA, expected RGB",
        ),
        *(
            (
                [Image.new(mode, (32, 32))],
                [1],
                {},
                f"image 0: got a PIL image of mode {mode}, .* clips",
            )
            for mode in ("I", "I;16", "F")
        ),
        ([ONE[0, 0]], [1], {}, r"image 0: got uint8\[32, 3\], expected uint8"),
        ([None], [1], {}, "image 0: got object"),
        (["0.png"], [1], {}, "image 0: got"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    digits: Bundle, images: Any, labels: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        list(checked_samples(digits, images, labels, seed=0, **options))


def test_settings_that_do_not_fit_the_model_are_refused(digits: Bundle) -> None:
    with pytest.raises(RecipeError, match="cfg_channels is 5"):
        Recoverer(digits, Recipe(cfg_channels=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "tpu"},
            "unknown engine 'tpu'; expected rtx, trt, onnx-cuda, openvino, openvino-gpu, "
            "openvino-npu, onnx, auto",
        ),
        ({"batch": 0}, "batch is 0; expected a whole number, 1 or more"),
        ({"batch": True}, "batch is True; expected a whole number"),
        ({"batch": "auto"}, "batch is 'auto'; expected a whole number, 1 or more, or None"),
        ({"images": -5}, "images is -5; expected a whole number, 0 or more"),
        ({"memory_budget": "2GB"}, "memory_budget is '2GB'; expected a whole number"),
        ({"recipe": {}}, r"recipe is \{\} \(dict\); expected a Recipe"),
        ({"recipe": "paper"}, r"recipe is 'paper' \(str\); expected a Recipe"),
    ],
)
def test_wrong_arguments_are_wrong_usage(
    digits: Bundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Recoverer(digits, **options)


def test_a_recipe_of_more_steps_that_was_not_scaled_is_warned_about(digits: Bundle) -> None:
    with pytest.warns(RuntimeWarning, match=r"steps is 100, but .*scaled_to"):
        Recoverer(digits, Recipe(steps=100), engine="onnx").close()


@pytest.mark.parametrize("path", [None, b"engines/digits", 3])
def test_a_bundle_is_opened_from_a_text_or_a_path(path: Any) -> None:
    with pytest.raises(
        BundleError, match=r"the path of the bundle is .*; expected a text or a Path"
    ):
        Bundle.open(path)


def test_a_path_is_not_a_bundle() -> None:
    with pytest.raises(BundleError, match=r"expected a Bundle, from Bundle\.open"):
        Recoverer("engines/digits")  # type: ignore[arg-type]


def test_the_engine_is_chosen_as_on_the_command_line() -> None:
    from inspect import signature

    assert signature(Recoverer).parameters["engine"].default == "auto"
    assert signature(recover_command).parameters["engine"].default == "auto"


def test_values_that_are_no_numbers_never_become_an_image(digits: Bundle) -> None:
    with (
        Recoverer(digits, QUICK, batch=1) as recoverer,
        pytest.raises(EngineError, match="NaN or infinite values"),
    ):
        recoverer.decode(np.full((1, 4, 8, 8), np.nan, np.float32))


def test_two_threads_get_what_each_would_get_alone(digits: Bundle, images: Images) -> None:
    """Without taking turns every image is garbage: the engines' buffers are shared."""
    with Recoverer(digits, QUICK, batch=1) as recoverer:

        def one(number: int) -> Images:
            (sample,) = recoverer([images[number % 6]], [number % 10], keys=[str(number)])
            return sample.image

        alone = [one(number) for number in range(12)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(one, range(12)))
    np.testing.assert_array_equal(together, alone)


def test_where_memory_is_short_networks_are_loaded_one_at_a_time(
    digits: Bundle, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recoverer(digits, QUICK, batch=1) as recoverer:
        expected = [sample.image for sample in recoverer(images, LABELS)]
    loaded: set[OnnxEngine] = set()
    open_engine, close = OnnxEngine.__init__, OnnxEngine.close

    def opening(self: OnnxEngine, *arguments: Any, **options: Any) -> None:
        if loaded:
            raise DeviceMemoryError("out of memory: a gigabyte failed")
        open_engine(self, *arguments, **options)
        loaded.add(self)

    def closing(self: OnnxEngine) -> None:
        close(self)
        loaded.discard(self)

    monkeypatch.setattr(OnnxEngine, "__init__", opening)
    monkeypatch.setattr(OnnxEngine, "close", closing)
    with pytest.warns(RuntimeWarning, match="out of memory: loading one network at a time"):
        recoverer = Recoverer(digits, QUICK, engine="onnx", batch=1)
    with recoverer:
        found = [sample.image for sample in recoverer(images, LABELS)]
    assert not loaded
    np.testing.assert_array_equal(found, expected)


def test_threads_take_turns_batch_by_batch_in_phases_too(
    digits: Bundle, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diver_trt.runtime.session.Opened.resident", False)
    with Recoverer(digits, QUICK, batch=2) as recoverer:

        def all_six(seed: int) -> list[Images]:
            return [sample.image for sample in recoverer(images, LABELS, seed=seed)]

        alone = [all_six(seed) for seed in (1, 2)]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(all_six, (1, 2)))
    np.testing.assert_array_equal(together, alone)


def test_a_generator_that_is_left_half_way_keeps_nobody_waiting(
    digits: Bundle, images: Images
) -> None:
    with Recoverer(digits, QUICK, batch=2) as recoverer:
        expected = [sample.image for sample in recoverer(images, LABELS)]
        left = recoverer(images[::-1], LABELS)
        next(left)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(lambda: [s.image for s in recoverer(images, LABELS)]).result(60)
    np.testing.assert_array_equal(found, expected)


def test_steps_of_two_batches_are_not_mixed(digits: Bundle, images: Images) -> None:
    with Recoverer(digits, QUICK, batch=2) as recoverer:
        anchor = recoverer.encode(list(images[:2]))
        first = recoverer.denoise(anchor, anchor, anchor, [1, 2])
        next(first)
        assert list(recoverer.denoise(anchor, anchor, anchor, [3, 4])) == [5, 4, 3, 2, 1]
        with pytest.raises(EngineError, match="another batch has used the denoiser"):
            next(first)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([1], UsageError, "got 2 starts, 2 anchors, 2 noises and 1 labels; expected the same"),
        ([1, 99], DatasetError, "image 1 has label 99; the model has classes 0 to 9"),
        ([-1, 1], DatasetError, "image 0 has label -1"),
    ],
)
def test_latents_are_denoised_with_a_class_each(
    digits: Bundle, labels: list[int], error: type[DiverError], message: str
) -> None:
    latents = np.zeros((2, *digits.latent_shape), np.float32)
    with Recoverer(digits, QUICK, batch=2) as recoverer:
        with pytest.raises(error, match=message):
            recoverer.denoise(latents, latents, latents, labels)
        three = np.zeros((3, *digits.latent_shape), np.float32)
        with pytest.raises(UsageError, match=r"got 3 starts, .*, at most 2"):
            recoverer.denoise(three, three, three, [1, 2, 3])
        with pytest.raises(EngineError, match=r"noise: got float64\[2, 4, 8, 8\]"):
            recoverer.denoise(latents, latents, latents.astype(np.float64), [1, 2])
        with pytest.raises(UsageError, match="got no images"):
            recoverer.encode([])


def test_events_are_the_steps_and_the_results_of_a_call(digits: Bundle, images: Images) -> None:
    with Recoverer(digits, QUICK, batch=4) as recoverer:
        expected = list(recoverer(images, LABELS, keep_bad=True))
        events = list(recoverer.events(checked_samples(digits, images, LABELS, seed=0)))
    batch = [BatchStarts] + [StepDone] * QUICK.start_step
    assert [type(event) for event in events] == [
        *(*batch, *[RecoveredSample] * 4),
        *(*batch, *[RecoveredSample] * 2),
        BatchStarts,
    ]
    found = [event for event in events if isinstance(event, RecoveredSample)]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.key, ours.label, ours.problem) == (theirs.key, theirs.label, None)
        np.testing.assert_array_equal(ours.image, theirs.image)


@pytest.mark.parametrize("steps", [1, QUICK.start_step])
def test_a_call_between_two_events_does_not_mix_with_them(
    digits: Bundle, images: Images, steps: int
) -> None:
    with Recoverer(digits, QUICK, batch=2) as recoverer:
        events = recoverer.events(checked_samples(digits, images[:2], LABELS[:2], seed=0))
        for _ in range(1 + steps):
            next(events)
        list(recoverer(images[:1], [3]))
        with pytest.raises(EngineError, match="another batch has used the denoiser"):
            next(events)


def _use(recoverer: Recoverer, images: Images) -> str:
    try:
        list(recoverer(images[:1], [3]))
    except DiverError as error:
        return str(error)
    return "used"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_is_refused_where_it_would_hang(digits: Bundle, images: Images) -> None:
    with Recoverer(digits, QUICK, batch=1) as recoverer:
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=lambda: answers.put(_use(recoverer, images)))
        child.start()
        answer = answers.get(timeout=60)
        child.join(60)
    assert "was forked from it; open a Recoverer in each process" in answer
    assert child.exitcode == 0


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_an_iterable_may_reuse_its_buffers(digits: Bundle, images: Images, batch: int) -> None:
    noise = np.stack([sample_noise(1, str(i), digits.latent_shape) for i in range(6)])

    def reused(values: Any) -> Iterator[Any]:
        buffer = np.empty_like(values[0])
        for value in values:
            buffer[:] = value
            yield buffer
        buffer[:] = 0

    expected = recover(digits, images, LABELS, batch=batch, noise=noise)
    found = recover(digits, reused(images), LABELS, batch=batch, noise=reused(noise))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_pil_images_and_tensors_are_taken(digits: Bundle, images: Images) -> None:
    import torch

    expected = [sample.image for sample in recover(digits, images, LABELS)]
    for given in ([Image.fromarray(image) for image in images], torch.from_numpy(images)):
        found = [sample.image for sample in recover(digits, given, LABELS)]
        np.testing.assert_array_equal(found, expected)
    grey = Image.fromarray(images[0]).convert("L")
    (from_grey,) = recover(digits, [grey], [3])
    (from_rgb,) = recover(digits, [np.asarray(grey.convert("RGB"))], [3])
    np.testing.assert_array_equal(from_grey.image, from_rgb.image)


def opened(kind: str, image: Image.Image, **options: Any) -> Image.Image:
    """Return an image as it is read from a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return Image.open(BytesIO(file.getvalue()))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_pil_image_is_turned_upright(digits: Bundle, images: Images, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = opened("PNG", Image.fromarray(images[0]), exif=exif)
    expected = np.rot90(images[0], {1: 0, 3: 2, 6: 3}[orientation])
    (sample,) = checked_samples(digits, [given], [3], seed=0)
    np.testing.assert_array_equal(sample.image, expected)


def test_exif_that_cannot_be_parsed_is_ignored(digits: Bundle, images: Images) -> None:
    given = opened("PNG", Image.fromarray(images[0]), exif=b"Exif\0\0II*")
    (sample,) = checked_samples(digits, [given], [3], seed=0)
    np.testing.assert_array_equal(sample.image, images[0])


def transparent_palette() -> Image.Image:
    image = Image.new("P", (32, 32))
    image.putpalette(bytes(4 * 256), "RGBA")
    return image


def truncated() -> Image.Image:
    file = BytesIO()
    Image.effect_noise((32, 32), 50).save(file, "PNG")
    return Image.open(BytesIO(file.getvalue()[:-200]))


def closed() -> Image.Image:
    image = opened("PNG", Image.new("RGB", (32, 32)))
    image.close()
    return image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (transparent_palette, "image 0: got a PIL image of mode P with transparency, expected RGB"),
        (
            lambda: opened(
                "GIF",
                Image.new("L", (32, 32)),
                save_all=True,
                append_images=[Image.new("L", (32, 32), 255)],
            ),
            "image 0: got a PIL image of 2 frames, expected a still image",
        ),
        (truncated, "image 0: Pillow cannot read it"),
        (closed, "image 0: Pillow cannot read it"),
    ],
)
def test_a_pil_image_that_a_file_would_not_give_is_refused(
    digits: Bundle, make: Callable[[], Image.Image], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        next(checked_samples(digits, [make()], [3], seed=0))


def test_whole_numbers_of_every_kind_are_labels_and_seeds(digits: Bundle, images: Images) -> None:
    import torch

    expected = [sample.image for sample in recover(digits, images, LABELS, seed=3)]
    for labels in (np.array(LABELS, np.uint8), np.array(LABELS, ">i8"), torch.tensor(LABELS)):
        found = [s.image for s in recover(digits, images, labels, seed=np.int16(3))]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (3.0, r"3.0 \(float\)"),
        (3.7, r"3.7 \(float\)"),
        (float("nan"), r"nan \(float\)"),
        (np.float32(3), r".*3.0.*float32.*"),
        ("3", r"'3' \(str\)"),
        (True, r"True \(bool\)"),
        (np.True_, r".*True.*bool.*"),
        (None, r"None \(NoneType\)"),
        ([0, 1], r"\[0, 1\] \(list\)"),
        (np.eye(10, dtype=int)[3], r"array.* \(ndarray\)"),
    ],
)
def test_what_is_not_a_whole_number_is_not_a_label(
    digits: Bundle, images: Images, label: Any, found: str
) -> None:
    with pytest.raises(DatasetError, match=f"label of image 1 is {found}; expected a whole number"):
        list(checked_samples(digits, images[:2], [0, label], seed=0))


@pytest.mark.parametrize("seed", [1.5, 0.0, None, True, "1", np.float64(1), 2**63, -(2**63) - 1])
def test_what_is_not_a_whole_number_of_64_bits_is_not_a_seed(
    digits: Bundle, images: Images, seed: Any
) -> None:
    with Recoverer(digits, QUICK, batch=1) as recoverer:
        with pytest.raises(UsageError, match=r"seed is .*; expected a whole number from -2\^63"):
            recoverer(images, LABELS, seed=seed)  # at once, not when the first image is asked for
        for largest in (2**63 - 1, -(2**63)):
            next(recoverer(images[:1], [0], seed=largest))


def unsized(values: Iterable[Any]) -> Iterator[Any]:
    yield from values


NOISE = np.zeros((2, 4, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (unsized([1]), {}, "more than 1 images but only 1 labels"),
        (unsized([1, 2, 3]), {}, "2 images but more labels; expected one per image"),
        ([1, 2], {"keys": unsized("abc")}, "2 images but more keys"),
        ([1, 2], {"keys": ["a", "b", "c"]}, "2 images but 3 keys"),
        ([1, 2], {"noise": [*NOISE, NOISE[0]]}, "2 images but 3 noise"),
        ([1, 2], {"noise": unsized([*NOISE, NOISE[0]])}, "2 images but more noise"),
        ([1, 2], {"keys": ["a", "a"]}, "key 'a' of image 1 is another image's too"),
        ([1, 2], {"keys": [0, 1]}, r"key of image 0 is 0 \(int\); expected a text"),
        ([1, 2], {"keys": "ab"}, "keys is the text 'ab'; expected one per image"),
        ([1, 2], {"keys": ["\udcff", "b"]}, "key of image 0 is .* expected a text that can be"),
        (3, {}, r"labels is 3 \(int\); expected one per image"),
        (None, {}, r"labels is None \(NoneType\); expected one per image"),
        (
            [10**5000, 1],
            {},
            "image 0 has label a number of 16,610 bits; the model has classes 0 to 9",
        ),
        ("12", {}, "labels is the text '12'"),
        ({1: "one", 2: "two"}, {}, "labels is a dict; expected a sequence, with one entry per"),
        ({1, 2}, {}, "labels is a set; expected a sequence"),
        ([1, 2], {"keys": {"a": 0, "b": 1}}, "keys is a dict"),
        ([1, 2], {"noise": frozenset({1, 2})}, "noise is a frozenset"),
    ],
)
def test_labels_keys_and_noise_come_one_per_image(
    digits: Bundle, images: Images, labels: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        list(checked_samples(digits, images[:2], labels, seed=0, **options))
