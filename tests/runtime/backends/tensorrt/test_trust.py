"""An engine runs only if built here or trusted by `--trust`, whatever its sidecar says of it."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.doctor import examine
from diver_trt.errors import EngineError, OutputError
from diver_trt.recipe import PRESETS
from diver_trt.runtime.backends.tensorrt import cuda as cuda_module
from diver_trt.runtime.backends.tensorrt import module as trt_module
from diver_trt.runtime.backends.tensorrt import plans, trust
from diver_trt.runtime.backends.tensorrt.plans import Plan
from diver_trt.runtime.recoverer import Recoverer
from tests.cli.command import fails, run
from tests.conftest import DISTILLED
from tests.edited_json import json_file
from tests.stand_in import MACHINE, install_stand_in, stand_in_session, write_stand_in_plan

QUICK = replace(PRESETS["matched"], steps=4, inherit_step=2, start_step=2, window=(2, 1))
HASHES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]
REFUSED = (
    r"encoder\.engine: was not built on this machine, and an engine is code; "
    r"add --trust if you trust whoever built it, or build it here with `diver-trt build`$"
)


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the list is; nothing is on it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "diver-trt" / "engines"


@pytest.fixture
def deserialized(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A stand-in GPU; what is handed to TensorRT on it."""
    seen: list[bytes] = []
    _, module = install_stand_in(monkeypatch)
    runtime = module.Runtime(None)

    def deserialize(engine: bytes) -> Any:
        seen.append(engine)
        return runtime.deserialize_cuda_engine(engine)

    module.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=deserialize)
    return seen


@pytest.fixture
def plan(bundle: Bundle, listed: Path) -> Plan:
    """Engines that somebody else built."""
    found = write_stand_in_plan(bundle, batch=2)
    listed.unlink()
    return found


def opened(bundle: Bundle, **options: Any) -> str:
    with Recoverer(bundle, QUICK, **options) as recoverer:
        list(recoverer(np.zeros((1, 32, 32, 3), np.uint8), [0]))
        return recoverer.engine


