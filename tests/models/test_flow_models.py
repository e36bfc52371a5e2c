"""SiT and REPA: each file is the model that it says, and its steps are those of its own sampler."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diver_trt.bundle import Bundle
from diver_trt.comparison.torch_engine import check_reference
from diver_trt.errors import EngineError, ExportError
from diver_trt.method.flow import Flow
from diver_trt.method.schedule import Schedule
from diver_trt.models import BASES, ModelOptions
from diver_trt.models.dit_networks import Conditioner
from diver_trt.models.network_state import FAMILIES
from diver_trt.models.recognition import recognised_base
from diver_trt.recipe import Recipe
from diver_trt.runtime.recoverer import Recoverer
from tests.cli.command import run
from tests.comparison.command import QUICK, compare
from tests.models.conftest import assert_same_steps, saved
from tests.models.original_dit import OriginalDiT

pytestmark = pytest.mark.slow

CLASSES = 7
LABELS = [0, 3, 6]
SETTINGS = {
    "sit": {"model": "SiT-S/2", "prediction": "velocity", "path_type": "Linear", "num_classes": 7},
    "repa": {
        "model": "SiT-S/2",
        "prediction": "v",
        "path_type": "linear",
        "num_classes": 7,
        "encoder_depth": 8,
    },
}
PROJECTOR = {"projectors.0.0.weight": torch.ones(3, 3), "projectors.0.0.bias": torch.ones(3)}


def network(base: str) -> OriginalDiT:
    made = OriginalDiT(depth=2, classes=CLASSES).eval()
    if base == "repa":  # four outputs, where SiT has eight
        made.out_channels = 4
        made.final_layer["linear"] = torch.nn.Linear(384, 2 * 2 * 4)
    torch.manual_seed(4)  # both bases then share their conditioner, and so its trace
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.03)
    return made


def checkpoint(base: str, original: OriginalDiT) -> dict[str, Any]:
    state = dict(original.state_dict()) | (PROJECTOR if base == "repa" else {})
    return {"ema": state, "args": argparse.Namespace(**SETTINGS[base])}


def load(path: Path, base: str, vae: Path, **options: Any) -> Any:
    return BASES[base].load().load_model(str(path), ModelOptions(vae=str(vae / "vae"), **options))


@pytest.fixture(scope="module", params=["sit", "repa"])
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def original(base: str) -> OriginalDiT:
    return network(base)


@pytest.fixture(scope="module")
def file(base: str, original: OriginalDiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(checkpoint(base, original), tmp_path_factory.mktemp("flows") / f"{base}.pt")


@pytest.fixture(scope="module")
def bundle(
    base: str, file: Path, random_pipeline: Path, export_to: Callable[..., Bundle]
) -> Bundle:
    return export_to(file, vae=str(random_pipeline / "vae"))


def test_a_bundle_has_the_facts_of_its_base(base: str, bundle: Bundle) -> None:
    assert bundle.model.base == base
    assert bundle.process == Flow(time_rises_to="data" if base == "sit" else "noise")
    assert not bundle.learned_variance
    assert bundle.guided_channels == (3 if base == "sit" else 4)
    assert bundle.timestep_frequencies == "dit"


@pytest.mark.parametrize(("channels", "guided"), [(2, (2, 2)), (4, (3, 4)), (16, (3, 16))])
def test_repa_guides_all_channels_and_sit_the_first_three(
    base: str, file: Path, random_pipeline: Path, channels: int, guided: tuple[int, int]
) -> None:
    of_channels = replace(load(file, base, random_pipeline), latent_shape=(channels, 8, 8))
    assert of_channels.layout.guided_channels == guided[base == "repa"]


@torch.no_grad()
def sit_sampler(
    network: OriginalDiT, anchor: Tensor, noise: Tensor, recipe: Recipe
) -> Iterator[Tensor]:
    """DIVER around SiT: time from 0 (noise) to 1 (data), velocity data - noise.

    `forward_with_cfg` of SiT drops the second half of the outputs, then guides three channels.
    """
    dt = 1 / recipe.steps
    label, null = torch.tensor(LABELS), torch.full((len(LABELS),), CLASSES)
    t_f = 0.0 if recipe.inherit_step is None else 1 - recipe.inherit_step * dt
    x = t_f * anchor + (1 - t_f) * noise
    yield x
    for k in range(recipe.start_step, 0, -1):
        t = torch.full((len(x),), 1 - k * dt)
        cond, uncond = (network(x, t, y).chunk(2, dim=1)[0] for y in (label, null))
        half, rest = uncond[:, :3] + recipe.cfg_scale * (cond - uncond)[:, :3], cond[:, 3:]
        following = x + dt * torch.cat([half, rest], dim=1)
        if recipe.window[1] < k <= recipe.window[0]:
            following = following - recipe.gamma * (k * dt) * (x - anchor)
        x = following
        yield x


@torch.no_grad()
def repa_sampler(
    network: OriginalDiT, anchor: Tensor, noise: Tensor, recipe: Recipe
) -> Iterator[Tensor]:
    """DIVER around REPA's `euler_sampler`: time from 1 (noise) to 0, velocity noise - data.

    All channels are guided, inside an interval of time.
    """
    times = torch.linspace(1, 0, recipe.steps + 1, dtype=torch.float64)
    label, null = torch.tensor(LABELS), torch.full((len(LABELS),), CLASSES)
    high, low = recipe.cfg_window or (recipe.steps, 0)
    t_f = 1.0 if recipe.inherit_step is None else recipe.inherit_step / recipe.steps
    x = (1 - t_f) * anchor + t_f * noise
    yield x
    for k in range(recipe.start_step, 0, -1):
        now, after = times[recipe.steps - k], times[recipe.steps - k + 1]
        d = network(x, now.float().expand(len(x)), label)
        if low / recipe.steps < now <= high / recipe.steps + 1e-9:
            d_null = network(x, now.float().expand(len(x)), null)
            d = d_null + recipe.cfg_scale * (d - d_null)
        following = x + float(after - now) * d
        if recipe.window[1] < k <= recipe.window[0]:
            following = following - recipe.gamma * float(now) * (x - anchor)
        x = following
        yield x


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(inherit_step=None, gamma=0.0, cfg_scale=1.0),
        Recipe(inherit_step=None, gamma=0.0, cfg_scale=1.8, cfg_window=(35, 0), cfg_channels=None),
        Recipe(start_step=25, window=(25, 10)),
    ],
    ids=["paper", "the base's own sampler", "guidance interval", "matched"],
)
def test_fifty_steps_are_those_of_the_bases_own_sampler(
    base: str, original: OriginalDiT, bundle: Bundle, recipe: Recipe
) -> None:
    if base == "sit" and recipe.cfg_window is not None:
        pytest.skip("SiT's own sampler has no interval")
    generator = np.random.default_rng(0)
    anchor, noise = generator.standard_normal((2, 3, *bundle.latent_shape)).astype(np.float32)
    sampler = sit_sampler if base == "sit" else repa_sampler
    expected = list(sampler(original, torch.tensor(anchor), torch.tensor(noise), recipe))
    start = Schedule(bundle.process, recipe, bundle.layout).start(anchor, noise)
    found = [start]
    with Recoverer(bundle, recipe, batch=3) as recoverer:
        for _ in recoverer.denoise(start, anchor, noise, LABELS):
            found.append(recoverer.latent.copy())
    assert len(found) == recipe.start_step + 1
    assert_same_steps(found, expected)


def test_a_file_is_recognised_by_its_settings_or_its_projectors(
    base: str, file: Path, original: OriginalDiT, tmp_path: Path
) -> None:
    assert recognised_base(str(file)) == base
    bare = saved(checkpoint(base, original)["ema"], tmp_path / "bare.pt")
    assert recognised_base(str(bare)) == ("dit" if base == "sit" else "repa")


def test_what_was_left_out_is_said(base: str, file: Path, random_pipeline: Path) -> None:
    notes = " ".join(load(file, base, random_pipeline).notes)
    if base == "sit":
        assert "the second half of its outputs, which its own sampler drops, is left out" in notes
    else:
        assert "its 2 tensors projectors.*, which only REPA's training used, are left out" in notes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"path_type": "GVP"}, "path_type='GVP', expected the straight path, 'linear'"),
        (
            {"prediction": "noise"},
            "prediction='noise', expected a model that predicts the velocity",
        ),
        ({"model": "DiT-S/2"}, "model='DiT-S/2', expected a"),
        ({"model": "LightningDiT-S/2"}, "model='LightningDiT-S/2', expected a"),
        ({"model": "SiT-XL/2"}, "its tensors are those of a SiT-S/2"),
        ({"num_classes": 8}, "8 rows for 8 classes, so there is no null class"),
        ({"predict_xstart": True}, "expected a model that predicts the velocity"),
    ],
)
def test_another_training_is_refused_by_name(
    base: str,
    original: OriginalDiT,
    random_pipeline: Path,
    tmp_path: Path,
    change: dict[str, Any],
    complaint: str,
) -> None:
    held = checkpoint(base, original)
    held["args"] = argparse.Namespace(**(SETTINGS[base] | change))
    path = saved(held, tmp_path / "changed.pt")
    with pytest.raises(ExportError, match=re.escape(complaint)):
        load(path, base, random_pipeline)


def test_settings_of_the_other_flow_are_doubted(
    base: str, original: OriginalDiT, random_pipeline: Path, tmp_path: Path
) -> None:
    other = "repa" if base == "sit" else "sit"
    held = checkpoint(base, original)
    held["args"] = argparse.Namespace(**SETTINGS[other], class_dropout_prob=0.1)
    path = saved(held, tmp_path / "other.pt")
    assert f"is --base {other} meant?" in " ".join(load(path, base, random_pipeline).notes)


def test_projectors_make_a_sit_one_of_repa(random_pipeline: Path, tmp_path: Path) -> None:
    path = saved(checkpoint("repa", network("repa")), tmp_path / "last.pt")
    with pytest.raises(ExportError, match=r"has projectors\.\*, .* Export it with --base repa"):
        load(path, "sit", random_pipeline)


def test_a_folder_and_a_revision_are_refused(base: str, file: Path, random_pipeline: Path) -> None:
    with pytest.raises(ExportError, match=r"is not a file; expected the \.pt file of a"):
        load(random_pipeline, base, random_pipeline)
    with pytest.raises(ExportError, match="is a file, and a revision"):
        load(file, base, random_pipeline, revision="main")


def test_compare_holds_the_bundle_against_the_model(
    bundle: Bundle, file: Path, random_pipeline: Path
) -> None:
    result = compare(
        bundle.path, "--model", file, "--vae", random_pipeline / "vae", "--engine", "onnx", *QUICK
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "passed: onnx fp32 stays with torch fp32"


def test_a_conditioner_that_takes_another_time_is_not_a_reference(
    base: str, bundle: Bundle, file: Path, random_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At time 0, where a SiT starts, every sinusoid is the same whatever its frequency."""
    model = load(file, base, random_pipeline)
    check_reference(model, bundle)
    forward = Conditioner.forward
    monkeypatch.setattr(
        Conditioner, "forward", lambda self, time, label: forward(self, 2 * time, label)
    )
    with pytest.raises(EngineError, match="the exporter's denoiser is a relative"):
        check_reference(model, bundle)


