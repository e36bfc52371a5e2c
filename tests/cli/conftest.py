"""Inputs that several commands are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.bundle import Bundle
from tests.conftest import Edited, digit_folder, ten_digits
from tests.stand_in import write_stand_in_plan


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two classes with two and one distilled digits."""
    return digit_folder(tmp_path / "few", {3: 2, 8: 1})


@pytest.fixture
def compiled(edited: Edited) -> Path:
    """The digits bundle with engines that only the stand-in could run, for two batches."""
    folder = edited()
    for batch in (2, 8):
        write_stand_in_plan(Bundle.open(folder), batch)
    return folder


@pytest.fixture
def dm(tmp_path: Path) -> Path:
    """The distilled digits as DM would save them, some values beyond the range of pixels."""
    import torch

    values = (torch.from_numpy(ten_digits().transpose(0, 3, 1, 2) / 255.0) - 0.1307) / 0.3081
    values[:, :, :4, :4] = -2
    path = tmp_path / "res_DM_MNIST_ConvNet_1ipc.pt"
    torch.save({"data": [[values.float(), torch.arange(10)]]}, path)
    return path
