"""Recoveries on a real Ray of two nodes on this machine; skipped where Ray is not installed."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.crash import RECIPE, different, keys
from benchmarks.ray_kill import TwoNodes, killed, two_nodes
from diver_trt import recover
from diver_trt.errors import EngineError, MissingExtraError, UsageError
from diver_trt.ray import cluster as ray_cluster
from diver_trt.recipe import Recipe
from tests.conftest import DISTILLED, ROOT, digit_folder

SETTINGS: dict[str, Any] = {
    "recipe": Recipe(steps=4, inherit_step=2, start_step=4, window=(3, 2)),
    "batch": 2,
    "on_note": lambda _: None,
}
"""The recipe is `RECIPE`; the batch is another one than the command's."""

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    # Ray waits without limit for what does not come: the test process then ends, with a traceback.
    faulthandler.dump_traceback_later(900, exit=True)
    try:
        with ExitStack() as stack:
            try:
                cluster = stack.enter_context(two_nodes())
            except Exception as cause:  # a sandbox may forbid its processes or its shared memory
                pytest.skip(f"Ray does not start on this machine: {cause}")
            yield cluster
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Twenty distilled digits, one of them not an image."""
    folder = digit_folder(tmp_path / "some", {2: 10, 3: 10})
    (folder / "2" / "4.png").write_bytes(b"not an image")
    return folder


def run_python(code: str, cwd: Path) -> None:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@needs_ray
def test_a_run_resumes_with_ray_and_without_and_reports_a_bad_image_alike(
    some: Path, tmp_path: Path, nodes: TwoNodes
) -> None:
    nodes.complete()

    def alone(output: Path) -> None:
        assert recover(some, output, **SETTINGS, engine="onnx", on_error="skip").images == 19

    def with_ray(output: Path) -> subprocess.CompletedProcess[str]:
        options = ("--on-error", "skip", "--ray", nodes.address, "--workers", "2", "--json")
        result = subprocess.run(
            [sys.executable, "-m", "diver_trt", "recover", some, output, *RECIPE, *options],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 1, result.stderr
        assert json.loads(result.stdout)["images"] == 19
        return result

    def damage(output: Path) -> None:
        for name in ("00002/00001.png", "00003/00005.png", "contact_sheet.png"):
            (output / name).unlink()

    alone(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "begun-alone")
    damage(tmp_path / "begun-alone")
    resumed = with_ray(tmp_path / "begun-alone")
    assert "17 of 20 images are already there, 1 were left out" in resumed.stderr
    assert "Ray: 2 workers with 2 cores each" in resumed.stderr
    with_ray(tmp_path / "begun-with-ray")
    assert different(tmp_path / "whole", tmp_path / "begun-with-ray") == []
    damage(tmp_path / "begun-with-ray")
    alone(tmp_path / "begun-with-ray")
    for name in ("begun-alone", "begun-with-ray"):
        assert different(tmp_path / "whole", tmp_path / name) == []


@needs_ray
def test_the_pipeline_of_the_documentation_recovers_the_images_of_a_run(
    tmp_path: Path, nodes: TwoNodes
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ray.md").read_text(), re.S)
    nodes.complete()
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    shutil.copytree(DISTILLED.parent / "ipc1", tmp_path / "distilled")
    connect = f"import ray\nray.init({nodes.address!r}, log_to_driver=False)\n"
    run_python(connect + code, tmp_path)
    # What `auto` takes in the workers; here the tests hide it.
    recover(tmp_path / "distilled", tmp_path / "whole", engine="openvino")
    from pyarrow import parquet  # comes with Ray Data

    rows = parquet.read_table(tmp_path / "recovered").to_pylist()
    assert len(rows) == 10
    for row in rows:
        expected = np.asarray(Image.open(tmp_path / "whole" / f"{row['key']}.png"))
        np.testing.assert_array_equal(np.reshape(row["image"], expected.shape), expected)


@needs_ray
def test_a_node_that_is_killed_changes_nothing(
    tmp_path: Path, nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/ray_kill.py` kills more."""
    monkeypatch.setattr("benchmarks.ray_kill.DIGITS", DISTILLED.parent / "ipc1")
    recover(DISTILLED.parent / "ipc1", tmp_path / "whole", engine="onnx", batch=4)
    kill = killed(nodes, tmp_path / "killed", tmp_path / "whole", images=1, pause=0, rejoin=False)
    assert kill.differences == []


@needs_ray
def test_a_connection_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray draws from `random`, takes over `breakpoint()`, and keeps its settings."""

    def init(**_: object) -> None:
        random.random()
        os.environ.update(PYTHONBREAKPOINT="ray.util.rpdb._driver_set_trace", RAY_AUTH_MODE="token")
        logging.getLogger("ray").setLevel(logging.CRITICAL)

    fake = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=random.random)
    monkeypatch.setattr(ray_cluster, "import_ray", lambda: fake)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    level, environment = logging.getLogger("ray").level, dict(os.environ)
    random.seed(1)
    expected = random.random()
    random.seed(1)
    with ray_cluster.connected("local"):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        os.environ["MINE"] = "kept"
    assert random.random() == expected
    assert logging.getLogger("ray").level == level
    assert os.environ.pop("MINE") == "kept"
    assert dict(os.environ) == environment


def test_an_address_without_ray_is_one_line(tmp_path: Path) -> None:
    source = DISTILLED.parent / "ipc1"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        accepting = threading.Thread(target=answer)
        accepting.start()
        with pytest.raises(EngineError, match="another server answers there"):
            recover(source, tmp_path / "out", ray=f"127.0.0.1:{port}", workers=1)
        accepting.join()
    with pytest.raises(EngineError, match=r"cannot be reached .*`ray start --head --port"):
        recover(source, tmp_path / "out", ray=f"127.0.0.1:{port}", workers=1)
    assert keys(tmp_path / "out") == []


@pytest.mark.parametrize("address", ["", "nowhere", "ray://host:10001", "host:", ":1", "host:x", 7])
def test_what_is_not_an_address_is_refused(address: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected local, auto, or the HOST:PORT"):
        recover(DISTILLED, tmp_path / "out", ray=address)  # type: ignore[arg-type]


def test_workers_are_a_number_and_need_ray(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for workers in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match="expected a whole number"):
            recover(DISTILLED, output, ray="local", workers=workers)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="workers is 2 without Ray"):
        recover(DISTILLED, output, workers=2)


def test_without_ray_the_install_line_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diver-trt\[ray\]'"):
        recover(DISTILLED, tmp_path / "out", ray="local")
    assert not (tmp_path / "out").exists()
