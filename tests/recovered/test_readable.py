"""Everything that a recovery writes can be read by `inspect`, `merge` and another recovery.

Names, reasons, seeds and settings of any kind are drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diver_trt.bundle import Bundle
from diver_trt.cli.recipe_options import parse_recipe
from diver_trt.digits import default_bundle
from diver_trt.distilled.dataset import Dataset, Origin, Sample
from diver_trt.distilled.methods import METHODS
from diver_trt.distilled.source import Checked
from diver_trt.errors import DatasetError
from diver_trt.manifest import inspect_recovered, open_recovered, read_recovered
from diver_trt.recipe import GUIDE_KINDS, MAX_SCALE, PRESETS, SIGMAS, Recipe
from diver_trt.records import Shard
from diver_trt.recovered.caption import caption, recipe_options, recover_command
from diver_trt.recovered.events import Finished
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.merge import merge_shards
from diver_trt.structs import dump
from tests.cli.command import run
from tests.conftest import DISTILLED
from tests.recovered.commands import recover
from tests.recovered.job_runs import copy_job, opened

DIGITS = Bundle.open(default_bundle())
CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"),
    st.sampled_from("\n\r\x1b\x7f\u2028\u202e\udcff\udc80 ~'\"\\"),
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    steps = draw(st.integers(2, 1000))
    start = draw(st.integers(1, steps))
    inherit = draw(st.integers(1, steps))
    low = draw(st.integers(0, start - 1))
    if draw(st.booleans()):
        # A preset, or a neighbour of one.
        preset = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]
        own: dict[str, Any] = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "inherit_step": st.integers(1, 50),
                    "start_step": st.integers(preset.window[1] + 1, 50),
                    "guide": st.sampled_from(GUIDE_KINDS),
                    "cfg_window": st.just((30, 10)),
                },
            )
        )
        return replace(preset, **own)
    return Recipe(
        steps=steps,
        inherit_step=inherit if start < steps or draw(st.booleans()) else None,
        start_step=start,
        cfg_scale=draw(st.one_of(st.floats(1, MAX_SCALE), st.integers(1, 9))),
        cfg_channels=draw(st.integers(1, 4)),
        gamma=draw(st.floats(0, MAX_SCALE)),
        window=(draw(st.integers(low + 1, steps)), low),
        sigma=draw(st.sampled_from(SIGMAS)),
        guide=draw(st.sampled_from(GUIDE_KINDS)),
    )


class Images:
    """Three images with given names, some of which cannot be read, and some only the first time."""

    def __init__(self, names: list[str], reads: list[str | None]) -> None:
        self.names, self.reads = names, reads

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        return self.names[position]

    def sha256(self, position: int) -> str:
        if problem := self.reads[position]:
            raise DatasetError(f"{self.names[position]}: {problem}")
        return hashlib.sha256(bytes([position])).hexdigest()

    def read(self, position: int) -> Any:
        self.sha256(position)
        return np.random.default_rng(position).integers(0, 255, (8, 8, 3), np.uint8)

    def size(self, position: int) -> tuple[int, int]:
        return 8, 8

    def check(self) -> Iterator[Checked]:
        for position in range(len(self)):
            yield Checked(hashlib.sha256(bytes([position])).hexdigest())


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # to shrink an example takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(
    root=NAMES,
    times=st.sampled_from([1, 1, 900]),
    class_map=NAMES,
    names=st.lists(NAMES, min_size=3, max_size=3, unique=True),
    reads=st.lists(st.one_of(st.none(), NAMES), min_size=3, max_size=3),
    problems=st.lists(st.one_of(st.none(), NAMES), min_size=3, max_size=3),
    seed=st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**63 - 1, -(2**63)])),
    recipe=recipes(),
    layout=st.sampled_from(["index", "huggingface", "npz"]),
    size=st.sampled_from([None, 1, 7]),
    soft=st.booleans(),
    origin=st.tuples(
        st.sampled_from(list(METHODS.values())),
        st.sampled_from([None, "none", "cifar10"]),
        st.floats(0, 1),
    ),
)
def test_what_a_recovery_writes_can_be_read(
    root: str,
    times: int,
    class_map: str,
    names: list[str],
    reads: list[str | None],
    problems: list[str | None],
    seed: int,
    recipe: Recipe,
    layout: str,
    size: int | None,
    soft: bool,
    origin: tuple[Any, str | None, float],
) -> None:
    if all(reads):  # the input as a whole is gone, which ends a run
        reads = [None, *reads[1:]]
    class_map, names = class_map * times, [name * times for name in names]
    reads = [text and text * times for text in reads]
    problems = [text and text * times for text in problems]
    images = Images(names, reads)
    kind, normalisation, clipped = origin
    samples = tuple(Sample(f"{index:05d}/00000", index, 9 - index, index) for index in range(3))
    logits = np.arange(30, dtype=np.float32).reshape(3, 10)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(
            Path(folder) / root,
            class_map,
            samples,
            images,
            Origin(kind, tuple(names), normalisation, soft_labels="logits" if soft else None),
            logits.__getitem__ if soft else None,
        )
        job = Job(
            dataset=dataset,
            checked=[Checked(entry.sha256, clipped) for entry in images.check()],
            bundle=DIGITS,
            recipe=recipe,
            seed=seed,
            layout=LAYOUTS[layout],
            size=size,
            shard=Shard(1, 1),
            skip_bad=True,
        )
        output, merged = Path(folder) / "out", Path(folder) / "merged"
        if (Path(folder) / root).resolve() in (output, merged):
            return
        assert isinstance(copy_job(job, output, problems)[-1], Finished)
        facts = inspect_recovered(output)
        assert (facts["seed"], facts["images"] + len(facts["skipped"])) == (seed, 3)
        assert Recipe.from_json(facts["recipe"]) == recipe
        assert all(len(text) < 5000 for text in texts(dump(open_recovered(output).manifest)))
        assert len(read_recovered(output, DIGITS).files) == facts["images"]
        assert merge_shards([output], merged).images == facts["images"]
        assert inspect_recovered(merged) == {**facts, "shard": None}
        # Unreadable images are retried; those that the model could not recover are not.
        skipped = open_recovered(output).manifest.skipped
        away = {entry.key for entry in skipped if entry.engine is None}
        with opened(job, output) as writer:
            assert (writer.finished, writer.lost) == (not away, 0)
            assert writer.finished or set(writer.done) == set(job.entries()) - away


def texts(value: Any) -> list[str]:
    """Return all texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in inner for text in texts(child)]


