"""A sibling is one file: a toy of each kind, made here alone, works through its registry."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.cli.commands import app
from diver_trt.contract import NetworkName
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.methods import METHODS
from diver_trt.distilled.methods.base import Found, Method
from diver_trt.distilled.normalisation import Normalisation
from diver_trt.doctor import examine, usable
from diver_trt.method.process import PROCESSES
from diver_trt.models import BASES, Base
from diver_trt.pixels import square
from diver_trt.recipe import Recipe
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Layout, Written
from diver_trt.runtime.backends import BACKENDS, Backend, Finding
from diver_trt.runtime.engine import Opened, Placement
from diver_trt.runtime.ports import Ports
from diver_trt.runtime.stepping import CARRY, SteppedDenoiser
from tests.cli.command import run, succeeds
from tests.conftest import IPC1

QUICK = ("--steps", "2")


# A toy engine: every network averages its first input, so that images come out as gradients.


class ToyEngine:
    def __init__(self, bundle: Bundle, network: NetworkName, batch: int) -> None:
        declared = bundle.networks[network]
        self._ports = Ports(network, declared.inputs, declared.outputs)
        self._buffers = {name: spec.allocate(batch) for name, spec in self._ports.all.items()}
        self.batch = batch

    def write(self, name: str, values: NDArray[Any]) -> None:
        self._ports.require_input(name)
        np.copyto(self._buffers[name], values)

    def run(self) -> None:
        (output,) = self._ports.outputs
        values = self._buffers[output]
        first = next(iter(self._ports.inputs))
        ramp = np.linspace(-1, 1, values.size).reshape(values.shape)
        values[:] = ramp + self._buffers[first].mean()
        if output == CARRY[0]:
            self._buffers[CARRY[1]][:] = values

    def read(self, name: str) -> NDArray[Any]:
        self._ports.require_output(name)
        return self._buffers[name]

    def close(self) -> None:
        self._ports.close()


class ToySession:
    name = "toy"

    def __init__(self, bundle: Bundle, batch: int) -> None:
        self.bundle, self.batch = bundle, batch

    def open(self, network: NetworkName) -> ToyEngine:
        return ToyEngine(self.bundle, network, 1 if network != "conditioner" else 50)

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> SteppedDenoiser:
        engine = ToyEngine(self.bundle, "denoiser", self.batch)
        return SteppedDenoiser(engine, self.bundle.condition_pair, table, steps)

    def close(self) -> None:
        pass


@pytest.fixture
def toy_engine(monkeypatch: pytest.MonkeyPatch) -> Backend:
    def probe(name: str, bundle: Bundle) -> Iterator[Finding]:
        yield Finding("Toy", "works", f"{name} on {bundle.model_id}", recovers=True)

    def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
        return Opened(ToySession(bundle, placement.balanced_batch()), None)

    module = ModuleType("toy_backend")
    vars(module).update(available=lambda *_: True, open_session=open_session, probe=probe)
    monkeypatch.setitem(sys.modules, "toy_backend", module)
    backend = Backend(name="toy", title="Toy", extra="toy", packages=("toy",), module="toy_backend")
    monkeypatch.setitem(BACKENDS, "toy", backend)
    return backend


def test_a_toy_engine_is_one_module_and_one_entry(
    toy_engine: Backend, digits: Bundle, tmp_path: Path
) -> None:
    found = {finding.subject: finding for finding in examine(digits)}
    assert found["Toy"].detail == "toy on dit-digits"
    assert usable([found["Toy"]])
    result = succeeds("recover", IPC1, tmp_path / "out", "--engine", "toy", "--json", *QUICK)
    assert json.loads(result.stdout)["engine"] == "toy"
    image = np.asarray(Image.open(tmp_path / "out" / "00000" / "00000.png"))
    assert image[0, 0, 0] < image[-1, -1, 2]  # the ramp runs from the first channel to the last


# A toy layout: one text file that lists the images.


def write_list(written: Written, _: Normalisation | None) -> list[str]:
    with written.companion("list.txt") as file:
        for name, index in zip(written.files, written.indices, strict=True):
            file.write(f"{name} {index}\n".encode())
    return ["list.txt"]


def test_a_toy_layout_is_one_file_and_one_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = Layout(
        name="list",
        help="a trainer that reads a list",
        write=write_list,
        image_path=lambda index, number, wnid: f"class{index}/{number:05d}.png",
        folder="class[0-9]+",
        companions=("list.txt",),
    )
    monkeypatch.setitem(LAYOUTS, "list", layout)
    command = ("recover", IPC1, tmp_path / "out", "--layout", "list", *QUICK)
    succeeds(*command)
    lines = (tmp_path / "out" / "list.txt").read_text().splitlines()
    assert lines == [f"class{digit}/00000.png {digit}" for digit in range(10)]
    (tmp_path / "out" / "class3" / "00000.png").unlink()
    assert "9 of 10 images are already there" in succeeds(*command).output
    assert (tmp_path / "out" / "class3" / "00000.png").is_file()


# A toy method: named arrays in toy_N.npz, 2 x 2 collages, normalised with statistics of its own.

TOY_STATISTICS = ((0.25, 0.5, 0.75), (0.5, 0.25, 0.125))


def is_toys(found: Found) -> bool:
    return found.path.stem.startswith("toy_")


TOY = Method(
    name="toy",
    title="Toy",
    structures=("arrays",),
    recognises=is_toys,
    statistics={"toys": TOY_STATISTICS},
    normalisation=lambda _: "toys",
    collage=2,
    file_names="toy_",
    advice="toys are small",
)


def test_a_toy_method_is_one_file_and_one_entry(
    monkeypatch: pytest.MonkeyPatch, digits: Bundle, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    mean, std = (np.array(numbers, np.float32) for numbers in TOY_STATISTICS)
    values = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    source = tmp_path / "distilled" / "toy_1.npz"
    source.parent.mkdir()
    np.savez(source, images=values, labels=np.arange(10))
    assert _is_refused(source)  # as plain arrays, whose statistics nothing states

    monkeypatch.setitem(METHODS, "toy", TOY)
    dataset = read_dataset(source, digits)
    assert dataset.origin.format is TOY
    assert (dataset.origin.normalisation, dataset.origin.collage) == ("toys", 2)
    assert [sample.key for sample in dataset.samples[:5]] == [
        "00000/00000",
        "00000/00001",
        "00000/00002",
        "00000/00003",
        "00001/00000",
    ]
    np.testing.assert_array_equal(dataset.images.read(5), pixels[1, :32, 32:])
    output = succeeds("recover", source.parent, tmp_path / "out", "--format", "toy", *QUICK).output
    assert "note: toys are small" in output
    assert "Toy tensors, 10 classes x 4, 32 px, toys-normalised, cut from 2 x 2" in output
    assert len(list((tmp_path / "out").glob("0*/*.png"))) == 40


def _is_refused(source: Path) -> bool:
    result = run("inspect", source)
    return result.exit_code == 1 and "Set --normalisation" in result.output


def test_help_and_completion_list_every_method() -> None:
    from typer.main import get_command

    from diver_trt.cli.completion import formats

    assert formats("") == list(METHODS)
    command = get_command(app).commands["recover"]  # type: ignore[attr-defined]
    (option,) = (one for one in command.params if "--format" in one.opts)
    listed = option.help.partition(": ")[2].rstrip(".").replace(";", ",")
    assert sorted(listed.split(", ")) == sorted(METHODS)


def test_help_and_completion_list_every_layout() -> None:
    from typer.main import get_command

    from diver_trt.cli.completion import layouts

    assert layouts("") == list(LAYOUTS)
    command = get_command(app).commands["recover"]  # type: ignore[attr-defined]
    (option,) = (one for one in command.params if "--layout" in one.opts)
    assert set(LAYOUTS) <= set(re.findall("[a-z]+", option.help))


# A toy base model on a toy process: `tests/toy_base.py`.


@pytest.fixture(scope="module")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The toy base model, registered and exported."""
    from tests.toy_base import Straight

    folder = tmp_path_factory.mktemp("toy") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BASES, "toy", Base(name="toy", title="a toy", module="tests.toy_base"))
        patch.setitem(PROCESSES, "straight", Straight)
        succeeds("export", "toy", folder, "--base", "toy")
        yield Bundle.open(folder)


