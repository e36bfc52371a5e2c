"""A bundle is opened only if it is whole, of this schema, and means what its graphs do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.errors import BundleError, RecipeError
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import Recipe
from tests.conftest import Edited, flipped
from tests.edited_json import set_in
from tests.odd_files import fifo, link_out, loop

Edit = Callable[[dict[str, Any]], None]


def test_the_digits_bundle_says_what_it_is(digits: Bundle) -> None:
    assert (digits.image_size, digits.latent_shape, digits.num_classes, digits.null_label) == (
        32,
        (4, 8, 8),
        10,
        10,
    )
    assert (digits.precision, digits.learned_variance, digits.timestep_frequencies) == (
        "fp32",
        True,
        "diffusers",
    )
    assert digits.class_names == tuple("0123456789")
    assert digits.condition_width == 6 * 6 * 128 + 2 * 128
    assert tuple(digits.networks) == NETWORKS


def test_the_identity_is_the_manifests_hash(digits: Bundle, edited: Edited) -> None:
    assert (
        Bundle.open(edited(lambda manifest: manifest["model"].update(id="another"))).sha256
        != digits.sha256
    )


def test_a_changed_byte_is_found_before_the_network_is_loaded(
    digits: Bundle, tmp_path: Path
) -> None:
    copy = shutil.copytree(digits.path, tmp_path / "copy")
    (copy / "denoiser.onnx").write_bytes(flipped(copy / "denoiser.onnx"))
    bundle = Bundle.open(copy)
    bundle.verified("decoder")
    with pytest.raises(
        BundleError, match=r"denoiser\.onnx: SHA-256 is .* the file has changed since the export"
    ):
        bundle.verified("denoiser")


def test_a_missing_or_cut_file_is_found_on_opening(digits: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(digits.path, tmp_path / "copy")
    (copy / "decoder.onnx").write_bytes((copy / "decoder.onnx").read_bytes()[:-1])
    with pytest.raises(
        BundleError,
        match=r"decoder\.onnx: [\d,]+ bytes, bundle\.json lists [\d,]+; the bundle is damaged",
    ):
        Bundle.open(copy)
    (copy / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx: missing; the bundle is incomplete"):
        Bundle.open(copy)


def test_no_bundle_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError,
        match=r"not a bundle \(it has no bundle\.json\); make one with `diver-trt export MODEL",
    ):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="diver-trt export MODEL 'no bundle'"):
        Bundle.open("no bundle")


def decoder_reads(**fields: Any) -> Edit:
    tensor = {"name": "latent", "dtype": "int64", "shape": [1], **fields}
    return set_in("networks", "decoder", "inputs", to=[tensor])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_in("precision", to="int4"),
            'precision: found "int4", expected one of fp32, fp16, int8, int8-fp16',
        ),
        (
            set_in("precision", to=...),
            "precision: missing, expected one of fp32, fp16, int8, int8-fp16",
        ),
        (set_in("guided_channels", to=5), "guided_channels: found 5, expected at most 4"),
        (set_in("guided_channels", to=0), "guided_channels: found 0, expected a whole number, 1"),
        (
            set_in("latent_shape", to=[4, 8]),
            r"latent_shape: found \[4, 8\], expected a list of 3, each a whole number from 1 to",
        ),
        (
            set_in("latent_shape", to=[4, 16, 16]),
            "encoder: writes latent.*requires latent: float32.n, 4, 16, 16",
        ),
        (set_in("latent_shape", to=[8, 8, 8]), "encoder: writes"),
        (set_in("image_size", to=64), "encoder: reads image"),
        (set_in("learned_variance", to=1), "learned_variance: found 1, expected true or false"),
        (set_in("class_names", to=["a"]), "class_names: found 1 names, expected 10"),
        (
            set_in("process", "beta_schedule", to="cosine"),
            'process.beta_schedule: found "cosine", expected one of linear, scaled_linear',
        ),
        (
            set_in("process", "kind", to="edm"),
            'process.kind: found "edm", expected one of ddpm, flow',
        ),
        (set_in("process", "beta_end", to=2.0), "expected 0 < beta_start <= beta_end < 1"),
        (set_in("networks", "decoder", to=...), "networks.decoder: missing, expected an object"),
        (
            set_in("networks", "decoder", "graph", "name", to="../decoder.onnx"),
            "expected a plain file name inside the bundle",
        ),
        (
            set_in("networks", "decoder", "graph", "name", to="/etc/passwd"),
            "expected a plain file name inside the bundle",
        ),
        (
            decoder_reads(dtype="int8"),
            'dtype: found "int8", expected one of float32, float16, int64',
        ),
        (
            decoder_reads(shape=[-1]),
            r"inputs\[0\].shape\[0\]: found -1, expected a size from 1 to",
        ),
        (set_in("networks", "conditioner", "outputs", to=[]), "expected one output, condition"),
        (
            set_in("num_classes", to=10**30),
            "num_classes: found 1000.*expected a whole number from 1 to 100,000",
        ),
        (
            set_in("process", "train_timesteps", to=2**60),
            "train_timesteps: found .*expected a whole number from 2 to 100,000",
        ),
        (
            set_in("image_size", to=2**40),
            "image_size: found .*expected a whole number from 1 to 4,096",
        ),
        (
            set_in("latent_shape", to=[4, 8, 2**40]),
            r"latent_shape\[2\]: found .*expected a whole number from 1 to 4,096",
        ),
        (
            set_in("latent_shape", to=[4096] * 3),
            "latent_shape: found 68,719,476,736 values, expected at most 3,072, as many as an",
        ),
        (
            decoder_reads(shape=["n", 10**12]),
            r"shape\[1\]: found .*expected a size from 1 to 16,777,216",
        ),
        (
            set_in("networks", "decoder", "graph", "name", to="x" * 1000),
            'name: found "x{56}[.]{3}, expected a plain file name',
        ),
        (
            set_in("networks", "decoder", "graph", "name", to="\ud800"),
            r"name: found .*expected a plain file name",
        ),
        (
            set_in("networks", "decoder", "graph", "sha256", to="0" * 63),
            "sha256: found .*expected a SHA-256, 64 hexadecimal digits",
        ),
        (
            decoder_reads(name="a" * 1000),
            "decoder: reads a{200}…, but the rest",
        ),
        (
            set_in("networks", "decoder", "parameters", to=0),
            "decoder.parameters: found 0, expected a whole number, 1 or more",
        ),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    edited: Edited, edit: Edit, message: str
) -> None:
    folder = edited(edit)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def test_a_bundle_of_an_earlier_schema_is_refused_with_the_command_that_renews_it(
    edited: Edited,
) -> None:
    folder = edited(set_in("schema", to=3))
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert str(caught.value) == (
        f"{folder}/bundle.json: schema 3, but this diver-trt reads schema 4; remove the folder and "
        f"export the model again: diver-trt export MODEL {folder}"
    )


@pytest.mark.parametrize(
    ("start", "end", "timesteps"),
    [
        (1e-320, 0.02, 1000),
        (1e-320, 1e-320, 2),
        (1e-17, 0.02, 1000),
        (0.9999999, 0.9999999, 1000),
        (1e-4, 0.9999999, 1000),
        (1e-4, 0.02, 100_000),
        (1 - 2**-53, 1 - 2**-53, 2),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_betas_that_leave_nothing_to_compute_with_are_refused(
    edited: Edited, kind: str, start: float, end: float, timesteps: int
) -> None:
    folder = edited(set_in("process", to={**linear(start, end, timesteps), "beta_schedule": kind}))
    with pytest.raises(BundleError, match=r"beta_start: .* expected a share that falls with every"):
        Bundle.open(folder)


def linear(start: float, end: float, timesteps: int) -> dict[str, Any]:
    return {
        "kind": "ddpm",
        "beta_schedule": "linear",
        "beta_start": start,
        "beta_end": end,
        "train_timesteps": timesteps,
    }


@pytest.mark.parametrize(
    "process",
    [
        linear(1e-4, 0.02, 1000),
        linear(8.5e-4, 0.012, 1000),
        linear(1e-11, 1e-11, 50),
        linear(1e-4, 0.4, 100),
        linear(0.3, 0.4, 50),
    ],
)
@pytest.mark.parametrize("sigma", ["learned", "posterior", "marginal"])
def test_betas_that_are_read_give_a_table_of_numbers(
    edited: Edited, process: dict[str, Any], sigma: Any
) -> None:
    """No division by zero and no logarithm of it: warnings are errors here."""
    bundle = Bundle.open(edited(set_in("process", to=process)))
    schedule = Schedule(bundle.process, Recipe(sigma=sigma), bundle.layout)
    assert np.isfinite(schedule.table).all()


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (linear(1e-15, 1e-15, 50), "has steps that add no noise; use fewer steps than 50"),
        (linear(1e-4, 0.5, 100), "at timestep 98 the model's chain .* keeps no signal"),
        (linear(0.4, 0.5, 50), "at timestep 49 the model's chain .* keeps no signal"),
    ],
)
def test_betas_that_are_read_but_not_exact_enough_for_a_recipe_are_refused_with_it(
    edited: Edited, process: dict[str, Any], message: str
) -> None:
    bundle = Bundle.open(edited(set_in("process", to=process)))
    with pytest.raises(RecipeError, match=message):
        Schedule(bundle.process, Recipe(), bundle.layout)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("encoder.onnx", link_out),
        ("denoiser.onnx", fifo),
        ("decoder.onnx", loop),
    ],
)
def test_every_file_of_a_bundle_is_a_regular_file_inside_it(
    edited: Edited, name: str, make: Callable[[Path], str]
) -> None:
    folder = edited()
    whole = Bundle.open(folder)
    message = make(folder / name).replace("its folder", "the bundle")
    with pytest.raises(BundleError, match=rf"edited/{name}: .*{message}"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match=message):
        whole.verified(name.removesuffix(".onnx"))  # type: ignore[arg-type]


def test_a_bundle_that_is_itself_a_link_is_read(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(digits.path.resolve())
    assert Bundle.open(tmp_path / "link").sha256 == digits.sha256
    assert Bundle.open(tmp_path / "link").verified("encoder").is_file()


def test_a_bundle_outlives_the_folder_that_its_path_began_in(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits.path.parent)
    opened = Bundle.open(digits.path.name)
    monkeypatch.chdir(tmp_path)
    assert opened.verified("encoder").is_file()


def test_nothing_is_written_that_could_not_be_read_again(digits: Bundle, tmp_path: Path) -> None:
    unreadable = replace(digits, path=tmp_path, class_names=("x" * 5000,) * 10)
    with pytest.raises(BundleError, match=r"class_names\[0\]: found"):
        unreadable.write()
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_written_as_it_was_read(digits: Bundle, tmp_path: Path) -> None:
    replace(digits, path=tmp_path).write()
    written = (tmp_path / "bundle.json").read_bytes()
    assert written == (digits.path / "bundle.json").read_bytes()
