"""Unusable images are never written, and are retried in fp32 where there is such a bundle."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import MissingExtraError
from diver_trt.recovered import second_try
from diver_trt.runtime.backends.onnx import OnnxEngine
from tests.cli.command import fails
from tests.edited_json import json_file
from tests.recovered.commands import manifest_of, recover, recovered

pytestmark = pytest.mark.slow


def decode_badly(monkeypatch: pytest.MonkeyPatch, bad: float, precision: str = "fp32") -> None:
    """Let the decoder of a bundle in this precision answer with one value for every third image."""
    open_engine, read, reads = OnnxEngine.__init__, OnnxEngine.read, iter(range(10_000))
    engines = []

    def opening(
        self: OnnxEngine, bundle: Bundle, network: Any, *arguments: Any, **options: Any
    ) -> None:
        open_engine(self, bundle, network, *arguments, **options)
        if (network, bundle.precision) == ("decoder", precision):
            engines.append(self)

    def reading(self: OnnxEngine, name: str) -> Any:
        values = read(self, name)
        return np.full_like(values, bad) if self in engines and next(reads) % 3 == 0 else values

    monkeypatch.setattr(OnnxEngine, "__init__", opening)
    monkeypatch.setattr(OnnxEngine, "read", reading)


@pytest.mark.parametrize(
    ("bad", "problem"), [(np.nan, "holds NaN or infinite values"), (-1.0, "is all in one colour")]
)
def test_an_unusable_image_is_never_written(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, problem: str
) -> None:
    decode_badly(monkeypatch, bad)
    assert problem in fails(recover(few, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    decode_badly(monkeypatch, bad)
    result = recover(few, tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 1
    manifest = manifest_of(tmp_path / "out")
    assert len(manifest["skipped"]) + len(manifest["samples"]) == 10
    assert manifest["skipped"]
    assert all(problem in entry["problem"] for entry in manifest["skipped"])


@pytest.fixture(scope="module")
def exported(export_to: Callable[..., Bundle], random_pipeline: Path) -> dict[str, Path]:
    return {precision: export_to(random_pipeline, precision).path for precision in ("fp16", "fp32")}


@pytest.fixture
def twins(exported: dict[str, Path], few: Path, tmp_path: Path) -> Path:
    """A folder with the random model in both precisions. It has seven classes: `few` loses one."""
    shutil.rmtree(few / "8")
    for precision, path in exported.items():
        shutil.copytree(path, tmp_path / "bundles" / precision)
    return tmp_path / "bundles"


@pytest.mark.usefixtures("twins")
def test_an_overflow_in_fp16_is_retried_in_fp32(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = shutil.copytree(
        tmp_path / "bundles" / "fp32", tmp_path / "bundles" / "another model's fp32"
    )
    with json_file(impostor / "bundle.json") as manifest:
        manifest["model"]["weights_sha256"] = "0" * 64
    half = ("--bundle", tmp_path / "bundles" / "fp16")
    in_fp32 = recovered(few, tmp_path / "in fp32", "--bundle", tmp_path / "bundles" / "fp32")
    decode_badly(monkeypatch, np.nan, "fp16")
    out = recovered(few, tmp_path / "out", *half)
    samples = manifest_of(out)["samples"]
    engine = "onnx fp32 (fallback: the fp16 image was unusable)"
    again = [sample for sample in samples if sample["engine"] == engine]
    assert [sample["key"] for sample in again] == ["00002/00000", "00003/00000", "00003/00003"]
    for sample in again:
        assert (out / sample["file"]).read_bytes() == (in_fp32 / sample["file"]).read_bytes()
    shutil.rmtree(tmp_path / "bundles" / "fp32")
    assert "NaN or infinite values; the model may overflow in fp16, use its fp32 bundle" in fails(
        recover(few, tmp_path / "alone", *half)
    )


def test_the_same_weights_at_another_size_are_not_the_fp32_twin(twins: Path) -> None:
    """A UNet's size is only in its configuration, so its hash of weights does not show it."""
    half = Bundle.open(twins / "fp16")
    assert second_try.find_fp32_twin(half) == Bundle.open(twins / "fp32")
    with json_file(twins / "fp32" / "bundle.json") as manifest:
        (channels, side, _), image = manifest["latent_shape"], manifest["image_size"]
        manifest["image_size"], manifest["latent_shape"] = 2 * image, [channels, 2 * side, 2 * side]
        for network in manifest["networks"].values():
            for spec in (*network["inputs"], *network["outputs"]):
                if len(spec["shape"]) == 4:
                    spec["shape"][2:] = [2 * size for size in spec["shape"][2:]]
    assert Bundle.open(twins / "fp32").image_size == 2 * half.image_size
    assert second_try.find_fp32_twin(half) is None


