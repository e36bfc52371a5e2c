"""`diver_trt.recover` writes the same folder as the command, and reports through callbacks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt import PRESETS, Bundle, Recipe, recover
from diver_trt.errors import BundleError, UsageError
from tests.cli.command import run
from tests.conftest import DISTILLED, files_of
from tests.recovered.commands import manifest_of

IPC1 = DISTILLED.parent / "ipc1"
QUICK = Recipe().scaled_to(6)


def test_it_writes_what_the_command_writes(tmp_path: Path) -> None:
    options = ["--steps", "6", "--seed", "7", "--layout", "npz", "--size", "48", "--batch", "3"]
    result = run("recover", IPC1, tmp_path / "a", *options)
    assert result.exit_code == 0, result.output
    recovery = recover(
        str(IPC1), str(tmp_path / "b"), recipe=QUICK, seed=7, layout="npz", size=48, batch=3
    )
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert (recovery.images, recovery.total, recovery.skipped) == (10, 10, ())
    assert (recovery.engine, recovery.batch, recovery.finished) == ("onnx", 3, True)
    assert recovery.contact_sheet.is_file()
    assert recovery.gallery == tmp_path / "b" / "index.html"


def test_defaults_are_those_of_the_command(tmp_path: Path) -> None:
    assert run("recover", "digits", tmp_path / "a").exit_code == 0
    assert recover("digits", tmp_path / "b").images == 10
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_it_reports_what_it_finds_and_how_far_it_is(tmp_path: Path, digits: Bundle) -> None:
    notes: list[str] = []
    steps: list[tuple[str, int, int]] = []
    recover(
        IPC1,
        tmp_path / "out",
        bundle=digits,
        recipe=QUICK,
        batch=4,
        on_note=notes.append,
        on_progress=lambda *step: steps.append(step),
    )
    assert notes[0].startswith(f"{IPC1}: class folders, 10 classes x 1, 32 px")
    start = "from the level of step 3 (signal-to-noise ratio 0.69)"
    assert notes[-1] == f"recovering on onnx in 3 batches of up to 4, 6 steps each, {start}"
    assert steps == [
        *(("checking", n, 10) for n in range(11)),
        *(("recovering", n, 18) for n in range(19)),
        *(("gallery", n, 10) for n in (0, 10)),
    ]


def test_a_stopped_recovery_is_resumed_by_the_same_call(tmp_path: Path) -> None:
    whole = recover(IPC1, tmp_path / "whole", recipe=QUICK)
    asked = iter([False, False, True])
    arguments: dict[str, Any] = {"bundle": None, "recipe": QUICK, "batch": 2}
    stopped = recover(IPC1, tmp_path / "out", **arguments, stopping=lambda: next(asked))
    assert (stopped.done, stopped.finished) == (4, False)
    notes: list[str] = []
    resumed = recover(IPC1, tmp_path / "out", **arguments, on_note=notes.append)
    assert f"{tmp_path / 'out'}: 4 of 10 images are already there" in notes
    assert (resumed.done, resumed.finished) == (10, True)
    assert files_of(tmp_path / "out") == files_of(whole.output)
    again = recover(IPC1, tmp_path / "out", **arguments)
    assert (again.images, again.engine, again.batch) == (10, None, None)


def test_a_preset_may_be_named(tmp_path: Path) -> None:
    recover(IPC1, tmp_path / "out", recipe="matched", shard="1/5")
    manifest = manifest_of(tmp_path / "out")
    assert Recipe.from_json(manifest["recipe"]) == PRESETS["matched"]
    assert manifest["shard"] == {"number": 1, "of": 5}


def test_doubts_without_a_receiver_are_warnings(tmp_path: Path) -> None:
    values = np.full((10, 3, 32, 32), 1.5, np.float32)
    values[:, :, ::2] = 0
    labels = np.eye(10, dtype=np.float32)
    np.savez(tmp_path / "a.npz", images=values, labels=labels, normalisation="none")
    with pytest.warns(UserWarning) as record:
        recover(tmp_path / "a.npz", tmp_path / "out", recipe=QUICK, layout="idc")
    assert {warning.filename for warning in record} == {__file__}
    doubts = [str(warning.message) for warning in record]
    assert any("layout idc does not hold soft labels" in doubt for doubt in doubts)
    assert any("is --normalisation none right?" in doubt for doubt in doubts)
    assert any("50.0% of the values lie outside the range" in doubt for doubt in doubts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recover(tmp_path / "a.npz", tmp_path / "quiet", recipe=QUICK, on_note=lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "nope"}, "unknown engine 'nope'; expected rtx, trt"),
        ({"layout": "x"}, "layout is 'x'; expected one of index, wnid"),
        ({"on_error": "x"}, "on_error is 'x'; expected one of fail, skip"),
        ({"size": 0}, "size is 0; expected a whole number, 1 to 4096"),
        ({"size": True}, "size is True"),
        ({"batch": "8"}, "batch is '8'; expected a whole number, 1 or more"),
        ({"memory_budget": "x"}, "memory_budget is 'x'; expected a size with its unit"),
        ({"format": "x"}, "--format x: no such format; expected one of folders"),
        ({"normalisation": "x"}, "--normalisation x: expected none, minus1to1"),
        ({"collage": 33}, "--collage 33: expected a whole number from 1 to 16"),
        ({"collage": 2.0}, "--collage 2.0: expected a whole number"),
        ({"classes": "nope"}, "--classes nope: neither a file nor a known subset"),
        ({"shard": "4/3"}, "shard is '4/3'; expected NUMBER/OF, such as 3/8"),
        ({"shard": ""}, "shard is ''; expected NUMBER/OF"),
        ({"classes": ""}, "--classes : neither a file nor a known subset"),
        ({"classes": Path("nope")}, "--classes nope: neither a file nor a known subset"),
        ({"classes": [0, 1]}, r"classes is \[0, 1\] \(list\); expected a text, a path or None"),
        ({"format": ["mtt"]}, r"format is \['mtt'\] \(list\); expected a text or None"),
        ({"normalisation": 0.5}, r"normalisation is 0.5 \(float\); expected a text or None"),
        ({"normalisation": ((0.5,) * 3, (0.5,) * 3)}, r"normalisation is .* \(tuple\)"),
        ({"trust": "no"}, r"trust is 'no' \(str\); expected True or False"),
        ({"gallery": 0}, r"gallery is 0 \(int\); expected True or False"),
        ({"overwrite": "false"}, r"overwrite is 'false' \(str\); expected True or False"),
        ({"bundle": b"x"}, r"bundle is b'x' \(bytes\); expected a Bundle, a path or None"),
        ({"engine": ["onnx"]}, r"unknown engine \['onnx'\]; expected rtx, trt"),
        ({"on_progress": None}, "on_progress is None .*; expected a function"),
        ({"on_note": "print"}, r"on_note is 'print' \(str\); expected a function or None"),
        ({"stopping": None}, "stopping is None .*; expected a function"),
        ({"seed": 2**63}, "seed is 9223372036854775808; expected a whole number"),
        ({"seed": 1.5}, r"seed is 1.5 \(float\)"),
        ({"recipe": "fast"}, "recipe is 'fast'; expected one of paper, ncfm, matched, d4m, level"),
        ({"recipe": Recipe().scaled_to(1001)}, "steps is 1001, but the model was trained with"),
        ({"recipe": Recipe(cfg_channels=5)}, "cfg_channels is 5"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    def no_work(*_: object) -> None:
        raise AssertionError("images were looked at")

    with pytest.raises(UsageError, match=message):
        recover(IPC1, tmp_path / "out", **{"recipe": QUICK, "on_progress": no_work, **arguments})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("paths", [(None, "out"), (0, "out"), (IPC1, b"out")])
def test_a_source_and_an_output_are_paths(paths: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match=r"(source|output) is .*; expected a path"):
        recover(*paths)


def test_classes_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("".join(f"{label}\n" for label in range(10)))
    recovery = recover(IPC1, tmp_path / "out", classes=tmp_path / "classes.txt", recipe=QUICK)
    assert recovery.finished


def test_an_empty_bundle_is_not_the_default(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the path of the bundle is empty"):
        recover(IPC1, tmp_path / "out", bundle="", recipe=QUICK)


def test_more_noise_than_the_first_step_takes_is_doubted(tmp_path: Path) -> None:
    notes: list[str] = []
    noisier = replace(QUICK, inherit_step=5, start_step=4, window=(4, 1))
    recover(IPC1, tmp_path / "a", recipe=noisier, on_note=notes.append)
    assert "lifted to the level of step 5, but sampling starts at step 4" in "".join(notes)
    notes.clear()
    recover(IPC1, tmp_path / "b", recipe=QUICK, on_note=notes.append)
    assert "are lifted to" not in "".join(notes)