def test_an_engine_built_elsewhere_is_never_deserialized(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    with pytest.raises(EngineError, match=REFUSED) as refused:
        opened(bundle, engine="rtx")
    assert "\n" not in str(refused.value)
    assert deserialized == []


def test_auto_passes_it_over_and_says_why(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    with pytest.warns(
        RuntimeWarning, match="engine rtx is skipped: .* add --trust if you trust whoever built it"
    ):
        assert opened(bundle, engine="auto") == "onnx"
    assert deserialized == []


def test_trust_is_said_once(
    bundle: Bundle, plan: Plan, listed: Path, deserialized: list[bytes]
) -> None:
    assert opened(bundle, engine="rtx", trust=True) == "rtx"
    assert set(listed.read_text().split()) == {
        sidecar.engine.sha256 for sidecar in plan.sidecars.values()
    }
    assert opened(bundle, engine="rtx") == "rtx"
    assert len(deserialized) == 8


def test_trust_covers_what_is_not_loaded_yet(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    """Phase by phase the decoder comes last: a run that stops before it must not be asked again."""
    from diver_trt.runtime.backends.tensorrt.memory import plan_memory

    budget = plan_memory(plan, "phased").peak_bytes
    with Recoverer(bundle, QUICK, engine="rtx", memory_budget=budget, trust=True):
        assert len(deserialized) == 1
    assert plan.distrusted() is None


def test_trust_in_one_engine_is_none_in_another(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    plan.trust()
    path, sidecar = plan.folder / "encoder.engine", plan.folder / "encoder.json"
    path.write_bytes(path.read_bytes() + b" ")
    with json_file(sidecar) as document:
        document["engine"] = {
            "name": "encoder.engine",
            "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    with pytest.raises(EngineError, match=REFUSED):
        opened(bundle, engine="rtx")
    assert deserialized == []


def test_trust_does_not_outweigh_a_hash(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    path = plan.folder / "encoder.engine"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(EngineError, match=r"encoder\.engine: is not the engine that was built"):
        opened(bundle, engine="rtx", trust=True)
    assert deserialized == []


def test_a_trusted_plan_is_taken_before_a_strange_one(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    """The strange one has the larger batch, which the memory plan would choose."""
    trusted = [
        sidecar.engine.sha256
        for sidecar in write_stand_in_plan(bundle, batch=1, scratch_bytes=8192).sidecars.values()
    ]
    with Recoverer(bundle, QUICK, engine="rtx") as recoverer:
        assert recoverer.batch == 1
    assert [hashlib.sha256(engine).hexdigest() for engine in deserialized] == trusted


def test_a_session_of_its_own_asks_too(
    bundle: Bundle, plan: Plan, deserialized: list[bytes]
) -> None:
    api, module = cuda_module.import_cuda(), trt_module.import_tensorrt("rtx")
    session = stand_in_session(bundle, plan, api, module)
    with pytest.raises(EngineError, match=REFUSED):
        session.open("decoder")
    session.close()
    assert deserialized == []


def test_what_is_hashed_is_what_is_deserialized(
    bundle: Bundle, plan: Plan, deserialized: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is replaced as soon as it was read."""
    plan.trust()

    def replaced(data: bytes) -> Any:
        for path in plan.folder.glob("*.engine"):
            if path.read_bytes() == data:
                path.write_bytes(b"other code")
        return hashlib.sha256(data)

    monkeypatch.setattr(plans, "hashlib", SimpleNamespace(sha256=replaced))
    opened(bundle, engine="rtx")
    assert {hashlib.sha256(engine).hexdigest() for engine in deserialized} == {
        sidecar.engine.sha256 for sidecar in plan.sidecars.values()
    }


def test_doctor_says_what_to_do(
    bundle: Bundle, plan: Plan, deserialized: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_module, "this_machine", lambda backend, module, gpu: MACHINE)
    (finding,) = (finding for finding in examine(bundle) if finding.subject.startswith("engines"))
    assert finding.state == "broken"
    assert "was not built on this machine" in finding.detail
    assert finding.remedy == f"diver-trt recover … --bundle {bundle.path} --trust"
    plan.trust()
    (finding,) = (finding for finding in examine(bundle) if finding.subject.startswith("engines"))
    assert finding.state == "works"


def test_the_command_takes_trust(
    bundle: Bundle, plan: Plan, deserialized: list[bytes], tmp_path: Path
) -> None:
    command = ("recover", DISTILLED.parent / "ipc1", tmp_path / "out", "--bundle", bundle.path)
    options = ("--engine", "rtx", "--preset", "matched")
    assert "add --trust if you trust whoever built it" in fails(run(*command, *options))
    assert not (tmp_path / "out").exists()
    assert run(*command, *options, "--trust").exit_code == 0


def test_the_list_is_for_its_user_alone(listed: Path) -> None:
    trust.register(HASHES[:2])
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    assert stat.S_IMODE(listed.parent.stat().st_mode) == 0o700
    assert listed.read_text().splitlines() == HASHES[:2]
    trust.register(HASHES[1:3])
    assert listed.read_text().splitlines() == HASHES[:3]
    assert trust.is_registered(HASHES[2])
    assert not trust.is_registered(HASHES[3])


def test_a_list_that_others_may_write_proves_nothing(listed: Path) -> None:
    trust.register(HASHES[:1])
    listed.chmod(0o620)
    with pytest.raises(
        EngineError,
        match=(
            r"engines: can be written by others, so it proves nothing; "
            r"make it your own \(chmod 600\), or delete it"
        ),
    ):
        trust.is_registered(HASHES[0])


@pytest.mark.parametrize(
    "rest",
    [
        HASHES[1][:30],
        HASHES[1][:63],
        "\x00\xff" * 50,
        HASHES[1].upper() + "\r\n\r\n",
        f"{HASHES[1]} {HASHES[1]}",
    ],
)
def test_damage_costs_the_damaged_line_only(listed: Path, rest: str) -> None:
    trust.register(HASHES[:1])
    with listed.open("ab") as file:
        file.write(rest.encode("latin-1"))
    trust.register(HASHES[2:3])
    assert [trust.is_registered(digest) for digest in HASHES[:3]] == [True, False, True]


def test_processes_may_enter_engines_at_once(listed: Path) -> None:
    code = (
        "import sys; from diver_trt.runtime.backends.tensorrt import trust\n"
        "for digest in sys.argv[1:]: trust.register([digest])"
    )
    parts = [HASHES[first::4] for first in range(4)]
    processes = [subprocess.Popen([sys.executable, "-c", code, *part]) for part in parts]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(filter(None, listed.read_text().splitlines())) == sorted(HASHES)


def test_a_line_seen_half_written_costs_an_empty_line_only(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of another process's line arrives after this one has looked where the list ends."""
    trust.register(HASHES[:1])
    with listed.open("a") as file:
        file.write(HASHES[1][:30])
    write = os.write

    def late(file: int, data: bytes) -> int:
        write(file, HASHES[1][30:].encode() + b"\n")
        return write(file, data)

    monkeypatch.setattr(os, "write", late)
    trust.register(HASHES[2:3])
    assert listed.read_text().splitlines() == [*HASHES[:2], "", HASHES[2]]
    assert all(map(trust.is_registered, HASHES[:3]))


def test_a_list_that_grows_meanwhile_loses_nothing(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process enters an engine after this one has looked where the list ends."""
    trust.register(HASHES[:1])
    write = os.write

    def late(file: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        trust.register(HASHES[1:2])
        return write(file, data)

    monkeypatch.setattr(os, "write", late)
    trust.register(HASHES[2:3])
    assert listed.read_text().splitlines() == HASHES[:3]


def test_without_xdg_the_list_is_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/state"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert trust.register_path() == tmp_path / ".local" / "state" / "diver-trt" / "engines"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert trust.register_path() == tmp_path / ".local" / "state" / "diver-trt" / "engines"


def test_a_list_that_cannot_be_kept_is_one_line(
    tmp_path: Path, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuses)
        with pytest.raises(
            OutputError,
            match=(
                r"engines: cannot be written \(.*\); "
                r"set XDG_STATE_HOME to a folder of your own that can$"
            ),
        ):
            trust.register(HASHES[:1])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        EngineError,
        match=(
            r"engines: cannot be read \(Not a directory\); "
            r"it lists the engines that may run here"
        ),
    ):
        trust.is_registered(HASHES[0])


def test_a_disk_that_is_full_is_not_taken_for_trust(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:20]))
        with pytest.raises(OutputError, match="could not be written to its end"):
            trust.register(HASHES[:1])
    assert not trust.is_registered(HASHES[0])
    trust.register(HASHES[1:2])
    assert trust.is_registered(HASHES[1])
