"""Usage, help and install lines of every command."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.models import OptionInfo

from diver_trt.cli.commands import app
from diver_trt.cli.console import Progress
from tests.cli.command import QUICK, fails, run, succeeds
from tests.conftest import DIGITS_MODEL, ROOT

DIGITS = ROOT / "engines" / "digits"
MODULES_OF_HELP = 50
"""Of our own, each of about a millisecond: numpy alone has more."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "digits", "--classes", "nope"),
        ("inspect", "digits", "--contact-sheet", "sheet.jpg"),
        ("convert", "a.pt", "b.npz", "--format", "x"),
        ("compare", "engines/digits", "--engine", "nope"),
        ("compare", "engines/digits", "engines/digits"),
        ("build", "engines/digits", "--batch", "some"),
        ("build", "engines/digits", "--workspace", "some"),
        ("export", "model", "bundle", "--precision", "int4"),
        ("push", "engines/digits", "digits"),
        ("merge", "one"),
        ("evaluate", "digits"),
    ],
)
def test_wrong_usage_of_every_command_exits_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines"]


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "fast"),
        ("--engine", "nope"),
        ("--memory-budget", "x"),
        ("--format", "x"),
        ("--collage", "33"),
        ("--collage", "0"),
        ("--normalisation", "x"),
        ("--classes", "nope"),
        ("--layout", "x"),
        ("--size", "x"),
        ("--size", "5000"),
        ("--on-error", "x"),
        ("--ray=nowhere",),
        ("--workers", "2"),
        ("--ray", "local", "--workers", "0"),
        ("--sigma", "x"),
        ("--shard", "x"),
        ("--shard", "3/2"),
        ("--cfg-channels", "9"),
        ("--seed", str(2**63)),
        ("--shard", "1/" + "1" * 5000),
        ("--batch", "0"),
        ("--batch", "many"),
        ("--seed", "x"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_exits_2(few: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run("recover", few, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_its_install_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "run `pip install 'diver-trt[cpu]'`" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )
    assert not (tmp_path / "out").exists()
    for name in [name for name in sys.modules if name.startswith("diver_trt.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (
        "exporting needs torch, which is not installed; run `pip install 'diver-trt[export]'`"
        in fails(run("export", "model", tmp_path / "b"))
    )


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torch", ("export", DIGITS_MODEL, "bundle")),
        ("onnxscript", ("export", DIGITS_MODEL, "bundle")),
        ("torch", ("compare", DIGITS, "--model", DIGITS_MODEL)),
        ("onnxruntime", ("compare", DIGITS, "--model", DIGITS_MODEL)),
        ("torch", ("bench", "--against", "torch", "--model", DIGITS_MODEL)),
        ("torch", ("evaluate", "digits", "--test", "digits")),
    ],
)
def test_a_package_that_cannot_be_loaded_is_not_called_missing(
    module: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    problem = "libfoo.so: cannot open shared object file"
    (tmp_path / f"{module}.py").write_text(f"raise ImportError({problem!r})")
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [sys.executable, "-m", "diver_trt", *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("diver-trt: error: ")
    assert re.search(rf"{module},? (which )?is installed but cannot be .*\({problem}\)", line)


@pytest.mark.parametrize(
    "command", [(), ("recover",), ("export",), ("build",), ("inspect",), ("doctor",), ("evaluate",)]
)
def test_every_help_ends_with_a_line_to_paste(command: tuple[str, ...]) -> None:
    result = succeeds(*command, "--help")
    assert "diver-trt " in [line for line in result.stdout.splitlines() if line.strip()][-1]


def test_help_imports_nothing_but_typer_and_small_modules_of_our_own() -> None:
    """What is imported decides how long `--help` takes; a test of the time would be flaky."""
    typer_alone = (
        "import typer; app = typer.Typer(); app.command()(lambda: None); "
        "app.callback()(lambda: None)"
    )
    theirs = _imported_by_help(typer_alone, "app")
    ours = _imported_by_help("from diver_trt.cli import main", "main")
    added = ours - theirs
    assert "diver_trt.cli.commands" in added
    assert {name for name in added if not name.startswith("diver_trt")} == set()
    assert len(added) <= MODULES_OF_HELP, sorted(added)


def _imported_by_help(prepare: str, program: str) -> set[str]:
    code = f"""
import json, sys
sys.argv = ["program", "--help"]
{prepare}
try:
    {program}()
except SystemExit as end:
    assert not end.code
json.dump(sorted(sys.modules), sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--help" in found.stdout
    return set(json.loads(found.stderr))


def test_help_texts_have_no_brackets_that_rich_takes_for_styles() -> None:
    """rich reads `[default: 8]` in a help text as markup, and prints nothing for it."""
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        for parameter in sub.params:
            text = getattr(parameter, "help", None) or ""
            assert not re.search(r"\[[a-z#/@]", text), (name, parameter.name, text)


def test_a_checkout_runs_without_being_installed() -> None:
    found = subprocess.run(
        [sys.executable, "cli.py", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith("diver-trt ")


def test_progress_counts_each_call_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 11))
    monkeypatch.setattr("diver_trt.cli.console.time.monotonic", lambda: next(clock))
    count = Progress("exporting", 3)
    for _ in range(3):
        count()
    assert re.findall(r"exporting: (\d of \d)", capsys.readouterr().err) == [
        "1 of 3",
        "2 of 3",
        "3 of 3",
    ]


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda one: one.callback.__name__)
def test_an_option_with_a_metavar_is_named(command: Any) -> None:
    """Typer 0.27 takes the metavar of an option without a name for its name: `--FILE`."""
    for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
        for option in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(option, OptionInfo) and option.metavar:
                # In an annotation the first name is where a default would be.
                assert str(option.default).startswith("--"), parameter.name
