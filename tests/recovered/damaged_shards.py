"""Shards with one thing wrong, for the tests of `merge`."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.errors import DatasetError
from diver_trt.recovered.merge import merge_shards

Manifest = dict[str, Any]


def refused(parts: list[Path], output: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        merge_shards(parts, output)
    assert not output.exists()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def npy(values: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz() -> bytes:
    data = io.BytesIO()
    np.savez(data, soft_labels=np.zeros((1, 10), np.float32))
    return data.getvalue()
