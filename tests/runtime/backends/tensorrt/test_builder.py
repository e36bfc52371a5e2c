"""Engines compiled for real by TensorRT-RTX, for absent GPUs: nothing in this file runs one."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from diver_trt.bundle import Bundle, Network
from diver_trt.contract import NETWORKS, contract
from diver_trt.errors import BundleError, EngineError, MissingExtraError, OutputError
from diver_trt.runtime.backends.tensorrt import builder as engine_builder
from diver_trt.runtime.backends.tensorrt import compiler as engine_compiler
from diver_trt.runtime.backends.tensorrt import module as trt_module
from diver_trt.runtime.backends.tensorrt import target as engine_target
from diver_trt.runtime.backends.tensorrt.builder import build_plan
from diver_trt.runtime.backends.tensorrt.compiler import compile_graph
from diver_trt.runtime.backends.tensorrt.cuda import Gpu
from diver_trt.runtime.backends.tensorrt.plans import read_plan
from diver_trt.runtime.backends.tensorrt.sidecar import Machine, Profile, Sidecar
from diver_trt.runtime.backends.tensorrt.target import Target, resolve_target
from tests.conftest import DIGITS_MODEL

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is installed by the extra 'rtx'")

STATIC, DYNAMIC = Profile.parse("4"), Profile.parse("1:2:4")


@pytest.fixture(scope="module")
def half(export_to: Callable[..., Bundle]) -> Bundle:
    return export_to(DIGITS_MODEL, "fp16")


@pytest.fixture(scope="module")
def tiny(export_to: Callable[..., Bundle], random_pipeline: Path) -> Bundle:
    return export_to(random_pipeline, "fp16")


def build(bundle: Bundle, *sms: int, batches: Profile = STATIC) -> dict[str, Sidecar]:
    target = resolve_target("rtx", sms, batches)
    built: dict[str, Sidecar] = {sidecar.network: sidecar for sidecar in build_plan(bundle, target)}
    assert read_plan(target.folder(bundle)).sidecars == built
    return built


@pytest.mark.parametrize(
    ("name", "batches"),
    [("half", STATIC), ("tiny", STATIC), ("tiny", DYNAMIC)],
    ids=["half-static", "tiny-static", "tiny-dynamic"],
)
def test_all_networks_compile_for_four_generations_of_gpus(
    name: str, batches: Profile, request: pytest.FixtureRequest
) -> None:
    built = build(request.getfixturevalue(name), 75, 86, 89, 120, batches=batches)
    assert tuple(built) == NETWORKS
    for sidecar in built.values():
        assert sidecar.compute_capabilities == ("sm75", "sm86", "sm89", "sm120")
        assert sidecar.dtypes["float16"] > 0
        assert sidecar.engine.size_bytes > sidecar.memory.weights_bytes


def test_no_flag_changes_the_precision(half: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    configs, configure = list[Any](), engine_compiler._configure

    def configured(*given: Any) -> Any:
        configs.append(configure(*given))
        return configs[-1]

    monkeypatch.setattr(engine_compiler, "_configure", configured)
    build(half, 86)
    flags = trt_module.import_tensorrt("rtx").BuilderFlag.__members__
    for config in configs:  # above all no TF32
        found = [name for name, flag in flags.items() if config.get_flag(flag)]
        assert found == ["REQUIRE_USER_ALLOCATION"]


def test_the_reference_bundle_compiles_from_ampere_on(bundle: Bundle) -> None:
    built = build(bundle, 86, 89, 120)
    assert all("float16" not in sidecar.dtypes for sidecar in built.values())
    with pytest.raises(EngineError, match=r"has no float32 matrix products for sm75, .*fp16"):
        build(bundle, 75)
    target = resolve_target("rtx", [75], STATIC)
    # TensorRT-RTX itself still says so.
    with pytest.raises(EngineError, match=r"FP32 GEMM is not supported|SM75"):
        compile_graph(
            bundle.verified("conditioner"),
            bundle.networks["conditioner"],
            target.profile("conditioner"),
            target,
        )


def test_what_a_graph_declares_is_what_its_manifest_says(digits: Bundle) -> None:
    network = digits.networks["decoder"]
    (latent,), (image,) = network.inputs, network.outputs
    target = resolve_target("rtx", [86], STATIC)
    for other, message in (
        (replace(network, inputs=(replace(latent, name="z"),)), "reads latent: float32"),
        (replace(network, inputs=(replace(latent, dtype="float16"),)), "reads latent: float32"),
        (replace(network, outputs=(replace(image, shape=("n", 7, 32, 32)),)), "writes image: "),
        (replace(network, outputs=(replace(image, shape=("n", 3, 32)),)), "writes image: "),
        (replace(network, outputs=()), "writes image: "),
    ):
        with pytest.raises(
            BundleError, match=rf"decoder\.onnx: {message}.*, but bundle\.json lists"
        ):
            compile_graph(digits.verified("decoder"), other, target.profile("decoder"), target)


def test_the_compilers_weights_are_the_parameters(half: Bundle, bundle: Bundle) -> None:
    """Within 10 % of two bytes each in fp16 and four in fp32.

    An engine in the wrong precision would be twice or half that.
    """
    for built, width in ((half, 2), (bundle, 4)):
        for name, sidecar in build(built, 86).items():
            expected = width * built.networks[name].parameters  # type: ignore[index]
            assert sidecar.memory.weights_bytes == pytest.approx(expected, rel=0.10), name
            assert sidecar.memory.activation_bytes > 0


def with_float16_borders(network: Network, graph: Path, declared: Network) -> onnx.ModelProto:
    """Return a float32 graph that casts at its borders to the types that `declared` has."""
    model = onnx.load(graph)
    for ours, theirs in zip(network.inputs, declared.inputs, strict=True):
        if ours.dtype != theirs.dtype:
            rename(model, ours.name, f"{ours.name}_float32")
            model.graph.node.insert(
                0,
                onnx.helper.make_node(
                    "Cast", [ours.name], [f"{ours.name}_float32"], to=onnx.TensorProto.FLOAT
                ),
            )
    for ours, theirs in zip(network.outputs, declared.outputs, strict=True):
        if ours.dtype != theirs.dtype:
            rename(model, ours.name, f"{ours.name}_float32")
            model.graph.node.append(
                onnx.helper.make_node(
                    "Cast", [f"{ours.name}_float32"], [ours.name], to=onnx.TensorProto.FLOAT16
                )
            )
    for value in (*model.graph.input, *model.graph.output):
        spec = next(s for s in (*declared.inputs, *declared.outputs) if s.name == value.name)
        if spec.dtype == "float16":
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give a value another name inside the graph; the graph's own inputs and outputs stay."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def test_a_float32_engine_behind_an_fp16_contract_is_found(digits: Bundle, tmp_path: Path) -> None:
    """What others shipped by accident: the borders are float16, the work is not."""
    target = resolve_target("rtx", [86], STATIC)
    specs = contract(
        digits.image_size, digits.latent_shape, digits.layout, digits.condition_width, "fp16"
    )
    for name, network in digits.networks.items():
        inputs, outputs = specs[name]
        claimed = replace(network, inputs=inputs, outputs=outputs)
        graph = tmp_path / f"{name}.onnx"
        onnx.save(with_float16_borders(network, digits.verified(name), claimed), graph)
        compiled = compile_graph(graph, claimed, target.profile(name), target)
        with pytest.raises(
            EngineError,
            match=(
                rf"{name}: the bundle is fp16, "
                r"but the compiled network has 0 products in float16 and \d+ in float32"
            ),
        ):
            engine_builder._check_precision(replace(digits, precision="fp16"), name, compiled)


def test_inputs_and_outputs_are_counted_at_the_largest_batch(half: Bundle) -> None:
    memory = build(half, 86)["encoder"].memory
    assert memory.io_bytes == (3 * 32 * 32 + 4 * 8 * 8) * 4  # the VAE takes one image at a time
    latents, pair, row = 4 * 4 * 4 * 8 * 8 * 4, 2 * 4 * half.condition_width * 2, 12 * 4
    assert build(half, 86)["denoiser"].memory.io_bytes == latents + pair + row


def test_a_rebuild_replaces_and_a_failed_one_does_not(
    half: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(half, 89)
    target = resolve_target("rtx", [89], STATIC)
    first = {path.name: path.stat().st_mtime_ns for path in target.folder(half).iterdir()}
    build(half, 89)
    kept = {path.name: path.stat().st_mtime_ns for path in target.folder(half).iterdir()}
    assert kept.keys() == first.keys()
    assert all(kept[name] > first[name] for name in kept)

    def fails(name: str, lines: list[str]) -> None:
        raise EngineError("as planned")

    monkeypatch.setattr(engine_compiler, "_memory_figures", fails)
    with pytest.raises(EngineError, match="as planned"):
        list(build_plan(half, target))
    assert {path.name: path.stat().st_mtime_ns for path in target.folder(half).iterdir()} == kept
    assert not [
        path
        for path in target.folder(half).parent.iterdir()
        if path.name.startswith(".") and path.is_dir()
    ]


def test_progress_comes_from_the_compiler(half: Bundle) -> None:
    told: list[tuple[Any, ...]] = []
    list(build_plan(half, resolve_target("rtx", [86], STATIC), lambda *step: told.append(step)))
    assert {step[0] for step in told} == set(NETWORKS)


def test_a_second_builder_of_the_same_target_is_refused(half: Bundle) -> None:
    target = resolve_target("rtx", [86], STATIC)
    lock = target.folder(half).parent / f".{target.name}.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is building this target"):
            next(build_plan(half, target))


@pytest.mark.parametrize("link", ["plans", "plans/.rtx.lock"])
def test_nothing_is_written_or_deleted_where_a_bundles_links_point(
    digits: Bundle, tmp_path: Path, link: str
) -> None:
    """As the links of a bundle from a stranger."""
    bundle = Bundle.open(shutil.copytree(digits.path, tmp_path / "bundle"))
    target = resolve_target("rtx", [86], STATIC)
    outside = tmp_path / "outside"
    if link == "plans":
        (outside / target.name).mkdir(parents=True)
        kept = outside / target.name / "mine.txt"
        place, message = bundle.path / "plans", "is a link out of the bundle"
    else:
        kept = outside
        (bundle.path / "plans").mkdir()
        place = bundle.path / "plans" / f".{target.name}.lock"
        message = "is a symlink, expected the lock file"
    kept.write_text("keep")
    place.symlink_to(outside)
    with pytest.raises(OutputError, match=message):
        next(build_plan(bundle, target))
    assert kept.read_text() == "keep"


def test_without_a_gpu_the_default_is_ampere_and_later() -> None:
    target = resolve_target("rtx", [], STATIC)
    assert target.compute_capabilities[0] == "sm80"
    assert {"sm86", "sm89", "sm120"} <= set(target.compute_capabilities)


def test_targets_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hopper:
        hopper.setattr(
            engine_target,
            "find_gpu",
            lambda api: Gpu("NVIDIA H200", "sm90", 141 * 10**9, "13.0", "13.0", 132),
        )
        with pytest.raises(
            EngineError,
            match=(
                r"this GPU is sm90, and TensorRT-RTX .* "
                r"compiles for 75, .* name another GPU with --sm"
            ),
        ):
            resolve_target("rtx", [], STATIC)
    with pytest.raises(
        EngineError,
        match=r"--sm 90: TensorRT-RTX [\d.]+ compiles for 75, 80, 86, 89, 120, 121 only",
    ):
        resolve_target("rtx", [90], STATIC)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("10.3.0"))
    with pytest.raises(EngineError, match="--sm is for backend rtx"):
        resolve_target("trt", [86], STATIC)
    with pytest.raises(
        EngineError,
        match="backend trt compiles on the GPU that will run the engine, and none is here",
    ):
        resolve_target("trt", [], STATIC)
    monkeypatch.setattr(
        engine_target, "find_gpu", lambda api: Gpu("Orin", "sm87", 8 * 10**9, "12.6", "12.6", 16)
    )
    target = resolve_target("trt", [], STATIC)
    assert (target.compute_capabilities, target.name) == (("sm87",), "trt-10.3.0-sm87-b4")


def fake_module(version: str) -> Any:
    return SimpleNamespace(__version__=version, Runtime=object)


@pytest.mark.parametrize(
    ("installed", "works"),
    [((), ()), (("rtx",), ("rtx",)), (("trt",), ("trt",)), (("rtx", "trt"), ("rtx", "trt"))],
    ids=str,
)
def test_either_both_or_neither_tensorrt(
    installed: tuple[str, ...], works: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"rtx": "1.7.1.116", "trt": "10.16.1.11"}
    for backend, name in trt_module.MODULES.items():
        monkeypatch.setitem(
            sys.modules, name, fake_module(versions[backend]) if backend in installed else None
        )
    for backend in trt_module.MODULES:
        if backend in works:
            assert trt_module.import_tensorrt(backend).__version__ == versions[backend]
        else:
            extra = {"rtx": "rtx", "trt": "tensorrt"}[backend]
            with pytest.raises(
                MissingExtraError, match=rf"run `pip install 'diver-trt\[{extra}\]'`"
            ):
                trt_module.import_tensorrt(backend)


@pytest.mark.parametrize(
    ("backend", "module", "expected"),
    [
        ("trt", fake_module("10.2.0"), "10.3 or later, before 12.0"),
        ("trt", fake_module("12.0.1"), "10.3"),
        ("rtx", fake_module("2.0"), "1.0 or later"),
        ("trt", SimpleNamespace(), "tensorrt is installed but holds no TensorRT"),
    ],
    ids=["older", "newer", "newer rtx", "placeholder"],
)
def test_packages_that_are_not_known_to_work_are_refused(
    backend: Any, module: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, trt_module.MODULES[backend], module)
    with pytest.raises(EngineError, match=expected):
        trt_module.import_tensorrt(backend)


def test_a_bundle_that_is_not_what_it_says_is_not_compiled(half: Bundle) -> None:
    claimed = replace(half, precision="fp32")
    with pytest.raises(
        EngineError,
        match=r"encoder: the bundle is fp32, but the compiled network has \d+ products in float16",
    ):
        list(build_plan(claimed, resolve_target("rtx", [86], STATIC)))


def test_an_error_of_the_compiler_without_a_message_is_named(
    half: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = engine_compiler._polygraphy("rtx")

    def fail() -> None:
        raise tools.PolygraphyException

    monkeypatch.setattr(tools, "EngineBytesFromNetwork", lambda *_, **__: fail)
    monkeypatch.setattr(engine_compiler, "_polygraphy", lambda backend: tools)
    with pytest.raises(EngineError, match="could not build the engine: PolygraphyException"):
        list(build_plan(half, resolve_target("rtx", [86], STATIC)))


def test_importing_the_runtime_needs_no_tensorrt() -> None:
    code = (
        "import diver_trt.runtime.session, diver_trt.runtime.backends.tensorrt.engine, "
        "diver_trt.doctor, sys; assert 'tensorrt_rtx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_workspace_limit_reaches_the_sidecar(half: Bundle) -> None:
    target = resolve_target("rtx", [86], STATIC, workspace_bytes=2**28)
    assert {sidecar.workspace_bytes for sidecar in build_plan(half, target)} == {2**28}


def test_a_targets_name_says_what_it_is_for() -> None:
    machine = Machine(backend="rtx", version="1.7.1.116")
    target = Target(
        backend="rtx", machine=machine, compute_capabilities=("sm75", "sm86"), batches=DYNAMIC
    )
    assert target.name == "rtx-1.7.1.116-sm75-sm86-b1-2-4"
