"""What doctor finds, and the command that it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diver_trt import doctor
from diver_trt.bundle import Bundle
from diver_trt.doctor import examine, usable
from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.runtime.backends import Finding, onnx_package
from diver_trt.runtime.backends import onnx as onnx_engine
from diver_trt.runtime.backends.tensorrt import cuda as cuda_module
from diver_trt.runtime.backends.tensorrt import module as trt_module
from tests.cli.command import run, succeeds
from tests.conftest import Edited
from tests.stand_in import StandInCuda, stand_in_tensorrt, write_stand_in_plan

IMPORT_TENSORRT = trt_module.import_tensorrt


def findings(bundle: Bundle) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(bundle)}


@pytest.fixture
def bundle(edited: Edited) -> Bundle:
    return Bundle.open(edited())


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by which a Jetson is recognised."""
    path = tmp_path / "nv_tegra_release"
    path.write_text("# R39 (release), REVISION: 2.0\n")
    monkeypatch.setattr(cuda_module, "JETSON_RELEASE", path)
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
    api = StandInCuda()
    module = stand_in_tensorrt(api)

    def tensorrt(backend: str) -> Any:
        if backend == "rtx":
            return module
        raise MissingExtraError("tensorrt", "tensorrt", "backend trt")

    monkeypatch.setattr(cuda_module, "import_cuda", lambda: api)
    monkeypatch.setattr(trt_module, "import_tensorrt", tensorrt)
    return api