def test_the_record_of_a_second_try_names_the_precision_of_the_first() -> None:
    assert "the int8-fp16 image was unusable" in second_try.second_engine("int8-fp16")


BAD_OF_SEVEN = ["00002/00000", "00003/00000", "00003/00003"]
NOT_RETRIED = "an unusable image cannot be retried in fp32: "
printed = pytest.mark.filterwarnings("always:an unusable image:RuntimeWarning")


@printed
def test_a_damaged_fp32_bundle_is_one_warning(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((twins / "fp32" / "decoder.onnx").read_bytes())
    data[-5] ^= 1
    (twins / "fp32" / "decoder.onnx").write_bytes(data)
    decode_badly(monkeypatch, np.nan, "fp16")
    result = recover(few, tmp_path / "out", "--bundle", twins / "fp16", "--on-error", "skip")
    assert result.exit_code == 1
    assert f"warning: {NOT_RETRIED}{twins / 'fp32' / 'decoder.onnx'}: SHA-256 is" in result.stderr
    manifest = manifest_of(tmp_path / "out")
    assert [entry["key"] for entry in manifest["skipped"]] == BAD_OF_SEVEN
    assert len(manifest["samples"]) == 4


@printed
def test_without_onnxruntime_there_is_no_second_try(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some devices have TensorRT only."""
    decode_badly(monkeypatch, np.nan, "fp16")
    open_engine = OnnxEngine.__init__

    def opening(self: OnnxEngine, bundle: Bundle, *arguments: Any, **options: Any) -> None:
        if bundle.precision == "fp32":
            raise MissingExtraError("onnxruntime", "cpu", "running a bundle")
        open_engine(self, bundle, *arguments, **options)

    monkeypatch.setattr(OnnxEngine, "__init__", opening)
    result = recover(few, tmp_path / "out", "--bundle", twins / "fp16", "--on-error", "skip")
    assert (
        f"{NOT_RETRIED}running a bundle needs onnxruntime, which is not installed" in result.stderr
    )
    manifest = manifest_of(tmp_path / "out")
    assert [entry["key"] for entry in manifest["skipped"]] == BAD_OF_SEVEN


@printed
@pytest.mark.parametrize("gone", ["2/0.png", "."])
def test_an_input_that_vanishes_before_the_second_try(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """A vanished image is left out; a vanished input, such as an unmounted drive, ends the run."""
    decode_badly(monkeypatch, np.nan, "fp16")
    find = second_try.find_fp32_twin

    def finding(bundle: Bundle) -> Bundle | None:
        (few / gone).rename(tmp_path / "away") if (few / gone).exists() else None
        return find(bundle)

    monkeypatch.setattr(second_try, "find_fp32_twin", finding)
    result = recover(few, tmp_path / "out", "--bundle", twins / "fp16", "--on-error", "skip")
    if gone == ".":
        assert "cannot be read any more" in fails(result)
        assert not (tmp_path / "out").exists()
        return
    assert f"{NOT_RETRIED}{few / gone}: " in result.stderr
    manifest = manifest_of(tmp_path / "out")
    assert [entry["key"] for entry in manifest["skipped"]] == BAD_OF_SEVEN[:1]


def test_a_neighbouring_folder_that_may_not_be_read_is_skipped(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp there are folders of other users."""
    (twins / "a").mkdir()
    is_file = Path.is_file

    def forbidding(self: Path, **options: Any) -> bool:
        if self == twins / "a" / "bundle.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return is_file(self, **options)

    monkeypatch.setattr(Path, "is_file", forbidding)
    twin = second_try.find_fp32_twin(Bundle.open(twins / "fp16"))
    assert twin is not None
    assert twin.path == twins / "fp32"
