"""The command line as a process: early signals, and streams that are closed, full or not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diver_trt.cli.commands import app
from diver_trt.cli.console import print_json
from tests.conftest import IPC1, ROOT, default_signals, files_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX signals and descriptors")

QUICK = ("--steps", "2", "--engine", "onnx")
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


def shell(
    redirection: str, *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with its streams redirected as a shell does."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "diver_trt"]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    assert shell("", "recover", IPC1, folder, *QUICK).returncode == 0
    return files_of(folder)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_change_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes], closed: str
) -> None:
    result = shell(closed, "recover", IPC1, tmp_path / "out", *QUICK)
    assert result.returncode == 0, result
    assert files_of(tmp_path / "out") == undisturbed


def test_notes_never_reach_standard_output(tmp_path: Path) -> None:
    result = shell("2>&-", "recover", IPC1, tmp_path / "out", *QUICK, "--json")
    assert (result.returncode, json.loads(result.stdout)["images"]) == (0, 10)


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (("--help",), ""),
        (("--version",), ""),
        (("inspect", IPC1), ""),
        (("inspect", IPC1, "--json"), "1"),
    ],
)
def test_a_full_device_is_a_failure_in_one_line(
    arguments: tuple[str, ...], unbuffered: str
) -> None:
    result = shell(">/dev/full", *arguments, PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 1
    *_, last = result.stderr.splitlines()
    assert last == "diver-trt: error: standard output: No space left on device"
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_a_failure_in_one_line(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "diver_trt", "inspect", IPC1],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    *_, last = result.stderr.splitlines()
    assert last == "diver-trt: error: standard output: Broken pipe"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    out = tmp_path / "a-日本"
    result = shell("", "recover", IPC1, out, *QUICK, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert r"images into" in result.stdout
    assert r"a-\u65e5\u672c" in result.stdout
    assert len(list(out.glob("*/*.png"))) == 10


def run(code: str, *arguments: object) -> subprocess.CompletedProcess:  # type: ignore[type-arg]
    """Run the command line in a process of its own, after some code."""
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom diver_trt.cli import main\nmain()"]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=default_signals,
    )


AT_IMPORT = """
import os, signal, subprocess, sys
# The tests may run in the background or under nohup, where some are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(Finder)
            {deed}
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_while_the_program_still_loads_is_an_interruption(name: str) -> None:
    deed = f"signal.raise_signal(signal.{name})"
    result = run(AT_IMPORT.format(module="typer", deed=deed), "doctor")
    assert (result.returncode, result.stderr) == (130, "diver-trt: interrupted\n")


INTERRUPT = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("module", "deed", "arguments"),
    [
        # As in the text that a dataclass is made of, after which Python would end by SIGINT.
        ("typer", f"exec({INTERRUPT!r})", ("doctor",)),
        ("diver_trt.doctor", f"exec({INTERRUPT!r})", ("doctor",)),
        # While the arguments are parsed, where Typer handles it.
        ("diver_trt.ray.cluster", INTERRUPT, ("recover", "--ray", "a", "b")),
        # What native code raises in its place.
        ("typer", "raise ImportError('initialization failed') from KeyboardInterrupt()", ()),
        ("diver_trt.doctor", "raise RuntimeError('pos') from KeyboardInterrupt()", ("doctor",)),
        ("diver_trt.doctor", "raise OSError('pos') from KeyboardInterrupt()", ("doctor",)),
    ],
)
def test_an_interruption_is_one_line_wherever_it_comes(
    module: str, deed: str, arguments: tuple[str, ...]
) -> None:
    result = run(AT_IMPORT.format(module=module, deed=deed), *arguments)
    assert (result.returncode, result.stderr) == (130, "diver-trt: interrupted\n")


@pytest.mark.parametrize("name", STOPPING)
@pytest.mark.parametrize("interrupted", [True, False])
def test_a_signal_at_the_end_of_the_process_changes_nothing(name: str, interrupted: bool) -> None:
    deed = INTERRUPT if interrupted else "pass"
    code = f"import atexit\natexit.register(signal.raise_signal, signal.{name})"
    result = run(AT_IMPORT.format(module="typer", deed=deed) + code, "--version")
    expected = (130, "diver-trt: interrupted\n") if interrupted else (0, "")
    assert (result.returncode, result.stderr) == expected


def test_a_sigint_of_openblas_is_not_ctrl_c() -> None:
    result = run(
        AT_IMPORT.format(module="numpy", deed="signal.raise_signal(signal.SIGINT)"), "doctor"
    )
    assert result.returncode == 1
    assert result.stderr.startswith("diver-trt: error: out of memory (OpenBLAS cannot start")
    someone = "subprocess.run(['kill', '-INT', str(os.getpid())], check=True)"
    result = run(AT_IMPORT.format(module="numpy", deed=someone), "doctor")
    assert (result.returncode, result.stderr) == (130, "diver-trt: interrupted\n")


@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_that_the_caller_ignores_stays_ignored(
    tmp_path: Path, name: str, undisturbed: dict[str, bytes]
) -> None:
    """As a shell's `cmd &` ignores Ctrl-C, and `nohup` SIGHUP."""
    code = f"""
import signal
signal.signal(signal.{name}, signal.SIG_IGN)
from diver_trt.recovered.distilled_input import DistilledInput
read = DistilledInput.read
def interrupted(self, sample):
    signal.raise_signal(signal.{name})
    return read(self, sample)
DistilledInput.read = interrupted
"""
    result = run(code, "recover", IPC1, tmp_path / "out", *QUICK)
    assert result.returncode == 0, result.stderr
    assert files_of(tmp_path / "out") == undisturbed


def test_json_is_valid_for_nan_and_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(a=float("nan"), b=[float("inf"), {"c": (-float("inf"), 1.5)}], d="\udcff\x1b")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {
        "a": None,
        "b": [None, {"c": [None, 1.5]}],
        "d": "\udcff\x1b",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("recover --preset ", "paper ncfm matched d4m level"),
        ("recover --engine o", "onnx-cuda openvino openvino-gpu openvino-npu onnx"),
        ("recover --layout h", "huggingface"),
        ("recover --format d", "d4m dc dream"),
        ("recover --normalisation ci", "cifar10 cifar100-dwa cifar100-dc"),
        ("inspect --classes imagew", "imagewoof"),
        ("recover --bundle eng", "engines/digits"),
        ("build engines/", "engines/digits"),
        ("push engines/", "engines/digits"),
        ("recover --bundle nowhere/", ""),
        ("compare --engine torch-b", "torch-bf16"),
        ("export --precision ", "fp32 fp16 int8 int8-fp16"),
    ],
)
def test_the_shell_completes_values(
    words: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    variables = {
        "_DIVER_TRT_COMPLETE": "complete_bash",
        "COMP_WORDS": f"diver-trt {words}",
        "COMP_CWORD": str(len(f"{words}.".split())),
    }
    result = CliRunner().invoke(app, [], prog_name="diver-trt", env=variables)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == expected.split()