def test_a_machine_with_a_cpu_only_is_usable(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("cuda-bindings", "rtx", "running a TensorRT engine")

    monkeypatch.setattr(cuda_module, "import_cuda", missing)
    found = findings(digits)
    assert found["ONNX Runtime, CPU"].state == "works"
    assert found["ONNX Runtime, CUDA"].remedy is None
    assert found["TensorRT"].remedy is None
    assert usable(list(found.values()))
    for driver, remedy in ((False, None), (True, "pip install 'diver-trt[rtx]'")):
        monkeypatch.setattr(cuda_module, "has_driver", lambda driver=driver: driver)
        assert findings(digits)["CUDA"].remedy == remedy


def test_without_onnxruntime_and_openvino_nothing_is_usable(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = findings(digits)
    assert (found["ONNX Runtime, CPU"].state, found["ONNX Runtime, CPU"].remedy) == (
        "missing",
        "pip install 'diver-trt[cpu]'",
    )
    assert not usable(list(found.values()))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["usable"] is False


def test_a_half_removed_onnxruntime_is_broken_not_missing(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    finding = findings(digits)["ONNX Runtime, CPU"]
    assert finding.state == "broken"
    assert "half of it is missing" in finding.detail


def test_both_packages_of_onnxruntime_are_broken(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnx_package, "installed_packages", lambda: ["onnxruntime 1.30.0", "onnxruntime-gpu 1.30.0"]
    )
    assert findings(digits)["ONNX Runtime packages"].state == "broken"


def test_engines_that_fit_work_and_others_name_their_command(
    bundle: Bundle, gpu: StandInCuda
) -> None:
    plan = write_stand_in_plan(bundle, batch=2)
    found = findings(bundle)
    assert found["CUDA"].detail.startswith("Stand-in 4 GB, sm86, 4.3 GB")
    assert (found["TensorRT-RTX"].state, found["TensorRT"].state) == ("works", "missing")
    assert found[f"engines {plan.folder.name}"].state == "works"
    sidecar = plan.folder / "encoder.json"
    sidecar.write_text(sidecar.read_text().replace('"version": "1.7.1.116"', '"version": "1.6.0"'))
    finding = findings(bundle)[f"engines {plan.folder.name}"]
    assert finding.state == "broken"
    assert "it was built by version 1.6.0, and 1.7.1.116 is installed" in finding.detail
    assert finding.remedy == f"diver-trt build {bundle.path} --backend rtx --sm 86 --batch 2"


@pytest.mark.parametrize("installed", [True, False])
def test_engines_that_cannot_be_tried_are_not_broken(
    bundle: Bundle, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    plan = write_stand_in_plan(bundle, batch=2)
    gpu.no_driver = True
    if not installed:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        monkeypatch.setattr(trt_module, "import_tensorrt", IMPORT_TENSORRT)
    found = findings(bundle)
    finding = found[f"engines {plan.folder.name}"]
    assert (finding.state, finding.remedy) == ("note", None)
    assert finding.detail.startswith("could not be tried: ")
    assert usable(list(found.values()))


def test_a_damaged_sidecar_is_a_finding(bundle: Bundle, gpu: StandInCuda) -> None:
    plan = write_stand_in_plan(bundle, batch=2)
    (plan.folder / "encoder.json").write_text("{")
    assert findings(bundle)["engines"].state == "broken"


def test_a_missing_engine_is_a_finding_without_a_gpu_too(bundle: Bundle) -> None:
    plan = write_stand_in_plan(bundle, batch=2)
    (plan.folder / "denoiser.engine").unlink()
    finding = findings(bundle)["engines"]
    assert (finding.state, finding.remedy) == ("broken", f"diver-trt build {bundle.path}")
    assert "denoiser.engine: missing" in finding.detail


def test_folders_that_are_not_targets_are_one_note(bundle: Bundle) -> None:
    for number in range(10):
        (bundle.path / "plans" / f"{number:05}").mkdir(parents=True)
    finding = findings(bundle)["engines"]
    assert (finding.state, finding.remedy) == ("note", None)
    assert "10 folders hold no engines" in finding.detail


def test_beside_the_cpu_package_the_gpu_one_is_never_advised(
    digits: Bundle, gpu: StandInCuda
) -> None:
    finding = findings(digits)["ONNX Runtime, CUDA"]
    assert finding.state == "missing"
    assert finding.remedy == (
        "pip uninstall -y onnxruntime, then install onnxruntime-gpu in its place"
    )
    gpu.no_driver = True
    finding = findings(digits)["ONNX Runtime, CUDA"]
    assert finding.remedy is None
    assert "no NVIDIA GPU was found" in finding.detail


@pytest.mark.usefixtures("release", "gpu")
def test_on_a_jetson_nothing_is_advised_that_does_not_run_there(digits: Bundle) -> None:
    found = findings(digits)
    assert found["ONNX Runtime, CUDA"].remedy == "diver-trt build BUNDLE --backend trt"
    assert found["TensorRT"].remedy == "use JetPack's own, see docs/jetson.md"
    assert not any("diver-trt[" in (finding.remedy or "") for finding in found.values())


@pytest.mark.parametrize("no_driver", [True, False])
def test_both_packages_are_reduced_to_the_one_that_serves(
    digits: Bundle, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch, no_driver: bool
) -> None:
    gpu.no_driver = no_driver
    monkeypatch.setattr(
        onnx_package, "installed_packages", lambda: ["onnxruntime 1.30.0", "onnxruntime-gpu 1.30.0"]
    )
    finding = findings(digits)["ONNX Runtime packages"]
    assert "[gpu]" not in finding.detail + str(finding.remedy)
    assert str(finding.remedy).endswith("no NVIDIA GPU here") == no_driver


def test_a_network_that_opens_and_does_not_run_is_broken(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CUDA code for other GPUs than the one that is here."""

    def fails(engine: object) -> None:
        raise EngineError("no kernel image is available for execution on the device")

    monkeypatch.setattr(onnx_engine.OnnxEngine, "run", fails)
    finding = findings(digits)["ONNX Runtime, CPU"]
    assert (finding.state, "no kernel image" in finding.detail) == ("broken", True)


def test_a_driver_older_than_the_bindings_is_found(
    digits: Bundle, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "cudaDriverGetVersion", lambda: (0, 12060))
    gpu.no_driver = True  # as the bindings' runtime reports for a driver that is too old
    finding = findings(digits)["CUDA driver"]
    assert finding.detail == "cuda-bindings is for CUDA 13, the driver for 12.6"
    assert finding.remedy == "update the driver, or pip install 'cuda-bindings<13'"


def test_bindings_that_cannot_be_imported_are_broken(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise MissingExtraError("cuda-bindings", "rtx", "an engine", "libcuda.so.1: not found")

    monkeypatch.setattr(cuda_module, "import_cuda", fails)
    finding = findings(digits)["CUDA"]
    assert (finding.state, finding.detail) == ("broken", "libcuda.so.1: not found")


def test_a_missing_driver_is_reported_without_alarm(digits: Bundle, gpu: StandInCuda) -> None:
    gpu.no_driver = True
    assert findings(digits)["CUDA"].state == "missing"


def test_a_tensorrt_that_cannot_start_is_broken(
    digits: Bundle, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(backend: str) -> Any:
        raise EngineError("tensorrt_rtx is installed but cannot be loaded")

    monkeypatch.setattr(trt_module, "import_tensorrt", refuses)
    assert findings(digits)["TensorRT-RTX"].state == "broken"


@pytest.mark.usefixtures("release")
def test_a_jetson_environment_that_hides_tensorrt_is_found(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dist-packages" / "tensorrt").mkdir(parents=True)
    monkeypatch.setattr(doctor, "SYSTEM_PACKAGES", tmp_path / "dist-packages")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    finding = findings(digits)["JetPack's TensorRT"]
    assert finding.state == "broken"
    assert finding.remedy == "python3 -m venv --system-site-packages .venv"
    monkeypatch.syspath_prepend(str(tmp_path / "dist-packages"))
    assert "JetPack's TensorRT" not in findings(digits)


def test_an_empty_release_file_of_a_jetson_is_a_note(digits: Bundle, release: Path) -> None:
    release.write_text("")
    assert findings(digits)["Jetson"].detail == f"{release} is empty"


def test_the_command_prints_every_finding_and_its_remedy() -> None:
    result = succeeds("doctor")
    assert "works    ONNX Runtime, CPU: onnxruntime" in result.stdout
    assert "[gpu]" not in result.stdout
