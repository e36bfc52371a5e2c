"""JSON is read strictly, within limits that are stated, and from regular files only."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from diver_trt.bundle import LIMITS as BUNDLE_LIMITS
from diver_trt.bundle import Bundle
from diver_trt.documents import MANIFEST_LIMITS, MAX_DEPTH, Document, Limits, parse_json
from diver_trt.errors import BundleError, DatasetError
from diver_trt.runtime.backends.tensorrt.sidecar import LIMITS as SIDECAR_LIMITS


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
        ('{"a": %s}' % ("9" * 10_000), "a number has 10,000 digits, expected at most 1,000"),
        ('{"a": 0.%s}' % ("1" * 10**6), "a number has 1,000,002 digits, expected at most 1,000"),
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
    assert read(tmp_path, b'\xef\xbb\xbf{"a": "\xc3\xa9"}').text("a") == "é"


def test_values_may_lie_within_each_other_up_to_the_limit(tmp_path: Path) -> None:
    def nested(levels: int) -> str:
        return '{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"

    assert read(tmp_path, nested(MAX_DEPTH)).fields
    for levels in (MAX_DEPTH + 1, 976, 100_000):
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
    assert read(tmp_path, json.dumps({"a": 10 * "x"}), limits).text("a") == 10 * "x"
    for value in (11 * "x", "a\nb"):
        with pytest.raises(BundleError, match=r"a: found .*a text on one line, of at most 10 char"):
            read(tmp_path, json.dumps({"a": value}), limits).text("a")
    with pytest.raises(BundleError, match=r"b\.a: found .*a list of texts on one line, of at most"):
        read(tmp_path, json.dumps({"b": {"a": [11 * "x"]}}), limits).document("b").texts("a")
    with pytest.raises(BundleError, match="an object of texts on one line, of at most 10"):
        read(tmp_path, json.dumps({"a": {11 * "x": ""}}), limits).text_mapping("a")


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
    """As many values as are parsed, filled up with a text of four bytes per character; a longer document is not read to its end."""
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
            document.integer(name)
        assert f"{name}: found {start}" in str(caught.value)
        assert len(str(caught.value)) < len(str(tmp_path)) + 200


def link_out(path: Path) -> str:
    (path.parent.parent / "real.json").write_text("{}")
    path.symlink_to("../real.json")
    return "is a link out of its folder; copy what it points to into its place"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "is a link out of its folder"


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return "is a FIFO, expected a regular file"


def folder(path: Path) -> str:
    path.mkdir()
    return "is a folder, expected a regular file"


def loop(path: Path) -> str:
    path.symlink_to(path.name)
    return "Too many levels of symbolic links"


def nothing(path: Path) -> str:
    return "No such file or directory"


@pytest.mark.parametrize("make", [link_out, device, fifo, folder, loop, nothing])
def test_only_a_regular_file_in_its_folder_is_read(tmp_path: Path, make: object) -> None:
    inside = tmp_path / "in\x1b[2J"
    inside.mkdir()
    assert callable(make)
    message = make(inside / "a.json")
    with pytest.raises(DatasetError) as caught:
        Document.read(inside / "a.json", DatasetError)
    assert rf"in\x1b[2J/a.json: {message}" in str(caught.value)


def test_a_link_to_a_file_of_the_same_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b").write_text('{"a": 1}')
    (tmp_path / "real" / "a.json").symlink_to("b")
    (tmp_path / "link").symlink_to("real")
    assert Document.read(tmp_path / "link" / "a.json", DatasetError).integer("a") == 1


def test_the_parser_never_needs_more_of_the_stack_than_there_is() -> None:
    def deep(calls: int) -> object:
        return deep(calls - 1) if calls else parse_json("[" * 60 + "]" * 60, "x", BundleError)

    for calls in range(0, sys.getrecursionlimit() - 200, 50):
        with pytest.raises(BundleError, match="nested too deeply"):
            deep(calls)
