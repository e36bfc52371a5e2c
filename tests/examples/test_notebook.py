"""The notebook runs from top to bottom, in a kernel of its own, with fewer steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "tour.ipynb"
FEWER = "STEPS = 5\nTRAINING_STEPS = 3\nTRAININGS = 1"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The code cells after a run, by their id."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    names = [line.partition(" = ")[0] for line in FEWER.splitlines()]
    assert [line.partition(" = ")[0] for line in cells["parameters"].source.splitlines()] == names
    cells["parameters"].source = FEWER
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        place = {"metadata": {"path": str(NOTEBOOK.parent)}}
        NotebookClient(notebook, kernel_name="python3", resources=place).execute()
    yield cells


def text(cell: Any) -> str:
    return "".join(
        output.get("text") or output["data"].get("text/plain", "") for output in cell.outputs
    )


def test_every_cell_runs_in_order(executed: dict[str, Any]) -> None:
    counts = [cell.execution_count for cell in executed.values()]
    assert counts == list(range(1, len(counts) + 1))


def test_it_recovers_compares_and_trains(executed: dict[str, Any]) -> None:
    pictures = [
        name
        for name, cell in executed.items()
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures == ["real", "pairs", "settings"]
    assert "100 images by" in text(executed["recover"])
    assert text(executed["same"]) == "True"
    assert len(text(executed["train"]).splitlines()) == 4


def test_the_committed_notebook_has_no_outputs() -> None:
    """They would be figures without their machine, and change with every run."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    ran = [
        cell["id"]
        for cell in cells
        if cell.get("outputs") or cell.get("execution_count") is not None
    ]
    assert ran == []


def test_the_pages_that_it_links_to_are_there() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [part.partition(")")[0] for part in sources.split("](")[1:]]
    assert links
    assert [link for link in links if not Path(NOTEBOOK.parent / link).exists()] == []
