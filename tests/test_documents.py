"""JSON is read strictly, within limits that are stated, and from regular files only."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from diver_trt.bundle import LIMITS as BUNDLE_LIMITS
from diver_trt.bundle import Bundle
from diver_trt.documents import MANIFEST_LIMITS, Document, Limits
from diver_trt.errors import BundleError, DatasetError
from diver_trt.runtime.backends.tensorrt.sidecar import LIMITS as SIDECAR_LIMITS
from diver_trt.strict_json import MAX_DEPTH, parse_json
from diver_trt.structs import GIVEN, OMITTED, Check, Count, Invalid, Size, Tagged, dump, whole
from tests.odd_files import device, fifo, folder, link_out, loop


@dataclass(frozen=True)
class Text:
    a: str


def read(folder: Path, text: str | bytes, limits: Limits = BUNDLE_LIMITS) -> Document:
    path = folder / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Document.read(path, BundleError, limits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "not valid JSON (the key 'a' occurs twice in one object)"),
        ('{"b": {"\\u001b": 1, "\\u001b": 1}}', r"the key '\x1b' occurs twice in one object"),
        ('{"a": NaN}', "not valid JSON (NaN is not a JSON number)"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": -1e999}', "the number -1e999 is too large"),
        ('{"a": %s}' % ("9" * 10_000), "a number has 10,000 characters, expected at most 1,000"),
        (
            '{"a": 0.%s}' % ("1" * 10**6),
            "a number has 1,000,002 characters, expected at most",
        ),
        ('{"a": 1', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        ("[1]", "found [1], expected an object"),
    ],
)
def test_what_is_not_strict_json_is_one_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(BundleError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_byte_order_mark_means_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf{"a": "\xc3\xa9"}').load(Text).a == "é"


def test_values_may_lie_within_each_other_up_to_the_limit(tmp_path: Path) -> None:
    def nested(levels: int) -> str:
        return '{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"

    assert read(tmp_path, nested(MAX_DEPTH)).fields
    # From 700 on the parser or the encoder of Python's own runs out of stack.
    for levels in (MAX_DEPTH + 1, *range(700, 1000, 7), 100_000):
        with pytest.raises(
            BundleError, match=r"a\.json: values are nested too deeply, expected 32"
        ):
            read(tmp_path, nested(levels))


def test_each_kind_of_document_has_its_limits(tmp_path: Path) -> None:
    """The numbers that SECURITY.md states."""
    assert (BUNDLE_LIMITS.size_bytes, BUNDLE_LIMITS.text) == (8 * 1024**2, 1000)
    assert (SIDECAR_LIMITS.size_bytes, SIDECAR_LIMITS.text) == (64 * 1024, 1000)
    assert (MANIFEST_LIMITS.size_bytes, MANIFEST_LIMITS.text) == (512 * 1024**2, 8192)
    limits = Limits(3200, 10)
    assert read(tmp_path, json.dumps({"a": 3190 * "x"}), limits).fields
    with pytest.raises(BundleError, match=r"a\.json: more than 3,200 bytes"):
        read(tmp_path, json.dumps({"a": 3193 * "x"}), limits)
    assert len(read(tmp_path, json.dumps({"a": [0] * 98}), limits).fields["a"]) == 98
    with pytest.raises(BundleError, match=r"a\.json: about 101 values, expected at most 100"):
        read(tmp_path, json.dumps({"a": [0] * 100}), limits)
    assert read(tmp_path, json.dumps({"a": 10 * "x"}), limits).load(Text).a == 10 * "x"
    for value in (11 * "x", "a\nb"):
        with pytest.raises(BundleError, match=r"a: found .*a text on one line, of at most 10 char"):
            read(tmp_path, json.dumps({"a": value}), limits).load(Text)
    with pytest.raises(BundleError, match=r"b\.a\[0\]: found .*a text on one line, of at most 10"):
        read(tmp_path, json.dumps({"b": {"a": [11 * "x"]}}), limits).take(tuple[str, ...], "b", "a")
    with pytest.raises(BundleError, match=r"a: found the key .* a text on one line, of at most 10"):
        read(tmp_path, json.dumps({"a": {11 * "x": ""}}), limits).take(Mapping[str, str], "a")


def test_a_manifest_of_imagenet_is_within_its_limits() -> None:
    entry = {
        "key": "00999/01299",
        "source": "n15075141/n15075141_10026.JPEG",
        "source_sha256": "0" * 64,
        "index": 999,
        "label": 999,
        "wnid": "n15075141",
        "engine": "rtx NVIDIA GeForce RTX 3060",
        "file": "n15075141/n15075141_01299.png",
        "sha256": "0" * 64,
    }
    line = f"  {json.dumps(entry)},\n"
    assert 1_281_167 * len(line) < MANIFEST_LIMITS.size_bytes
    assert 1_281_167 * sum(map(line.count, ",{[")) < MANIFEST_LIMITS.separators


@pytest.mark.parametrize("value", ["[],", "{},", '{"a":0},', '"ab",', "0.5,"])
def test_a_hostile_document_takes_bounded_memory(tmp_path: Path, value: str) -> None:
    """As many values as are parsed, filled up with a text of four bytes per character.

    A longer document is not read to its end.
    """
    separators = sum(map(value.count, ",[{"))
    values = value * ((BUNDLE_LIMITS.separators - 10) // separators)
    filling = "x" * (BUNDLE_LIMITS.size_bytes - len(values) - 100)
    for text, message in (
        (f'{{"b":"\U0001f600{filling}","a":[{values}0]}}', "schema: missing"),
        (f'{{"a":[{value * 10**7}0]}}', "more than 8,388,608 bytes"),
    ):
        (tmp_path / "bundle.json").write_text(text, encoding="utf-8")
        tracemalloc.start()
        try:
            with pytest.raises(BundleError, match=message):
                Bundle.open(tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 150 * 1024**2
        finally:
            tracemalloc.stop()


def test_quoting_a_value_does_not_write_all_of_it(tmp_path: Path) -> None:
    text = json.dumps({"a": [["x" * 100] * 5], "b": "é" * 100})
    document = read(tmp_path, text)
    for name, start in (("a", '[["xxx'), ("b", r'"\u00e9')):
        with pytest.raises(BundleError) as caught:
            document.take(int, name)
        assert f"{name}: found {start}" in str(caught.value)
        assert len(str(caught.value)) < len(str(tmp_path)) + 200


def nothing(path: Path) -> str:
    return "No such file or directory"


@pytest.mark.parametrize("make", [link_out, device, fifo, folder, loop, nothing])
def test_only_a_regular_file_in_its_folder_is_read(
    tmp_path: Path, make: Callable[[Path], str]
) -> None:
    inside = tmp_path / "in\x1b[2J"
    inside.mkdir()
    message = make(inside / "a.json")
    with pytest.raises(DatasetError) as caught:
        Document.read(inside / "a.json", DatasetError)
    assert rf"in\x1b[2J/a.json: {message}" in str(caught.value)


def test_a_link_to_a_file_of_the_same_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b").write_text('{"a": 1}')
    (tmp_path / "real" / "a.json").symlink_to("b")
    (tmp_path / "link").symlink_to("real")
    assert Document.read(tmp_path / "link" / "a.json", DatasetError).take(int, "a") == 1


def test_the_parser_never_needs_more_of_the_stack_than_there_is() -> None:
    def deep(calls: int) -> object:
        return deep(calls - 1) if calls else parse_json("[" * 60 + "]" * 60, "x", BundleError)

    for calls in range(0, sys.getrecursionlimit() - 200, 50):
        with pytest.raises(BundleError, match="nested too deeply"):
            deep(calls)


@dataclass(frozen=True)
class Leaf:
    key: str = field(metadata=GIVEN)
    size: Annotated[int, whole(1, 10)]
    note: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Square:
    kind: Literal["square"]
    side: float


@dataclass(frozen=True)
class Whole:
    """One field of each type that a struct may have."""

    flag: bool
    choice: Literal["a", "b"]
    either: int | str | None
    pair: tuple[Count, Count]
    leaves: Mapping[Literal["x", "y"], Leaf]
    free: Mapping[str, Size]
    shape: Annotated[Any, Tagged({"square": Square})]
    even: Annotated[tuple[int, ...], Check(lambda v: len(v) % 2 == 0, "an even number of sizes")]
    rest: Any
    later: int = 3

    def check(self) -> None:
        if self.flag and self.later != 3:
            raise Invalid("found a flag, expected none", "pair", 0)


def whole_document() -> dict[str, Any]:
    return {
        "flag": True,
        "choice": "a",
        "either": None,
        "pair": [1, 2],
        "leaves": {"y": {"size": 1, "note": "n"}, "x": {"size": 10}},
        "free": {"k": 0},
        "shape": {"kind": "square", "side": 1},
        "even": [-1, 5],
        "rest": {"a": [None]},
    }


def test_a_struct_is_read_and_written() -> None:
    loaded = Document(whole_document(), "a.json", BundleError).load(Whole)
    leaves: Mapping[Literal["x", "y"], Leaf] = {"x": Leaf("x", 10), "y": Leaf("y", 1, "n")}
    assert loaded == Whole(
        True, "a", None, (1, 2), leaves, {"k": 0}, Square("square", 1.0), (-1, 5), {"a": [None]}
    )
    assert isinstance(loaded.shape.side, float)
    assert dump(loaded) == {**whole_document(), "later": 3}
    assert list(dump(loaded)["leaves"]) == ["x", "y"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("flag", 1, "flag: found 1, expected true or false"),
        ("choice", "c", 'choice: found "c", expected one of a, b'),
        ("either", True, "either: found true, expected a whole number or a text on one line, of"),
        ("either", 2**63, "either: found 9223372036854775808, expected a whole number or"),
        ("pair", [1], "pair: found [1], expected a list of 2, each a whole number, 1 or more"),
        ("pair", [1, 0], "pair[1]: found 0, expected a whole number, 1 or more"),
        ("pair", {"a": 1}, 'pair: found {"a": 1}, expected a list of 2'),
        ("leaves", {"x": {"size": 1}}, "leaves.y: missing, expected an object"),
        ("leaves", {"x": {}, "y": {}}, "leaves.x.size: missing, expected a whole number from 1 to"),
        ("leaves", {"x": 1, "y": {}}, "leaves.x: found 1, expected an object"),
        ("leaves", [], "leaves: found [], expected an object"),
        ("free", {"k": -1}, "free.k: found -1, expected a whole number, 0 or more"),
        ("free", {"\x1b": 1}, r'free: found the key "\u001b", expected a text on one line'),
        ("shape", {"side": 1}, "shape.kind: found null, expected one of square"),
        ("shape", {"kind": "disc"}, 'shape.kind: found "disc", expected one of square'),
        ("shape", {"kind": "square"}, "shape.side: missing, expected a number"),
        ("shape", {"kind": "square", "side": 10**400}, "shape.side: found 1000"),
        ("shape", None, "shape: found null, expected an object"),
        ("even", [1], "even: found [1], expected an even number of sizes"),
        ("even", ["a", 1], 'even[0]: found "a", expected a whole number'),
        ("later", 4, "pair[0]: found a flag, expected none"),
        ("later", None, "later: found null, expected a whole number"),
    ],
)
def test_a_bad_field_is_one_line_with_its_path(field: str, value: object, message: str) -> None:
    document = Document({**whole_document(), field: value}, "a.json", BundleError)
    with pytest.raises(BundleError) as caught:
        document.load(Whole)
    assert str(caught.value).startswith(f"a.json: {message}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", [name for name in whole_document() if name != "rest"])
def test_a_field_without_a_default_must_be_there(field: str) -> None:
    fields = whole_document()
    del fields[field]
    with pytest.raises(BundleError, match=rf"a\.json: {field}: missing, expected "):
        Document(fields, "a.json", BundleError).load(Whole)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (1, "a.json: schema 1, but this diver-trt reads schema 2; make it again"),
        (3, "a.json: schema 3, but this diver-trt reads schema 2; update diver-trt"),
        ("2", 'a.json: schema: found "2", expected a whole number, 1 or more'),
    ],
)
def test_another_schema_is_refused_with_what_helps(schema: object, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        Document({"schema": schema}, "a.json", BundleError).require_schema(2, "make it again")
    assert str(caught.value) == message
