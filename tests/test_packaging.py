"""What is released, built and installed as a user would.

A wheel, and a source distribution that makes the same one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from diver_trt import __version__
from tests.conftest import ROOT


def build(source: Path, target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target]
    subprocess.run([*command, "--directory", folder], cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    built = build(ROOT, "sdist", folder)
    with tarfile.open(built) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return source


def contents(wheel: Path) -> dict[str, int]:
    """The CRC-32 of each file, by name; without the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {i.filename: i.CRC for i in archive.infolist() if ".dist-info/" not in i.filename}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = f"diver_trt-{__version__}.dist-info/METADATA"
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_the_digits_bundle_and_one_digit_per_class(wheel: Path) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "diver_trt").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    networks = ("conditioner.onnx", "decoder.onnx", "denoiser.onnx", "encoder.onnx")
    bundle = {f"diver_trt/engines/digits/{name}" for name in ("bundle.json", *networks)}
    digits = {f"diver_trt/engines/digits-distilled/{digit}/0.png" for digit in range(10)}
    assert contents(wheel).keys() == package | bundle | digits


def test_the_source_distribution_builds_the_same_wheel(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    assert contents(build(sdist, "wheel", tmp_path)) == contents(wheel)


def test_the_source_distribution_has_what_a_reader_needs_and_no_large_model(sdist: Path) -> None:
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "docs", "examples", "tests", "Makefile"):
        assert (sdist / name).exists(), name
    files = [path for path in sdist.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".safetensors", ".pt")]
    assert sum(path.stat().st_size for path in files) < 20_000_000


def copied(dockerfile: Path) -> list[str]:
    """What a Dockerfile copies out of the checkout."""
    lines = dockerfile.read_text(encoding="utf-8").splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    return [name for names in copies if "--from=build" not in names for name in names[:-1]]


def test_what_the_dockerfiles_copy_is_in_their_context_and_builds_the_same_wheel(
    wheel: Path, tmp_path: Path
) -> None:
    lists = {tuple(copied(path)) for path in (ROOT / "docker").glob("*.Dockerfile")}
    (names,) = lists
    context = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in names:
        assert f"!{name.rstrip('/')}" in context
        source, target = ROOT / name, tmp_path / "context" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "plans"))
        else:
            shutil.copy(source, target)
    assert contents(build(tmp_path / "context", "wheel", tmp_path / "built")) == contents(wheel)


def test_the_metadata_names_this_version_and_each_python_that_is_supported(
    metadata: Message,
) -> None:
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"
    prefix = "Programming Language :: Python :: "
    named = [line.removeprefix(prefix) for line in metadata.get_all("Classifier", [])]
    assert [name for name in named if name.startswith("3.")] == [f"3.{n}" for n in range(10, 15)]
    assert f"\n## {__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    # No address that the project does not have.
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2605.12649"]


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`diver-trt` in a fresh environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # A path that another .pth names is not read for .pth files of its own, so an editable install
    # of this checkout does not come along.
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (python,) = Path(paths["scripts"]).glob("python" + (".exe" if os.name == "nt" else ""))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--quiet", str(wheel)], check=True)
    return Path(paths["scripts"]) / "diver-trt"


def run(command: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [command, *arguments],
        cwd=cwd,
        env={**environment, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_installed_command_is_the_wheels_and_states_its_version(
    command: Path, tmp_path: Path
) -> None:
    assert run(command, "--version", cwd=tmp_path) == f"diver-trt {__version__}\n"
    assert "recover" in run(command, "--help", cwd=tmp_path)
    code = "import diver_trt; print(diver_trt.__file__)"
    place = run(command.with_name("python"), "-c", code, cwd=tmp_path)
    assert Path(place).is_relative_to(command.parent.parent)


@pytest.mark.parametrize(("name", "written"), [("recover", 10), ("inspect", 0)])
def test_the_examples_of_the_help_run_outside_the_checkout(
    command: Path, tmp_path: Path, name: str, written: int
) -> None:
    *_, last = filter(str.strip, run(command, name, "--help", cwd=tmp_path).splitlines())
    title, program, *arguments = last.split()
    assert (title, program, arguments[0]) == ("Example:", "diver-trt", name)
    run(command, *arguments, cwd=tmp_path)
    assert len(list(tmp_path.rglob("0*/*.png"))) == written