def test_a_recovery_prints_where_it_starts(
    bundle: Bundle, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "in" / "3").mkdir(parents=True)
    Image.fromarray(images[0][:16, :16]).save(tmp_path / "in" / "3" / "a.png")

    def recover(output: str, *options: object) -> Any:
        quick = ("--steps", 10, "--bundle", bundle.path, "--engine", "onnx")
        return run("recover", tmp_path / "in", tmp_path / output, *quick, *options)

    plain = recover("plain")
    assert plain.exit_code == 0, plain.output
    assert "from the level of step 5 (signal-to-noise ratio 1.00)" in plain.stderr
    matched = recover("snr", "--inherit-snr", 0.32)
    assert matched.exit_code == 0, matched.output
    assert "from the level of step 8 (signal-to-noise ratio 0.25)" in matched.stderr
    assert "contradicts" in recover("both", "--inherit-snr", 1, "--inherit-step", 3).stderr
    window = recover("window", "--window-snr", "0.11:0.9")
    assert window.exit_code == 0, window.output
    manifest = json.loads((tmp_path / "window" / "manifest.json").read_text())
    assert manifest["recipe"]["window"] == [9, 5]
    assert "contradicts" in recover("two", "--window-snr", "0.1:1", "--window", "9:5").stderr
    for wrong in ("1:0.1", "0.1", "nan:1", "0:1"):
        assert "two ratios that rise" in recover("wrong", "--window-snr", wrong).stderr
    assert (
        "sigma is 'learned', which only a DDPM chain has"
        in recover("sigma", "--sigma", "learned").stderr
    )


def test_a_network_of_another_family_is_refused_by_its_tensors(
    random_pipeline: Path, tmp_path: Path
) -> None:
    for mark, family in FAMILIES.items():
        path = saved({"model": {f"{mark}0.weight": torch.ones(2)}}, tmp_path / "other.pt")
        with pytest.raises(ExportError, match=re.escape(f"{mark}0.weight, as {family}")):
            load(path, recognised_base(str(path)), random_pipeline)
