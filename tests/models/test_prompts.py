"""The prompt of each class, from names, a template or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.errors import UsageError
from diver_trt.models.prompts import Prompts, prompt_doubts, prompts_from_options


def test_the_defaults_are_d4ms() -> None:
    prompts = prompts_from_options(None, None, None, None)
    assert len(prompts.names) == 1000
    assert prompts.texts == prompts.names
    assert prompts.names[0] == "tench, Tinca tinca"
    assert (prompts.names[134], prompts.names[517]) == ("crane bird", "construction crane")
    assert prompts.negative == "cartoon, anime, painting"


def test_prompts_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("\ufeffcat\nred apple\n\n", encoding="utf-8")
    (tmp_path / "prompts").write_text("one cat, sitting\r\nan apple\r\n")
    prompts = prompts_from_options(str(tmp_path / "names"), None, tmp_path / "prompts", "")
    assert prompts == Prompts(("cat", "red apple"), ("one cat, sitting", "an apple"), "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("n01440764\nn02102040\n", "the prompt 'a n01440764' holds a wnid"),
        ("tench n01440764\nspringer n02102040\n", "'a tench n01440764' holds a wnid"),
        ('["tench",\n "springer"]\n', "classes: is JSON, expected a text file"),
        ('{"tench": 0}', "classes: is JSON, expected a text file"),
    ],
)
def test_files_of_classes_of_other_forms_are_refused(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "classes").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        prompts_from_options(str(tmp_path / "classes"), "a {name}", None, None)


def test_wnids_may_name_classes_whose_prompts_are_words(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("n01440764\nn02102040\n")
    (tmp_path / "prompts").write_text("tench\nspringer\n")
    prompts = prompts_from_options(str(tmp_path / "names"), None, tmp_path / "prompts", None)
    assert prompts.names == ("n01440764", "n02102040")
    assert prompts.texts == ("tench", "springer")


@pytest.mark.parametrize(
    ("names", "doubt"),
    [
        (("tench 0", "English springer 217"), "such as 'tench 0', which is part of the name"),
        (("0 tench", "1 springer"), "such as '0 tench'"),
        (("0,tench", "1,springer"), "such as '0,tench'"),
        (("tench,0", "springer,217"), "such as 'tench,0'"),
        (("tench, springer, church",), "it has one class, 'tench, springer, church'"),
        # Names, not numbers with a name
        (("digit 0", "digit 1"), None),
        (("0", "1"), None),
        (("Boeing 737", "Airbus A320"), None),
        (("4 leaf clover", "rose"), None),
        (("tench, Tinca tinca", "springer"), None),
        (("cat",), None),
    ],
)
def test_names_with_their_numbers_are_doubted(names: tuple[str, ...], doubt: str | None) -> None:
    found = prompt_doubts(Prompts(names, names, ""))
    assert len(found) == (doubt is not None)
    assert doubt is None or doubt in found[0]