EULER = ("--steps", "4", "--inherit-step", "2", "--start-step", "3", "--window", "3:1")
SETTINGS = (*EULER, "--cfg-channels", "1", "--cfg-scale", "2", "--gamma", "0.5")


def recovered_by_hand(image: NDArray[np.uint8], key: str, label: int) -> NDArray[np.float32]:
    """Return what the toy makes of an image by Euler steps written out, [H, W, 3] in [0, 255]."""
    import torch

    from diver_trt.method.noise import sample_noise
    from tests import toy_base

    model = toy_base.load_model("toy")
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 127.5 - 1
    anchor = model.original_encode(pixels)
    noise = torch.from_numpy(sample_noise(0, key, model.latent_shape))[None]
    latent = 0.5 * anchor + 0.5 * noise
    for k in (3, 2, 1):
        labels = torch.tensor([label, toy_base.CLASSES])
        both = model.original_predict(torch.cat([latent, latent]), torch.full((2,), k / 4), labels)
        velocity, null = both[:1], both[1:]
        velocity[:, :1] = null[:, :1] + 2 * (velocity - null)[:, :1]
        pull = 0.5 * (k / 4) * (latent - anchor) if k > 1 else 0
        latent = latent - velocity / 4 - pull
    decoded: NDArray[np.float32] = model.original_decode(latent)[0].permute(1, 2, 0).numpy()
    return (decoded + 1) * 127.5


