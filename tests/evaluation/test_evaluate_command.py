"""`diver-trt evaluate` as a user meets it: one small run, its JSON and its page, and refusals."""

from __future__ import annotations

import errno
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.table import Table
from typer.testing import Result

from diver_trt.cli.result_files import print_table
from diver_trt.documents import Document
from diver_trt.errors import DatasetError
from diver_trt.evaluation import architectures
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.protocols import PROTOCOLS, QUICK
from diver_trt.evaluation.result import Evaluation
from diver_trt.evaluation.words import accuracy
from tests.cli.command import fails, run
from tests.test_light_imports import HEAVY, modules_after


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "quick", replace(QUICK, steps=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, train: ImageSet, held_out: ImageSet) -> Path:
    """Real digits as folders of images to train on, and as a file of tensors to test on."""
    root = tmp_path_factory.mktemp("digits")
    for i, (image, label) in enumerate(zip(train.images, train.labels, strict=True)):
        (root / "train" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "train" / str(label) / f"{i}.png")
    np.savez(root / "test.npz", images=held_out.images, labels=held_out.labels)
    return root


def evaluate(folder: Path, *arguments: object) -> Result:
    test = ("--test", folder / "test.npz")
    return run("evaluate", folder / "train", *test, "--architecture", "mlp", *arguments)


def test_the_table_the_json_and_the_page_agree(folder: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "e.json", "--report", tmp_path / "e.html")
    result = run(
        "evaluate",
        *(folder / "train", "digits <b>=digits", "--test", folder / "test.npz"),
        *("--architecture", "mlp", "--architecture", "vit-small", "--seeds", 2, "--seed", 5),
        *("--distilled-with", "vit-small", "--output", tmp_path / "runs", *files),
    )
    assert result.exit_code == 0, result.output
    found = Document.read(tmp_path / "e.json", DatasetError).load(Evaluation)
    assert [one.name for one in found.training_sets] == ["train", "digits <b>"]
    assert (found.test.name, found.test.images, found.side) == ("test.npz", 200, 16)
    assert (found.seeds, found.distilled_with, found.others) == ((5, 6), "vit-small", ("mlp",))
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    for one in found.training_sets:
        cells = [accuracy(found.summary(one.name, name)) for name in ("mlp", "vit-small", None)]
        assert re.split(r"\s{2,}", lines[one.name].strip()) == [one.name, *cells]
    assert "average without vit-small" in result.stdout

    page = (tmp_path / "e.html").read_text()
    assert page.count("<svg") == 1
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert "digits &lt;b&gt;" in page
    assert "<b>" not in page
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)
    assert facts is not None
    assert json.loads(facts[1]) == json.loads((tmp_path / "e.json").read_text())
    assert not re.search(r'(?:src|href)="http', page)

    again = run(
        "evaluate",
        *("digits <b>=digits", folder / "train", "--test", folder / "test.npz"),
        *("--architecture", "mlp", "--seeds", 2, "--seed", 5, "--output", tmp_path / "runs"),
        *files,
    )
    assert again.exit_code == 0, again.output
    resumed = Document.read(tmp_path / "e.json", DatasetError).load(Evaluation)
    assert {*resumed.runs} <= {*found.runs}
    assert len((tmp_path / "runs" / "runs.jsonl").read_text().splitlines()) == 8


def test_the_files_are_written_though_the_table_cannot_be_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: object) -> None:
        raise OSError(errno.EPIPE, "Broken pipe", "standard output")

    monkeypatch.setattr("diver_trt.cli.evaluate.print_table", closed)
    result = evaluate(folder, "--seeds", 1, "--json", tmp_path / "e.json")
    assert "error: standard output: Broken pipe" in fails(result)
    assert json.loads((tmp_path / "e.json").read_text())["runs"]


