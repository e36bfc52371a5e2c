"""Whitened images, made as the methods' own code makes them, and their training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from tests.cli.command import fails, run
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES

FloatImages = NDArray[np.float32]

TARGETS = (np.eye(10)[CLASSES] - 0.1).astype(np.float32)
"""The regression targets of KIP and FRePo."""


def planar(pixels: NDArray[np.uint8]) -> FloatImages:  # [n, H, W, 3] => [n, 3, H, W] in [0, 1]
    values: FloatImages = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    return values


def kornia(images: FloatImages, training: FloatImages) -> FloatImages:
    """The output of kornia.enhance.ZCAWhitening(eps=0.1), from its documentation, in float64."""
    rows = training.reshape(len(training), -1).astype(np.float64)
    mean = rows.mean(axis=0)
    u, s, _ = np.linalg.svd(np.cov(rows, rowvar=False))
    matrix = u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T
    flat = (images.reshape(len(images), -1) - mean) @ matrix
    whitened: FloatImages = flat.reshape(images.shape).astype(np.float32)
    return whitened


def tenth_of_the_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transform of FRePo and KIP, which adds a tenth of the mean eigenvalue."""
    covariance = rows.T @ rows / len(rows)
    u, s, _ = np.linalg.svd(covariance)
    return np.asarray(u @ np.diag((s + 0.1 * np.trace(covariance) / len(covariance)) ** -0.5) @ u.T)


def save_mtt(folder: Path, images: FloatImages, iteration: str = "best") -> Path:
    return methods.mtt(folder, torch.from_numpy(images), CLASSES, iteration=iteration)


def save_frepo(folder: Path, images: NDArray[np.floating]) -> Path:  # [n, H, W, 3]
    np.savez(folder / "step000100.npz", image=images.astype(np.float32), label=TARGETS)
    return folder / "step000100.npz"


def save_kip(folder: Path, images: NDArray[np.floating], name: str = "kip_cifar10_zca.npz") -> Path:
    np.savez(folder / name, images=images.astype(np.float32), labels=TARGETS)
    return folder / name


def read(path: Path, bundle: Bundle, **options: str | int | None) -> NDArray[np.uint8]:
    given = ReadOptions(classes="imagewoof", **options)  # type: ignore[arg-type]
    dataset = read_dataset(path, bundle, given)
    return np.stack([dataset.images.read(sample.position) for sample in dataset.samples])


def convert(*arguments: object) -> str:
    """Run `diver-trt convert`, and return its output."""
    result = run("convert", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def converted_facts(*arguments: object) -> Any:
    """Run `diver-trt convert --json`, and return the object that it prints."""
    result = run("convert", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """Run `diver-trt convert` on an input that it refuses, and return its error."""
    return fails(run("convert", *arguments))
