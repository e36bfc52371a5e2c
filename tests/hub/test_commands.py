"""Commands on a bundle of the hub: they do what they do on the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diver_trt import recover
from diver_trt.bundle import Bundle
from diver_trt.cli.completion import bundles as completed
from diver_trt.recipe import Recipe
from tests.cli.command import fails, run, succeeds
from tests.cli.conftest import few as few
from tests.hub.server import Hub
from tests.stand_in import write_stand_in_plan

NAME = "hf://me/digits"


def test_a_run_is_resumed_with_the_same_bundle_from_elsewhere(
    hub: Hub, few: Path, tmp_path: Path
) -> None:
    recipe = Recipe(steps=2, inherit_step=1, start_step=2, window=(2, 1))
    notes: list[str] = []
    for done, bundle in enumerate((NAME, "engines/digits", NAME), 1):
        polls = iter([False, True])
        run = recover(
            few,
            tmp_path / "out",
            bundle=bundle,
            recipe=recipe,
            batch=1,
            on_note=notes.append,
            stopping=polls.__next__,
        )
        assert run.done == done
    assert run.finished
    recover(few, tmp_path / "whole", bundle="engines/digits", recipe=recipe, on_note=notes.append)
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert manifest == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert b"hf://" not in manifest


def test_build_puts_engines_where_recover_finds_them(hub: Hub) -> None:
    bundle = Bundle.open(NAME)
    result = succeeds("build", NAME, "--sm", "86", "--batch", "2", "--dry-run", "--json")
    assert json.loads(result.stdout)["would_write"].startswith(f"{bundle.path}/plans/rtx-")
    write_stand_in_plan(bundle, 2)
    facts = run("inspect", NAME, "--json")
    assert list(json.loads(facts.stdout)["engines"]) == [
        path.name for path in (bundle.path / "plans").iterdir()
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("recover", "digits", "out", "--bundle"),
        ("recover", "digits", "out", "--inherit-snr", "1", "--bundle"),
        ("inspect",),
        ("inspect", "digits", "--bundle"),
        ("build",),
        ("bench",),
        ("compare",),
        ("doctor", "--bundle"),
        ("push", "--dry-run"),
    ],
)
def test_every_command_that_takes_a_bundle_takes_one_of_the_hub(
    arguments: tuple[str, ...], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    after = ("me/new",) if arguments[0] == "push" else ()
    line = fails(run(*arguments, "hf://me/nothing", *after))
    assert "hf://me/nothing: no such model repository on the hub" in line
    # Nothing was written but what the client of the hub keeps.
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}


def test_export_writes_no_folder_called_hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", "some/model", "hf://me/new")
    assert result.exit_code == 2
    assert "diver-trt push" in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_shell_completes_the_names_in_the_cache(hub: Hub) -> None:
    assert completed("hf://me/d") == []
    Bundle.open(NAME)
    hub.requests.clear()
    assert completed("hf") == completed("hf://me/d") == [NAME]
    assert completed("hf://you") == completed("hg") == []
    assert hub.requests == []


def test_a_process_of_its_own_reads_the_hub_and_then_the_cache(
    hub: Hub, tmp_path: Path, digits: Bundle
) -> None:
    """The only test without a patched client: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "own")}

    def inspect(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "diver_trt", "inspect", NAME, "--json"],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    first = inspect()
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith(f"diver-trt: {NAME}: downloading 4 files, 8.6 MB")
    assert len(first.stderr.splitlines()) == 1  # no bars where there is no terminal
    again = inspect(HF_HUB_OFFLINE="1")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert json.loads(again.stdout)["model"] == digits.model_id