@pytest.mark.parametrize("name", ["c\nx", "\x1b[2Jx", "x\udcff"])
def test_a_class_map_whose_name_cannot_be_printed_is_refused_before_the_run(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("\n".join("0123456789"))
    out = tmp_path / "out"
    result = recover(DISTILLED.parent / "ipc1", out, "--classes", tmp_path / name)
    assert result.exit_code in (1, 2)
    assert "the path cannot be printed, expected another" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("name", ["x" * 250, "é ß"])
def test_a_class_map_of_any_printable_name_can_be_read_again(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n".join("0123456789"))
    out = tmp_path / "out"
    for _ in range(2):
        result = recover(DISTILLED.parent / "ipc1", out, "--classes", tmp_path / name)
        assert result.exit_code == 0, result.output
    assert "10 of 10 images are already there" in result.stderr
    result = run("inspect", out, "--json")
    assert json.loads(result.stdout)["class_map"].isprintable()
    assert recover(out, tmp_path / "next").exit_code == 0


# Captions of contact sheets


def parsed(options: list[str]) -> Recipe:
    """Return the recipe of options as the command line reads them."""
    kinds: dict[str, Any] = {"cfg_scale": float, "gamma": float, "start_step": str}
    kinds |= {"window": str, "sigma": str, "steps": int, "inherit_step": int, "cfg_channels": int}
    kinds |= {"guide": str, "cfg_window": str}
    given: dict[str, Any] = dict.fromkeys(kinds)
    flags = {"--no-inheritance": False, "--no-guidance": False}
    remaining = iter(options)
    preset = ""
    for option in remaining:
        if option in flags:
            flags[option] = True
            continue
        value, name = next(remaining), option.removeprefix("--").replace("-", "_")
        if name == "preset":
            preset = value
        else:
            given[name] = kinds[name](value)
    return parse_recipe(
        preset,
        no_inheritance=flags["--no-inheritance"],
        no_guidance=flags["--no-guidance"],
        **given,
    )


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(recipe=recipes())
def test_the_options_in_a_caption_give_the_recipe(recipe: Recipe) -> None:
    assert parsed(recipe_options(recipe)) == recipe


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (PRESETS["paper"], "--preset paper"),
        (PRESETS["ncfm"], "--preset ncfm"),
        (replace(PRESETS["matched"], cfg_scale=1.5), "--preset matched --cfg-scale 1.5"),
        (
            replace(PRESETS["paper"], gamma=0.0, sigma="marginal"),
            "--preset paper --no-guidance --sigma marginal",
        ),
        (replace(PRESETS["paper"], inherit_step=None), "--preset paper --no-inheritance"),
        (
            Recipe(steps=4, inherit_step=2, start_step=4, window=(3, 2)),
            "--preset paper --steps 4 --inherit-step 2 --start-step 4 --window 3:2",
        ),
    ],
)
def test_a_caption_has_every_setting_that_differs(recipe: Recipe, options: str) -> None:
    head = {
        "bundle": {"model": "dit-digits", "precision": "fp32"},
        "seed": 3,
        "source": {"name": "my digits", "format": "idc", "normalisation": "none", "collage": 1},
        "class_map": "imagenet-10",
        "layout": {"name": "npz", "size": 16, "resampling": "bicubic"},
        "shard": {"number": 2, "of": 5},
    }
    what = "top: distilled, bottom: recovered"
    command = recover_command(head, recipe, [{"wnid": None}], left_out=True)
    assert caption(what, head, command) == (
        f"{what}  ·  dit-digits fp32  ·  diver-trt recover {options} --seed 3 "
        "--format idc --classes imagenet-10 --normalisation none --collage 1 "
        "--layout npz --size 16 --shard 2/5 --on-error skip 'my digits'"
    )
