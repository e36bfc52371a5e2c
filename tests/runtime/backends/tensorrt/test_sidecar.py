"""A sidecar says whether its engine fits, and if not, why and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError, UsageError
from diver_trt.runtime.backends.tensorrt.plans import (
    MAX_PLANS,
    Plan,
    StrayFoldersError,
    read_plan,
    read_plans,
)
from diver_trt.runtime.backends.tensorrt.sidecar import Machine, Profile
from diver_trt.runtime.session import engine_names
from tests.edited_json import json_file
from tests.odd_files import device, fifo, link_out
from tests.stand_in import MACHINE, write_stand_in_plan


@pytest.fixture
def plan(bundle: Bundle) -> Plan:
    return write_stand_in_plan(bundle, batch=2)


def test_what_was_written_is_read(bundle: Bundle, plan: Plan) -> None:
    assert [found.folder for found in read_plans(bundle) if isinstance(found, Plan)] == [
        plan.folder
    ]
    assert read_plan(plan.folder) == plan
    assert (plan.backend, str(plan.batches)) == ("rtx", "2")


def test_fields_of_earlier_versions_are_ignored(plan: Plan) -> None:
    for path in plan.folder.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "opset": 20, "flags": []}))
    assert read_plan(plan.folder) == plan


def test_an_engine_fits_the_machine_it_was_built_for(bundle: Bundle, plan: Plan) -> None:
    assert plan.misfit(bundle, MACHINE) is None
    assert plan.misfit(bundle, replace(MACHINE, compute_capability="sm75")) is None


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"version": "1.6.1.120"}, "it was built by version 1.7.1.116, and 1.6.1.120 is installed"),
        ({"compute_capability": "sm90"}, "it is for sm75, sm86, and this GPU is sm90"),
        ({"compute_capability": None}, "there is no NVIDIA GPU here"),
        ({"backend": "trt"}, "it is for backend rtx, not trt"),
    ],
)
def test_an_engine_that_does_not_fit_says_why_and_how_to_rebuild(
    bundle: Bundle, plan: Plan, machine: dict[str, Any], reason: str
) -> None:
    found = plan.misfit(bundle, replace(MACHINE, **machine))
    assert found is not None
    said, *remedy = str(found).splitlines()
    assert said.endswith(f"encoder.engine: {reason}")
    if "no NVIDIA GPU" in reason:
        assert remedy == []
    else:
        assert remedy[0].startswith(f"Rebuild it with `diver-trt build {bundle.path} --backend rtx")


def test_an_engine_of_tensorrt_proper_is_for_one_kind_of_gpu(bundle: Bundle, plan: Plan) -> None:
    built = Machine(
        backend="trt", version="10.3.0", compute_capability="sm86", gpu="RTX 3060", driver="12.6"
    )
    sidecars = {name: replace(sidecar, built_on=built) for name, sidecar in plan.sidecars.items()}
    own = Plan(plan.folder, sidecars)
    assert own.misfit(bundle, built) is None
    older = replace(built, driver="12.4")
    assert "it was built under a driver for CUDA 12.6, and this one is for 12.4" in str(
        own.misfit(bundle, older)
    )
    odd = replace(built, driver="1" * 5000)
    told = str(
        Plan(
            plan.folder,
            {name: replace(sidecar, built_on=odd) for name, sidecar in plan.sidecars.items()},
        ).misfit(bundle, older)
    )
    assert "it was built under a driver for CUDA 1111" in told
    assert len(told) < 1000
    assert "it was built on RTX 3060, and this GPU is RTX 3050" in str(
        own.misfit(bundle, replace(built, gpu="RTX 3050"))
    )


def test_an_engine_of_another_export_is_stale(bundle: Bundle, plan: Plan) -> None:
    network = bundle.networks["denoiser"]
    other = replace(
        bundle,
        networks={
            **bundle.networks,
            "denoiser": replace(network, graph=replace(network.graph, sha256="0" * 64)),
        },
    )
    assert "denoiser.engine: it was built from another export of the model" in str(
        plan.misfit(other, MACHINE)
    )


def test_a_missing_engine_is_named(plan: Plan) -> None:
    (plan.folder / "decoder.engine").unlink()
    with pytest.raises(
        EngineError,
        match=r"decoder\.engine: missing \(No such file or directory\); build the engines again",
    ):
        plan.read("decoder")


def test_a_damaged_target_does_not_hide_the_others(bundle: Bundle, plan: Plan) -> None:
    broken = plan.folder.with_name("broken")
    shutil.copytree(plan.folder, broken)
    (broken / "encoder.json").write_text("{}")
    found = list(read_plans(bundle))
    assert [isinstance(each, Plan) for each in found] == [False, True]
    assert "encoder.json: schema: missing" in str(found[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, but this diver-trt reads schema 1; update diver-trt"),
        ({"network": "decoder"}, "found 'encoder.engine', expected decoder.engine"),
        (
            {"engine": {"name": "x" * 1000, "size_bytes": 1, "sha256": ""}},
            'name: found "x{56}[.]{3}, expected a plain file name',
        ),
        (
            {"engine": {"name": "encoder.engine", "size_bytes": 1, "sha256": "0\n" + "0" * 64}},
            "sha256: found .*expected a SHA-256",
        ),
        ({"build_seconds": 10**400}, "build_seconds: found 1000.*expected a number"),
        (
            {"engine": {"name": "../encoder.engine", "size_bytes": 1, "sha256": ""}},
            "expected a plain file name",
        ),
        ({"memory": {"weights_bytes": -1}}, "memory.weights_bytes: found -1"),
        (
            {"compute_capabilities": "sm86"},
            'compute_capabilities: found "sm86", expected a list, each a text on one line',
        ),
    ],
)
def test_a_sidecar_that_does_not_hold_together_is_refused(
    plan: Plan, change: dict[str, Any], message: str
) -> None:
    path = plan.folder / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(EngineError, match=message):
        read_plan(plan.folder)


def test_profiles_are_one_size_or_three_that_rise() -> None:
    assert Profile.parse("8") == Profile(8, 8, 8)
    assert Profile.parse("1:4:8") == Profile(1, 4, 8)
    assert 3 in Profile.parse("1:4:8")
    assert 3 not in Profile.parse("8")
    for text in ("0", "8:4:1", "1:2", "many", "-1", "1:2:3:4", ""):
        with pytest.raises(UsageError, match="batch is"):
            Profile.parse(text)


def test_sizes_that_do_not_rise_are_no_profile(plan: Plan) -> None:
    path = plan.folder / "denoiser.json"
    for sizes in ((100, 8, 8), (1, 9, 8), (0, 1, 1), (1, 1, 10**6)):
        profile = dict(zip(("minimum", "optimum", "maximum"), sizes, strict=True))
        path.write_text(json.dumps({**json.loads(path.read_text()), "profile": profile}))
        with pytest.raises(EngineError, match=r"denoiser\.json: profile\.\w+: found .*expected"):
            read_plan(plan.folder)


def test_a_sidecar_is_a_regular_file_in_its_folder(bundle: Bundle, plan: Plan) -> None:
    message = link_out(plan.folder / "denoiser.json")
    (found,) = read_plans(bundle)
    assert f"denoiser.json: {message}" in str(found)


@pytest.mark.parametrize(("make", "size"), [(fifo, 0), (device, 2**62), (link_out, None)])
def test_an_engine_is_a_regular_file_in_its_folder(
    bundle: Bundle, plan: Plan, make: Callable[[Path], str], size: int | None
) -> None:
    path = plan.folder / "denoiser.json"
    with json_file(path) as sidecar:
        if size is not None:
            sidecar["engine"]["size_bytes"] = size
    message = make(plan.folder / "denoiser.engine")
    hostile = read_plan(plan.folder)
    with pytest.raises(EngineError, match=f"denoiser.engine: {message}"):
        hostile.read("denoiser")
    (error,) = hostile.check(bundle)
    assert f"denoiser.engine: {message}" in str(error)


def test_engines_are_looked_at_one_by_one(bundle: Bundle, plan: Plan) -> None:
    assert list(plan.check(bundle)) == []
    (plan.folder / "encoder.engine").unlink()
    data = (plan.folder / "decoder.engine").read_bytes()
    (plan.folder / "decoder.engine").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    (plan.folder / "conditioner.engine").write_bytes(data)
    wrong = [Path(str(error).split(": ")[0]).name for error in plan.check(bundle)]
    assert wrong == ["encoder.engine", "conditioner.engine", "decoder.engine"]


def test_a_target_is_a_folder_of_the_bundle(bundle: Bundle, plan: Plan, tmp_path: Path) -> None:
    plan.folder.rename(tmp_path / "elsewhere")
    plan.folder.symlink_to("../../elsewhere")
    (found,) = read_plans(bundle)
    assert str(found).endswith(
        "sm86-b2: is a link out of the bundle; copy what it points to into its place"
    )
    plan.folder.parent.rename(tmp_path / "plans")
    plan.folder.parent.symlink_to("../plans")
    (found,) = read_plans(bundle)
    assert "plans: is a link out of the bundle" in str(found)


def test_folders_without_engines_are_one_note(bundle: Bundle, plan: Plan) -> None:
    for number in range(200):
        (plan.folder.parent / f"{number:05}").mkdir()
    (plan.folder.parent / ".hidden").mkdir()
    (plan.folder.parent / "file").write_text("")
    found, note = read_plans(bundle)
    assert isinstance(found, Plan)
    assert isinstance(note, StrayFoldersError)
    assert str(note).endswith(
        "plans: 200 folders hold no engines (00000, 00001, 00002, …); "
        "remove what does not belong there"
    )


def test_names_of_targets_are_printed_escaped(bundle: Bundle, plan: Plan) -> None:
    plan.folder.rename(plan.folder.with_name("a\x1b[2J\nb"))
    (plan.folder.parent / "c\x1b[2J\nd").mkdir()
    for error in read_plans(bundle):
        assert isinstance(error, EngineError)
        assert str(error).isprintable()
        assert r"\x1b[2J\n" in str(error)


def test_thousands_of_targets_are_not_all_read(bundle: Bundle, plan: Plan) -> None:
    for number in range(150):
        folder = plan.folder.with_name(f"{number:05}")
        folder.mkdir()
        (folder / "denoiser.json").write_text("{}")
    *read, last = read_plans(bundle)
    assert len(read) == MAX_PLANS == 100
    assert "holds engines for more than 100 targets, and only those of the first 100 are used" in (
        str(last)
    )


def test_a_recovery_warns_of_engines_that_cannot_be_read(bundle: Bundle, plan: Plan) -> None:
    (plan.folder / "encoder.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match=r"engines are skipped: .*encoder\.json: schema"):
        assert engine_names("auto", bundle) == ["onnx-cuda", "onnx"]
