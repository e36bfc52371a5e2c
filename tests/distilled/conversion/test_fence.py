"""Whitening mathematics and msgpack are out of reach of everything but `convert`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diver_trt
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images

PACKAGE = Path(diver_trt.__file__).parent
CONVERSION = "diver_trt.distilled.conversion"


def imported_by(path: Path) -> set[str]:
    """Every module that a file names in an import, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_the_convert_command_imports_the_conversion_and_only_that_msgpack() -> None:
    importers, unpackers = set(), set()
    for path in PACKAGE.rglob("*.py"):
        imported, name = imported_by(path), path.relative_to(PACKAGE).as_posix()
        if any(module.startswith(CONVERSION) for module in imported):
            importers.add(name)
        if "msgpack" in imported:
            unpackers.add(name)
    assert {name for name in importers if "/conversion/" not in name} == {"cli/convert.py"}
    assert unpackers == {"distilled/conversion/flax_checkpoint.py"}


@pytest.mark.parametrize(
    "write", [methods.mtt, methods.frepo, methods.listed("data.pt"), methods.MINIMAX]
)
def test_reading_a_dataset_loads_neither(tmp_path: Path, write: object) -> None:
    assert callable(write)
    wnids = [f"{index}" for index in range(10)]
    options = {"wnids": wnids} if write is methods.MINIMAX else {}
    path = write(tmp_path, known_images(20, 32), CLASSES, **options)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from diver_trt.bundle import Bundle\n"
        "from diver_trt.digits import default_bundle\n"
        "from diver_trt.distilled.dataset import read_dataset\n"
        f"dataset = read_dataset(Path({str(path)!r}), Bundle.open(default_bundle()))\n"
        "assert len(list(dataset.images.check())) == len(dataset.images)\n"
        "print(*sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "diver_trt.distilled.whitening" in loaded
    assert not {name for name in loaded if name.startswith((CONVERSION, "msgpack"))}
