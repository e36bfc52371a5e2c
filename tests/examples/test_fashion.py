"""Reading Fashion-MNIST's files, and its jitter; the test of the real files skips without them."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.dataset import load_dataset
from examples.fashion.fashion import (
    CLASS_NAMES,
    VALIDATION,
    load_splits,
    read_idx,
    read_split,
    shift,
    source_folder,
)


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as Fashion-MNIST's, with noise for images."""
    rng = np.random.default_rng(0)
    for name, count in (("train", VALIDATION + 20), ("t10k", 30)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.arange(count).astype(np.uint8) % 10)
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    return tmp_path


def test_an_idx_file_reads_as_the_array_it_holds(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", values)
    assert np.array_equal(read_idx(tmp_path / "a.gz"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x01" + (5).to_bytes(4, "big") + b"abc", "3 values, expected 5"),
        (b"PNG of something", "expected an IDX file of bytes"),
    ],
)
def test_a_file_that_is_not_a_whole_idx_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "a.gz")


def test_without_the_files_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        source_folder()


def test_images_are_padded_with_background_to_32_pixels(folder: Path) -> None:
    grey = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    images = read_split(folder, "t10k").images
    assert images.shape == (30, 32, 32, 3)
    assert all(np.array_equal(images[:, 2:30, 2:30, channel], grey) for channel in range(3))
    assert images.sum() == 3 * grey.sum(dtype=np.int64)


def test_the_last_5000_training_images_are_the_validation_set(folder: Path) -> None:
    known, splits = read_split(folder, "train"), load_splits()
    assert np.array_equal(splits.train.images, known.images[:20])
    assert np.array_equal(splits.validation.images, known.images[20:])
    assert np.array_equal(splits.test.labels, np.arange(30) % 10)


def test_a_shift_moves_an_image_by_at_most_a_pixel_and_brings_in_background() -> None:
    image = torch.rand(1, 3, 8, 8)
    shifted = shift(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1), value=-1.0)
    allowed = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    found = [[torch.equal(one, other) for other in allowed] for one in shifted]
    assert all(sum(row) == 1 for row in found)
    assert {row.index(True) for row in found} == set(range(9))


def test_the_real_files_hold_what_the_readme_states() -> None:
    try:
        source_folder()
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not installed (apt install dataset-fashion-mnist)")
    splits = load_dataset("fashion").load()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [55000, 5000, 10000]
    assert np.bincount(splits.test.labels).tolist() == [1000] * len(CLASS_NAMES)
