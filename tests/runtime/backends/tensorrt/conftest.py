"""A bundle that engines can be put into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diver_trt.bundle import Bundle


@pytest.fixture
def bundle(edited: Callable[..., Path]) -> Bundle:
    return Bundle.open(edited(lambda manifest: None))
