"""Commands run without the parts of the standard library that Windows and macOS lack.

This simulates the absence of modules and functions, and Windows' rule that an open file is neither
renamed nor deleted. It does not show how either system behaves otherwise.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import IPC1, ROOT

# The third-party packages are imported first: they were built for the system that they run on.
COMMANDS = """
import os, pathlib, signal, sys
import multiprocessing, subprocess, sysconfig, tempfile
import numpy, onnxruntime, PIL.Image, PIL.ImageDraw, PIL.ImageFont, rich.progress, safetensors
import typer, typer.main, typer.rich_utils, typer.core

PLATFORM, IPC1, OUT = sys.argv[1:]
sysconfig.get_config_vars()


def remove(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def in_use(path):
    real = os.path.realpath(path)
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    if real in [os.readlink(link) for link in links if os.path.lexists(link)]:
        raise PermissionError(13, "is open in this process", str(path))


def guarded(call):
    def checked(path, *others, **options):
        for each in (path, *others[:1]):
            in_use(each)
        return call(path, *others, **options)

    return checked


# As not installed: built for this system, they do not load as another.
for name in ("cuda", "openvino", "tensorrt", "tensorrt_rtx"):
    sys.modules[name] = None
remove(os, "sched_getaffinity", "sched_setaffinity")
remove(signal, "sigtimedwait")
if PLATFORM == "win32":
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    remove(os, "fork", "register_at_fork", "geteuid", "getuid", "getloadavg", "pread", "mkfifo")
    remove(os, "statvfs", "sysconf", "uname")
    remove(os, "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK")
    remove(signal, "SIGALRM", "SIGHUP", "SIGKILL", "pthread_sigmask")
    for name in ("unlink", "remove", "rename", "replace"):
        setattr(os, name, guarded(getattr(os, name)))
    for name in ("unlink", "rename", "replace"):
        setattr(pathlib.Path, name, guarded(getattr(pathlib.Path, name)))
sys.platform = PLATFORM

from diver_trt.cli import main


def run(*arguments, code=0):
    sys.argv = ["diver-trt", *arguments]
    try:
        main()
    except SystemExit as end:
        assert end.code == code, (arguments, end.code)


recipe = "--steps", "2", "--engine", "onnx"
run("doctor")
for part in ("1/2", "2/2"):
    run("recover", IPC1, f"{OUT}/{part[0]}", *recipe, "--layout", "npz", "--shard", part)
run("merge", f"{OUT}/1", f"{OUT}/2", f"{OUT}/whole")
run("recover", IPC1, f"{OUT}/whole", *recipe, "--layout", "npz")
run("recover", IPC1, f"{OUT}/whole", *recipe, "--layout", "npz", "--seed", "1", "--overwrite")
run("inspect", f"{OUT}/whole")
run("convert", f"{OUT}/whole/dataset.npz", f"{OUT}/set.safetensors")
run("recover", IPC1, f"{OUT}/rtx", "--engine", "rtx", code=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes from Linux what the others lack")
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_commands_run_without_what_another_system_lacks(platform: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", COMMANDS, platform, str(IPC1), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "whole").glob("0*/*.png"))) == 10
    assert not list((tmp_path / "whole").glob(".*"))
    if platform == "win32":
        assert "TensorRT engines are built and run on Linux alone" in process.stderr
