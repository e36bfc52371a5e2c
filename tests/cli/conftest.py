"""Inputs that several commands are tested on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from tests.conftest import DISTILLED
from tests.stand_in import write_stand_in_plan


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two classes with two and one distilled digits."""
    for name in ("3/0.png", "3/1.png", "8/0.png"):
        (tmp_path / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DISTILLED / name, tmp_path / "few" / name)
    return tmp_path / "few"


@pytest.fixture
def compiled(edited: Callable[..., Path]) -> Path:
    """The digits bundle with engines that only the stand-in could run, for two batches."""
    folder = edited(lambda manifest: None)
    for batch in (2, 8):
        write_stand_in_plan(Bundle.open(folder), batch)
    return folder


@pytest.fixture
def dm(tmp_path: Path) -> Path:
    """The distilled digits as DM would save them, some values beyond the range of pixels."""
    import torch

    images = np.stack(
        [
            np.asarray(Image.open(DISTILLED / str(index) / "0.png").convert("RGB"))
            for index in range(10)
        ]
    )
    values = (torch.from_numpy(images.transpose(0, 3, 1, 2) / 255.0) - 0.1307) / 0.3081
    values[:, :, :4, :4] = -2
    torch.save(
        {"data": [[values.float(), torch.arange(10)]]}, tmp_path / "res_DM_MNIST_ConvNet_1ipc.pt"
    )
    return tmp_path / "res_DM_MNIST_ConvNet_1ipc.pt"