def test_names_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("set", *(f"architecture-{number}" for number in range(20)))
    table.add_row("a" * 100)
    print_table(table)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(text in printed for text in ("a" * 100, "architecture-19"))


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[red]set[/red]", "[/closed]", ":tiger:")
    table = Table(*names)
    table.add_row(*names)
    print_table(table)
    printed = capsys.readouterr().out
    assert [printed.count(name) for name in names] == [2, 2, 2]


def test_progress_is_plain_lines_where_there_is_no_terminal(folder: Path) -> None:
    result = evaluate(folder, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "px; one training each\n" in result.stdout


def test_no_flip_and_the_image_size_reach_the_protocol(folder: Path, tmp_path: Path) -> None:
    arguments = ("--no-flip", "--image-size", 20, "--seeds", 1, "--json", tmp_path / "e.json")
    protocol = replace(PROTOCOLS["dsa"], epochs_beyond=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "dsa", protocol)
        result = evaluate(folder, "--protocol", "dsa", *arguments)
    assert result.exit_code == 0, result.output
    assert "no mirror images" in result.stdout
    found = Document.read(tmp_path / "e.json", DatasetError).load(Evaluation)
    assert (found.side, found.protocol) == (20, protocol.without_flip())
    assert found.runs[0].steps == 2


def test_sets_of_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "five.npz",
        images=np.full((5, 16, 16, 3), range(3), np.uint8) * 100,
        labels=np.arange(5),
    )
    line = fails(
        run(
            *("evaluate", tmp_path / "five.npz", "--test", folder / "test.npz"),
            *("--architecture", "mlp"),
        )
    )
    assert "five.npz: has 5 classes, the test set 10; 5, 6, 7, 8, 9 are not in the tra" in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--protocol", "rded"), "--protocol rded: no such protocol"),
        (("--architecture", "alexnet"), "--architecture alexnet: no such architecture"),
        (("--distilled-with", "alexnet"), "--distilled-with alexnet: no such architecture"),
        (("--image-size", "5000"), "--image-size 5000: expected a whole number"),
    ],
)
def test_wrong_usage_exits_2(folder: Path, arguments: tuple[str, ...], problem: str) -> None:
    assert problem in fails(evaluate(folder, *arguments), 2)


@pytest.mark.parametrize("names", [("a=x", "a=y"), ("=x",), ("a=",), ("x/a", "y/a")])
def test_training_sets_need_names_of_their_own(names: tuple[str, ...]) -> None:
    result = run("evaluate", *names, "--test", "x")
    assert result.exit_code == 2
    assert "TRAIN" in result.output


def test_files_that_cannot_be_written_are_refused_first(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text("mine")
    assert "is not a report of diver-trt evaluate" in fails(
        evaluate(folder, "--report", tmp_path / "other.html")
    )
    assert "is not a JSON file of diver-trt evaluate" in fails(
        evaluate(folder, "--json", tmp_path / "other.html")
    )
    assert (tmp_path / "other.html").read_text() == "mine"
    # The JSON file is checked first, as in bench.
    both = ("--report", tmp_path / "other.html", "--json", tmp_path / "absent" / "e.json")
    assert "no such folder" in fails(evaluate(folder, *both))
    same = ("--json", tmp_path / "e", "--report", tmp_path / "e")
    assert "--json and --report are both" in fails(evaluate(folder, *same), code=2)


@pytest.mark.parametrize(
    ("package", "architecture"), [("torch", "mlp"), ("transformers", "resnet-small")]
)
def test_a_missing_extra_is_its_install_line(
    package: str, architecture: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{architectures.__name__}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    line = fails(evaluate(folder, "--architecture", architecture))
    assert f"needs {package}, which is not installed" in line
    assert "run `pip install 'diver-trt[evaluate]'`" in line


def test_neither_help_nor_completion_loads_torch() -> None:
    code = """
import diver_trt.cli.evaluate, diver_trt.evaluation.sets
from diver_trt.cli.completion import architectures, protocols
assert architectures("resnet") == ["resnet-small", "resnet18", "resnet18-in"]
assert protocols("") == ["minimax", "dsa", "quick"]
"""
    assert modules_after(code).isdisjoint(HEAVY)
