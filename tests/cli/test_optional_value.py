"""Options that may stand without a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.cli.optional_value import completed
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