def test_a_toy_base_model_is_one_file_and_one_entry(toy_bundle: Bundle, tmp_path: Path) -> None:
    bundle = toy_bundle
    assert bundle.model.base == "toy"
    assert (bundle.timestep_frequencies, bundle.places) == (None, ("lifted",))
    assert bundle.process.times(4).tolist() == [0.25, 0.5, 0.75, 1.0]
    options = ("--bundle", bundle.path, *SETTINGS, "--sigma", "marginal")
    succeeds("recover", IPC1, tmp_path / "out", *options)
    for digit in range(10):
        distilled = IPC1 / str(digit)
        (source,) = distilled.iterdir()
        with Image.open(source) as opened:
            image = square(np.asarray(opened.convert("RGB")), 16)
        expected = recovered_by_hand(image, f"{digit:05d}/00000", digit)
        found = np.asarray(Image.open(tmp_path / "out" / f"{digit:05d}" / "00000.png"))
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_a_toy_base_model_is_compared_with_its_own_code(toy_bundle: Bundle) -> None:
    from diver_trt.comparison.inputs import distilled_inputs
    from diver_trt.comparison.lineup import line_up
    from diver_trt.comparison.runs import Reference, record
    from diver_trt.comparison.verdict import compare_engine
    from tests.toy_base import load_model

    lineup = line_up([toy_bundle], load_model("toy"), ["onnx"], 3)
    recipe = Recipe(steps=4, inherit_step=2, start_step=3, window=(3, 1), sigma="marginal")
    inputs = distilled_inputs(toy_bundle, 3)
    recording = record(lineup.reference, inputs, recipe)
    reference = Reference(lineup.reference, recording, lineup.reference.probe())
    found = compare_engine(reference, lineup.others[0], inputs, recipe)
    assert found.checks
    assert all(check.passed for check in found.checks)
    assert [stage.place for stage in found.figures.stages] == ["lifted", "final layer"]


def test_a_setting_that_a_process_does_not_define_is_refused(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    command = ("recover", IPC1, tmp_path / "out")
    options = ("--bundle", toy_bundle.path, *SETTINGS, "--sigma", "learned")
    result = run(*command, *options)
    assert result.exit_code == 2
    assert "sigma is 'learned'" in result.output
    assert not (tmp_path / "out").exists()
