"""Options that may stand without a value, and arguments that may not be empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.cli.arguments import completed
from tests.cli.command import run


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("in out --ray", "in out --ray local"),
        ("in out --ray --workers 2", "in out --ray local --workers 2"),
        ("in out --ray auto --workers 2", "in out --ray auto --workers 2"),
        ("in out --ray 10.0.0.1:6379", "in out --ray 10.0.0.1:6379"),
        ("in out --ray=auto --json", "in out --ray=auto --json"),
        ("in out --ray -- --ray", "in out --ray local -- --ray"),
        ("--ray in out", "--ray local in out"),
        ("in --ray out --json", "in --ray local out --json"),
        ("--ray auto in out", "--ray auto in out"),
        ("in out --workers 2", "in out --workers 2"),
        ("", ""),
    ],
)
def test_a_value_is_added_where_none_follows(given: str, expected: str) -> None:
    assert list(completed(given.split())) == expected.split()


def test_an_option_after_it_is_not_its_value(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", "--ray", "--workers", "0")
    assert result.exit_code == 2
    assert "--workers is '0'" in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("recover", "", "out"), "an argument"),
        (("recover", "in", ""), "an argument"),
        (("recover", "in", "out", "--bundle", ""), "--bundle"),
        (("recover", "in", "out", "--bundle="), "--bundle"),
        (("recover", "in", "out", "--shard", ""), "--shard"),
        (("recover", "in", "out", "--classes", ""), "--classes"),
        (("export", "model", "out", "--classes", ""), "--classes"),
        (("export", "model", "out", "--prompt", ""), "--prompt"),
        (("push", "", "me/mine", "--dry-run"), "an argument"),
        (("build", "", "--dry-run"), "an argument"),
        (("bench", ""), "an argument"),
        (("inspect", ""), "an argument"),
        (("merge", "a", "", "out"), "an argument"),
        (("evaluate", "in", "--test", ""), "--test"),
    ],
)
def test_an_empty_argument_is_not_a_default(arguments: tuple[str, ...], named: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"{named} is empty" in result.output


def test_the_negative_prompt_may_be_empty(tmp_path: Path) -> None:
    for option in (("--negative-prompt", ""), ("--negative-prompt=",)):
        result = run("export", tmp_path / "missing", tmp_path / "out", *option)
        assert result.exit_code == 1
        assert "is empty" not in result.output
